"""What a stage says on standard output: its own words, nothing, its summary as JSON, or its dry run's plan."""

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path

from prefpipe.files import DryRunEnd, Run
from prefpipe.files.meta import read_meta
from prefpipe.models import gguf_files
from prefpipe.screen import visible

_NOT_TOLD = ("settings", "fingerprint", "libraries")
"""What of a .meta.json is no summary."""


@contextmanager
def spoken(runs: Sequence[Run], *, quiet: bool, as_json: bool, dry_run: bool) -> Iterator[None]:
    """While the stage runs. runs: those that it opens, as it opens them.

    as_json: of each run one line of JSON; of a stage that opens none (dpo_dataset.py), what it says,
    which it says as JSON by itself. dry_run: of each run its plan.
    """
    gguf_files.unpacks = not dry_run
    if not quiet and not as_json and not dry_run:
        yield
        return
    words = io.StringIO()
    try:
        with redirect_stdout(words), suppress(DryRunEnd):
            yield
    finally:  # dpo_dataset.py ends with an error where it has found a problem, and has said all by then
        if not runs and not quiet:
            print(words.getvalue(), end="")
        if (
            dry_run and not quiet
        ):  # of several runs one may end with an error: the others' plans stand
            _tell_plans(runs, as_json=as_json)
    for run in runs if as_json and not dry_run else ():
        _tell(run.meta_path)


def _tell(meta_path: Path) -> None:
    meta = read_meta(meta_path) or {}
    told = {name: value for name, value in meta.items() if name not in _NOT_TOLD}
    print(json.dumps(told | {"meta": str(meta_path)}, ensure_ascii=False))


def _tell_plans(runs: Sequence[Run], *, as_json: bool) -> None:
    for plan in [run.plan for run in runs if run.plan and run.plan.is_whole]:
        if as_json:
            print(json.dumps(plan.summary(), ensure_ascii=False))
        else:
            print(visible("\n".join(plan.lines())))
