"""Run a stage in shards on a Ray cluster, or on this machine, and put them together.

    uv run --extra ray on_ray.py inference_best_of_n.py --shards 64 --gpus 1 -- --n 8
    RAY_ADDRESS=ray://head:10001 uv run --extra ray on_ray.py preprocess_dataset.py --shards 32 -- --input rows.jsonl
    uv run --extra ray on_ray.py post_processing.py --shards 2

What stands behind -- are the stage's own options. Each shard is one Ray task: a process that has the
CPUs and GPUs that are stated, and runs the stage with --shard 3/64. A task whose machine is lost is
started anew, and goes on from its shard's log, so the data folder is on storage that all machines
share, and the project at the same path. Where a shard fails for good the others go on; its last line is
shown, and the same command goes on with what is left. Once all are there, they are put together here
(--shard all/64): the files and the last lines are those of one run.

Writes  data/on_ray/STAGE/3-of-64.log   what a shard said
"""

import logging
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field
from pydantic_settings import CliPositionalArg

import config
from prefpipe.files import DataError
from prefpipe.ranges import AtLeastTwo, NotNegative, Positive
from prefpipe.screen import progress
from prefpipe.settings import Script


class Settings(Script, env_prefix="ON_RAY_"):
    stage: CliPositionalArg[Path]
    """The stage's script."""
    shards: AtLeastTwo = 2
    """How many there are; a few for each task that runs at once, so that none waits long for the last."""
    cpus: Positive = 1
    """Of a task."""
    gpus: Annotated[float, Field(ge=0)] = 0
    """Of a task; 0.5 where two share one."""
    retries: NotNegative = 3
    """Times that a task is started anew whose process or machine was lost."""


class Ended(NamedTuple):
    """How a shard came to its end."""

    number: int
    exit_code: int
    last_line: str


def run_shard(command: list[str], number: int, folder: str, log: str) -> Ended:
    """In a Ray worker: the stage itself, so that both end together where the worker is lost."""
    os.chdir(folder)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    kept = os.dup(1), os.dup(2)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.argv, sys.path[:0] = command, [folder]
    code: Any = 0
    try:
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    for stream, was in enumerate(kept, start=1):
        os.dup2(was, stream)
    said = Path(log).read_text(encoding="utf-8", errors="replace").splitlines()
    exit_code = code if isinstance(code, int) else 0 if code is None else 1
    return Ended(number, exit_code, said[-1] if said else "")


def ended(ray: Any, tasks: dict[Any, int]) -> Iterator[Ended]:
    """Each task as it ends; one whose worker was lost too often, too."""
    while tasks:
        done, _ = ray.wait(list(tasks), num_returns=1)
        number = tasks.pop(done[0])
        try:
            yield ray.get(done[0])
        except ray.exceptions.RayError as error:
            yield Ended(number, 1, f"the task was lost: {str(error).splitlines()[0]}")


def main(s: Settings, options: list[str]) -> None:
    if not s.stage.is_file():
        raise DataError(f"{s.stage}: no such script")
    if "--shard" in options:
        raise SystemExit("on_ray: --shard is what it sets for each task; leave it out")
    os.environ.setdefault(
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"
    )  # its new default, else it warns
    if "--overwrite" in options:
        raise SystemExit(
            "on_ray: with --overwrite a task that is started anew would begin its shard anew, and ask "
            "again what is paid; take the old output away, and leave the option out"
        )
    try:
        import ray
    except ImportError:
        raise SystemExit("on_ray: Ray is not installed: uv run --extra ray on_ray.py ...") from None
    folder = str(Path.cwd())
    logs = (config.DATA / "on_ray" / s.stage.stem).absolute()
    logs.mkdir(parents=True, exist_ok=True)
    # the tasks of a cluster's other machines see this run's variables, too
    passed = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    ray.init(runtime_env={"env_vars": passed}, **quiet)
    # a process of its own each: a stage sets what holds for the whole process
    resources = {"num_cpus": s.cpus, "num_gpus": s.gpus, "max_retries": s.retries, "max_calls": 1}
    task = ray.remote(**resources)(run_shard)
    tasks: dict[Any, int] = {}
    for number in range(1, s.shards + 1):
        command = [str(s.stage), *options, "--shard", f"{number}/{s.shards}"]
        log = logs / f"{number}-of-{s.shards}.log"
        tasks[task.remote(command, number, folder, str(log))] = number
    with redirect_stdout(sys.stderr):  # what Ray says of workers that died is no result
        failed = [e for e in progress(ended(ray, tasks), s.shards, "shards") if e.exit_code]
        ray.shutdown()
    for one in sorted(failed)[:8]:
        log = logs / f"{one.number}-of-{s.shards}.log"
        print(f"shard {one.number}/{s.shards}: {one.last_line} ({log})", file=sys.stderr)
    if failed:
        raise SystemExit(
            f"on_ray: {len(failed)} of {s.shards} shards failed; the same command goes on with these"
        )
    together = [sys.executable, str(s.stage), *options, "--shard", f"all/{s.shards}"]
    raise SystemExit(subprocess.run(together).returncode)


if __name__ == "__main__":
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    given, sys.argv[at:] = sys.argv[at + 1 :], []
    Settings.run(lambda s: main(s, given))
