"""What of a folder is published: what its card names, or of a model what loads it; and no key.

A list of what may be uploaded, none of what may not: what nobody thought of stays here.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dotenv import dotenv_values

from prefpipe.files import DataError, read_records
from prefpipe.files.lines import OPENERS
from prefpipe.files.meta import read_meta
from prefpipe.publish.cards import MARK, NAME_LINE, name_line
from prefpipe.publish.sources import CARD

Kind = Literal["dataset", "model"]

_OF_A_MODEL = re.compile(
    r"README\.md|LICENSE[\w.]*|loss_curve\.(csv|png)|reliability\.png|chat_template\.jinja"
    r"|(model|adapter_model|pytorch_model|probe)[\w.-]*\.safetensors(\.index\.json)?|[\w.-]*\.index\.json"
    r"|(config|generation_config|adapter_config|probe|reward_format|pairwise_format|tokenizer|tokenizer_config"
    r"|special_tokens_map|added_tokens|vocab|preprocessor_config|modules)\.json"
    r"|merges\.txt|vocab\.txt|[\w.-]*\.model|[\w.-]*\.spm"
)
_NEVER = (
    (re.compile(r"(^|/)\."), "hidden"),
    (re.compile(r"\.rejects\.\w+$"), "rejects"),
    (re.compile(r"\.meta\.json$"), "of this machine"),
    (re.compile(r"\.log$|\.partial\b|(^|/)(logs?|errors|runs)/"), "a log"),
    (re.compile(r"(^|/)checkpoint"), "a checkpoint"),
)
_KEY = re.compile(
    r"(?:(?<![A-Za-z0-9])|(?<=\\[nrt]))"  # \n before it, as JSON writes it, is no letter of a word
    r"(?:hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}"
    r"|glpat-[\w-]{20,}|xox[abprs]-[\w-]{20,}|AKIA[A-Z0-9]{16}|AIza[\w-]{35}|nvapi-[\w-]{30,})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
"""What a key looks like, of the hub, OpenAI and its like, GitHub, GitLab, Slack, AWS, Google."""
_PACKED = (".parquet", ".arrow", *OPENERS)
"""Files whose bytes do not show their texts."""
_SECRET_NAME = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD)$", re.IGNORECASE)
_FEWEST_CHARACTERS = 10  # different ones: sk-xxxxxxxxxxxxxxxxxxxxxxxx is a key's place, and no key


class Chosen(NamedTuple):
    """What will be uploaded of a folder."""

    kind: Kind
    files: dict[str, Path | bytes]
    """Name in the repository -> the file, or its text where it is another there."""
    left_out: dict[str, str]
    """Name -> why."""

    def sizes(self) -> dict[str, int]:
        return {
            name: len(file) if isinstance(file, bytes) else file.stat().st_size
            for name, file in self.files.items()
        }


def choose(folder: Path, repository: str) -> Chosen:
    """The files to upload. Raises DataError where there is no card, or it and the folder disagree."""
    _check_name(repository)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    card = folder / CARD
    if not card.is_file():
        raise DataError(f"{card}: is missing; nothing is published without a card")
    text, facts = _read_card(card)
    configurations = ("config.json", "adapter_config.json", "probe.json")
    is_model = any((folder / name).is_file() for name in configurations)
    names = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if not p.is_dir()]
    left_out = {name: why for name in names if (why := _never(folder, name))}
    if is_model:
        wanted = [n for n in names if _OF_A_MODEL.fullmatch(n)]
        if not any(name.endswith(".safetensors") for name in wanted):
            raise DataError(f"{folder}: no .safetensors, so no weights; train it to its end first")
    else:
        wanted = [CARD, *_named_by(card, facts, names)]
    if bad := [name for name in wanted if name in left_out and not is_model]:
        raise DataError(
            f"{card}: its configs name {bad[0]}, which is {left_out[bad[0]]}; mend them"
        )
    _check_finished(folder, text, wanted)
    files: dict[str, Path | bytes] = {n: folder / n for n in wanted if n not in left_out}
    files[CARD] = NAME_LINE.sub(lambda _: name_line(folder, repository), text).encode()
    why = "no part of the model" if is_model else "not in the card"
    reasons = {name: left_out.get(name, why) for name in names if name not in files}
    return Chosen("model" if is_model else "dataset", files, _by_folder(reasons))


def _by_folder(reasons: Mapping[str, str]) -> dict[str, str]:
    """A folder of which nothing is uploaded in one line; its files have more reasons than are of use."""
    shown: dict[str, str] = {}
    for name, why in reasons.items():
        folder, in_folder, _ = name.partition("/")
        shown.setdefault(f"{folder}/" if in_folder else name, why)
    return shown


def _check_name(repository: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        words = " ".join(str(error).split())[:120]
        raise DataError(f"{repository}: is no name on the hub: {words}") from None
    if "/" not in repository:
        raise DataError(f"{repository}: is no name on the hub; wanted OWNER/NAME")


def _never(folder: Path, name: str) -> str | None:
    if (folder / name).is_symlink():
        return "a link"
    return next((why for pattern, why in _NEVER if pattern.search(name)), None)


def _read_card(card: Path) -> tuple[str, dict[str, Any]]:
    from huggingface_hub import RepoCard

    try:
        text = card.read_text(encoding="utf-8")
        facts = RepoCard(text).data.to_dict() if text.startswith("---") else {}
    except Exception as error:  # YAML of a person's
        words = " ".join(str(error).split())[:120]
        raise DataError(f"{card}: its front matter cannot be read: {words}") from None
    if not facts:
        raise DataError(f"{card}: has no front matter (--- lines with YAML), so it is no card")
    return text, facts


def _named_by(card: Path, facts: Mapping[str, Any], names: list[str]) -> list[str]:
    """The data files of a card's configs, whose paths may be globs."""
    try:
        given = [config["data_files"] for config in facts["configs"]]
        files = [f for files in given for f in (files if isinstance(files, list) else [files])]
        paths = [path["path"] if isinstance(path, dict) else path for path in files]
        patterns = [str(p) for path in paths for p in (path if isinstance(path, list) else [path])]
    except (KeyError, TypeError):
        raise DataError(
            f"{card}: names no data files (configs: data_files), and no model stands beside it"
        ) from None
    known = set(names)
    folder = card.parent
    try:
        at = {
            p: {
                f.relative_to(folder).as_posix()
                for f in folder.glob(f"{p}/*" if p.endswith("**") else p)
            }
            for p in patterns
        }
        found = {pattern: sorted(known & files) for pattern, files in at.items()}
    except (ValueError, NotImplementedError) as error:  # empty, or of another folder
        raise DataError(f"{card}: a path in its configs: {error}") from None
    if missing := [pattern for pattern, files in found.items() if not files]:
        raise DataError(f"{card}: its configs name {missing[0]}, and there is no such file")
    return list(dict.fromkeys(name for files in found.values() for name in files))


