"""What stands in a model's folder or on the hub; whatever is wrong with it is one sentence."""

import json
from pathlib import Path
from typing import Any

from transformers.utils import logging

from prefpipe.models.gguf_files import plain_folder

PROBE = "probe.json"
"""By this file a folder is known as a probe's (prefpipe.models.probes)."""
_MOST = 150
"""Characters of a library's words that a message repeats."""


def from_pretrained(auto_class: Any, source: str, *, of: str | Path = "", **options: Any) -> Any:
    """auto_class.from_pretrained without the source's own code. of: the adapter whose base it is.

    Raises SystemExit with a sentence, whatever the libraries raise: a folder is anybody's file.
    """
    where = f"model {of}: its base {source}" if of else f"model {source}"
    check_kind(source, where)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what a load report says is said here, in a sentence
    try:
        return auto_class.from_pretrained(source, trust_remote_code=False, **options)
    except Exception as error:
        mend = (
            f"; set base_model_name_or_path in {PROBE if is_probe(of) else 'adapter_config.json'}"
            if of
            else ""
        )
        raise SystemExit(f"{where}: {_words(error, source)}{mend}") from error
    finally:
        logging.set_verbosity(verbosity)


def check_kind(source: str, where: str) -> None:
    """SystemExit for what no transformers model is: a file."""
    if Path(source).is_file():
        raise SystemExit(
            f"{where}: a file; wanted a model's folder, a GGUF file or a name on the hub"
        )


def _words(error: Exception, source: str) -> str:
    lines = [line.strip() for line in str(error).strip().split("\n") if line.strip()]
    first = lines[0] if lines else ""
    kind = type(error).__name__
    if not Path(source).is_dir() and "couldn't connect" in first:
        return "no such folder, and the model hub cannot be reached; give a folder's path"
    if not Path(source).exists() and "Repo id must" in first:
        return "no such folder, nor is it a model's name on the hub"
    if "ignore_mismatched_sizes" in str(error):
        return "its weights are of other sizes than its config.json says"
    if kind == "SafetensorError":
        return f"a file of weights is damaged or cut: {first[:_MOST]}"
    if kind in ("OSError", "ValueError", "ImportError"):
        return first[:_MOST]
    return f"a file of it cannot be read: {kind}: {' '.join(lines)[:_MOST]}"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; SystemExit where it holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is one
        raise SystemExit(f"{path}: no JSON: {str(error)[:_MOST]}") from None
    if not isinstance(content, dict):
        raise SystemExit(f"{path}: found a {type(content).__name__}, wanted a JSON object")
    return content


def is_adapter(name: str | Path) -> bool:
    return (Path(name) / "adapter_config.json").is_file()


def is_probe(name: str | Path) -> bool:
    return (Path(name) / PROBE).is_file()


def base_of(name: str | Path) -> tuple[str, dict[str, Any]]:
    """What to load first, and how: an adapter's base in the revision it stands on, a probe's, else the
    model. Of a GGUF file the folder that it is unpacked to."""
    if not (is_adapter(name) or is_probe(name)):
        return plain_folder(str(name))
    path = Path(name) / ("adapter_config.json" if is_adapter(name) else PROBE)
    own = read_json(path)
    base, revision = own.get("base_model_name_or_path"), own.get("revision")
    if not isinstance(base, str) or not base:
        raise SystemExit(f"{path}: base_model_name_or_path is empty; set it")
    source, options = plain_folder(base)
    of = {"of": name} | ({"revision": revision} if isinstance(revision, str) else {})
    return source, options | of
