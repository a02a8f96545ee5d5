"""What a stage says on standard output: its own words, nothing, or its summary as JSON."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from prefpipe.files.meta import read_meta

_NOT_TOLD = ("settings", "fingerprint", "libraries")
"""What of a .meta.json is no summary."""


@contextmanager
def spoken(metas: list[Path], *, quiet: bool, as_json: bool) -> Iterator[None]:
    """While the stage runs. metas: the .meta.json of each run that it opens, as it opens them.

    as_json: of each run one line of JSON; of a stage that opens none (dpo_dataset.py), what it says,
    which it says as JSON by itself.
    """
    if not quiet and not as_json:
        yield
        return
    words = io.StringIO()
    try:
        with redirect_stdout(words):
            yield
    finally:  # dpo_dataset.py ends with an error where it has found a problem, and has said all by then
        if as_json and not metas:
            print(words.getvalue(), end="")
    for path in metas if as_json else ():
        meta = read_meta(path) or {}
        told = {name: value for name, value in meta.items() if name not in _NOT_TOLD}
        print(json.dumps(told | {"meta": str(path)}, ensure_ascii=False))