def _check_finished(folder: Path, text: str, wanted: list[str]) -> None:
    """Raise DataError where the run that wrote the card is not at its end."""
    if MARK not in text:
        return
    data = [name for name in wanted if name != CARD]
    metas = [*folder.glob("*.meta.json")]
    if (
        len(data) == 1
    ):  # of one output the file bears its name; else other runs' may stand beside it
        own = folder / f"{Path(data[0]).stem}.meta.json"
        metas = [own] if own.is_file() or text.count(MARK + data[0] + " -->") else metas
    if not any(read_meta(path) for path in metas):
        raise DataError(f"{folder}: its run is not finished (no .meta.json); run it to its end")


# ---- keys


def check_no_key(chosen: Chosen) -> None:
    """Raise DataError, with the place, where a file has a key: the account's, or what looks like one."""
    secrets = own_secrets()
    for name, file in chosen.files.items():
        for place, text in _texts(name, file):
            if found := _key_in(text, secrets):
                raise DataError(
                    f"{place}: has what looks like a key ({found}); take it out (of a row: leave the "
                    "row out of the input and make the file anew), then push again"
                )


def own_secrets() -> list[str]:
    """The keys of this machine's user: the hub's, and what environment and .env call a secret."""
    from huggingface_hub import get_token

    known = {**dotenv_values(".env"), **os.environ}
    values = [value for name, value in known.items() if value and _SECRET_NAME.search(name)]
    return [v.strip() for v in [get_token() or "", *values] if len(v.strip()) >= 12]


def _key_in(text: str, secrets: list[str]) -> str | None:
    """How the first key in a text begins."""
    if any(secret in text for secret in secrets):
        return "one of your own"
    for match in _KEY.finditer(text):
        if len(set(match[0])) >= _FEWEST_CHARACTERS:
            return f"{match[0][:6]}..."
    return None


def _texts(name: str, file: Path | bytes) -> Iterator[tuple[str, str]]:
    """(place, text) of all that a file says; of weights what stands before them, of pictures nothing."""
    if isinstance(file, bytes):
        yield name, file.decode()
    elif file.suffix == ".safetensors":
        with open(file, "rb") as weights:
            yield str(file), weights.read(min(int.from_bytes(weights.read(8), "little"), 1 << 24)).decode("utf-8", "replace")  # fmt: skip
    elif file.suffix in _PACKED:
        for place, record in read_records(file):
            yield place, json.dumps(record, ensure_ascii=False, default=str)
    elif file.suffix != ".png":
        with open(file, encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, start=1):
                yield f"{file}:{number}", line
