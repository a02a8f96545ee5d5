"""The .meta.json beside an output: what a finished run says of itself, and whether it is that run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefpipe.files.fingerprint import difference, library_versions
from prefpipe.files.lines import DataError
from prefpipe.files.outputs import write_json

VERSION = 1


def read_meta(path: Path) -> dict[str, Any] | None:
    """What is in it; None: there is none, so a run was killed before its end, or there was no run.

    Raises DataError where it is damaged: what stands beside it may be of any settings.
    """
    if not path.is_file():
        return None
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        values = [meta["closing_line"], *meta["fingerprint"].values()]
        if all(isinstance(value, str) for value in values):
            return meta
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    raise DataError(
        f"{path}: is damaged, so that nobody knows of which settings the outputs beside it are; "
        "--overwrite makes them anew"
    )


def is_of_another_run(
    meta: Mapping[str, Any], path: Path, mark: Mapping[str, str], *, follows_input: bool
) -> bool:
    """Whether the finished run that says this of itself is to be replaced; of this mark it is the same
    run. follows_input: what is of another input only is replaced. SystemExit where a person has to say."""
    if (was := meta["fingerprint"]) == mark:
        return False
    changes = {name for name, _ in was.items() ^ mark.items()}
    if follows_input and all(name.startswith("input ") for name in changes):
        return True
    raise SystemExit(
        f"{path}: made with other settings or input ({difference(was, dict(mark))}); "
        "--overwrite replaces it, or choose another --output"
    )


def write_meta(path: Path, facts: dict[str, Any]) -> None:
    """facts: stage, closing_line, counts, settings and fingerprint, and the stage's own summary."""
    write_json(path, {"version": VERSION, **facts, "libraries": library_versions()})
