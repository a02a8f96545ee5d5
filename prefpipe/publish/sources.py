"""Where published data comes from: the runs behind an input, and what its own card states."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prefpipe.files import DataError, Named
from prefpipe.files.meta import read_meta

Values = Mapping[str, Any]

CARD = "README.md"
_CACHED = re.compile(r".*/(?:models|datasets)--([^/]+)--([^/]+)/snapshots/[^/]+/?")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def shown(value: Any) -> Any:
    """A setting as a card shows it: of this machine's folders no more than there must be.

    Below the current folder a path is relative, below the home folder it begins with ~, and what
    the hub's cache holds goes by its name on the hub.
    """
    if isinstance(value, dict):
        return {name: shown(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [shown(inner) for inner in value]
    if not isinstance(value, str | Path):
        return value
    text = str(value)
    if cached := _CACHED.fullmatch(text):
        return f"{cached[1]}/{cached[2]}"
    for folder, start in ((Path.cwd(), ""), (Path.home(), "~/")):
        if len(folder.parts) > 1:
            # also behind the name= of a benchmark
            text = re.sub(rf"(^|=){re.escape(f'{folder}{os.sep}')}", rf"\1{start}", text)
    return text


def names_of(settings: Values) -> list[str]:
    """Every text in settings that may name an input; name=path is the path."""
    values = [v for name, v in settings.items() if name not in ("output", "description")]
    texts = [t for v in values for t in (v if isinstance(v, list) else [v]) if isinstance(t, str)]
    paths = (t if _is_there(t) else t.partition("=")[2] or t for t in texts if t)
    # of a glob the files that it stands for
    files = (files if (files := Named(p).paths()) and not _is_there(p) else [p] for p in paths)
    return list(dict.fromkeys(str(file) for some in files for file in some))


def _is_there(name: str) -> bool:
    try:
        return Path(name).exists()
    except OSError:  # a text too long for a name
        return False


def runs_before(settings: Values) -> list[dict[str, Any]]:
    """What the runs that made the inputs say of themselves (.meta.json), and those before them.

    The first one comes first. settings: of the last run, which is not among them.
    """
    found: dict[Path, dict[str, Any]] = {}

    def follow(settings: Values) -> None:
        for name in names_of(settings):
            for path in _metas(Path(name)):
                if path.resolve() in found:
                    continue
                try:
                    meta = read_meta(path)
                except DataError:  # a damaged one says nothing
                    continue
                if meta and isinstance(meta.get("settings"), dict) and _wrote(meta, name, path):
                    found[path.resolve()] = meta
                    follow(meta["settings"])
                    found[path.resolve()] = found.pop(path.resolve())  # behind those before it

    follow(settings)
    return list(found.values())


def _metas(path: Path) -> Iterator[Path]:
    """The .meta.json of the runs that wrote this file or folder."""
    try:
        if path.is_dir():
            yield from sorted(path.glob("*.meta.json"))
            yield from sorted(path.glob("*/*.meta.json"))
        elif path.is_file():
            own = path.with_suffix(".meta.json")
            yield from [own] if own.is_file() else sorted(path.parent.glob("*.meta.json"))
    except OSError:  # a text too long for a name
        return


def _wrote(meta: Values, name: str, path: Path) -> bool:
    """Whether the run of this .meta.json wrote what is named: other runs' may stand beside it."""
    if Path(name).is_dir() or path == Path(name).with_suffix(".meta.json"):
        return True
    return Path(name).name in (meta.get("counts") or {}).get("written", {})


def licences(settings: Values) -> dict[str, str]:
    """Input -> the licence that its own card states, of all inputs and of those they were made of."""
    names = names_of(settings)
    for run in runs_before(settings):
        names += names_of(run["settings"])
    stated = ((name, _front_matter(name).get("license")) for name in dict.fromkeys(names))
    pairs = [(str(shown(name)), licence) for name, licence in stated if licence]
    return {name: ", ".join(v) if isinstance(v, list) else str(v) for name, v in pairs}


def on_hub(settings: Values, kind: str) -> list[str]:
    """The inputs that are a "dataset" or "model" (kind) on the hub, and not here."""
    names = [str(shown(name)) for name in names_of(settings)]
    return [name for name in dict.fromkeys(names) if _cached(name, kind)]


def _cached(name: str, kind: str) -> bool:
    """Whether it is something on the hub that this machine has loaded: other names, a server's
    models for example, are none of the hub's business."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    if not _HUB_NAME.fullmatch(name) or Path(name).exists():
        return False
    return (Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind)).is_dir()


def _front_matter(name: str) -> dict[str, Any]:
    """What the card of a file, folder, or name on the hub states; empty where there is none."""
    path = Path(name)
    try:
        if path.is_dir() or path.is_file():
            folders = [path] if path.is_dir() else [path.parent, path.parent.parent]
            cards = [folder / CARD for folder in folders if (folder / CARD).is_file()]
            return _read(cards[0]) if cards else {}
    except OSError:
        return {}
    name = str(shown(name))
    cards = (_hub_card(name, kind) for kind in ("dataset", "model") if _cached(name, kind))
    card = next(filter(None, cards), None)
    return _read(card) if card else {}


def _hub_card(name: str, kind: str) -> Path | None:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, CARD, repo_type=kind, etag_timeout=5))
    except Exception:  # it has no card, or the hub cannot be asked: then it states nothing here
        return None


def _read(path: Path) -> dict[str, Any]:
    from huggingface_hub import RepoCard

    try:
        text = path.read_text(encoding="utf-8")
        return RepoCard(text).data.to_dict() if text.startswith("---") else {}
    except Exception:  # a card is a text of a stranger's: what cannot be read states nothing
        return {}
