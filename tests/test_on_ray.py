"""Shards as Ray tasks on this machine. The stage of most tests is a script that writes down each start."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.examples import ROOT

pytest.importorskip("ray")

STAGE = """
import os, sys, time
from pathlib import Path
shard = sys.argv[sys.argv.index("--shard") + 1]
home = Path(os.environ["PREFPIPE_DATA"])
with open(home / "starts", "a") as file:
    file.write(f"{shard} {os.getpid()}\\n")
starts = (home / "starts").read_text().splitlines()
mode = (home / "mode").read_text()
if mode == "hangs" and shard == "2/2" and sum(line.startswith("2/2") for line in starts) == 1:
    time.sleep(600)
if mode == "fails" and shard == "1/2":
    sys.exit("stage: this one never works")
print(f"put together {sys.argv[1:]}" if shard.startswith("all") else f"done {shard}")
"""


@pytest.fixture
def home(tmp_path) -> Path:
    (tmp_path / "stage.py").write_text(STAGE)
    (tmp_path / "mode").write_text("works")
    return tmp_path


def start(home: Path, *options: str, stage: str = "") -> "subprocess.Popen[str]":
    command = [
        sys.executable,
        "on_ray.py",
        stage or str(home / "stage.py"),
        "--shards",
        "2",
        *options,
    ]
    env = os.environ | {"PREFPIPE_DATA": str(home)}
    return subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(home: Path, *options: str, stage: str = "") -> tuple[int, str, str]:
    process = start(home, *options, stage=stage)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def starts(home: Path) -> list[tuple[str, int]]:
    path = home / "starts"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(line.split()[0], int(line.split()[1])) for line in lines]


def pid_of(home: Path, shard: str) -> int:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if found := [pid for name, pid in starts(home) if name == shard]:
            return found[-1]
        time.sleep(0.05)
    raise AssertionError(f"{shard} never began")


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def test_a_stage_in_two_tasks_is_one_run(home):
    """The stage itself without Ray is the other way."""
    options = ["--input", "embedded/sample/preferences-train.parquet", "--validation-input", ""]
    options += ["--limit", "200", "--output", str(home / "items")]
    code, out, err = run(home, "--", *options, stage="preprocess_dataset.py")
    assert code == 0, err
    names = ("train.jsonl", "validation.jsonl", "preprocess_dataset.rejects.jsonl", "README.md")
    together = {name: (home / "items" / name).read_bytes() for name in names}
    whole = subprocess.run(
        [sys.executable, "preprocess_dataset.py", *options, "--overwrite"],
        cwd=ROOT, env=os.environ | {"PREFPIPE_DATA": str(home)}, capture_output=True, text=True,
    )  # fmt: skip
    assert out == whole.stdout
    assert {name: (home / "items" / name).read_bytes() for name in names} == together
    assert (
        json.loads((home / "items/preprocess_dataset.meta.json").read_text())["counts"]["kept"]
        == 200
    )


def test_a_task_whose_process_is_killed_is_started_anew_and_then_all_is_put_together(home):
    (home / "mode").write_text("hangs")
    process = start(home, "--", "--n", "8")
    pid = pid_of(home, "2/2")
    os.kill(pid, signal.SIGKILL)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert [name for name, _ in starts(home)].count("2/2") == 2
    assert out == "put together ['--n', '8', '--shard', 'all/2']\n"


def test_a_shard_that_fails_for_good_is_named_the_others_are_done_and_nothing_is_put_together(home):
    (home / "mode").write_text("fails")
    code, out, err = run(home)
    assert (code, out) == (1, "")
    log = home / "on_ray/stage/1-of-2.log"
    assert f"shard 1/2: stage: this one never works ({log})" in err
    assert "on_ray: 1 of 2 shards failed; the same command goes on with these" in err
    assert sorted(name for name, _ in starts(home)) == ["1/2", "2/2"]
    assert (home / "on_ray/stage/2-of-2.log").read_text() == "done 2/2\n"


def test_where_the_one_who_started_them_is_killed_its_tasks_end_and_the_command_goes_on(home):
    (home / "mode").write_text("hangs")
    process = start(home)
    pid = pid_of(home, "2/2")
    process.kill()
    process.communicate()
    end = time.monotonic() + 60
    while is_alive(pid) and time.monotonic() < end:
        time.sleep(0.2)
    assert not is_alive(pid)
    code, out, err = run(home)
    assert code == 0, err
    assert out.startswith("put together")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--", "--shard", "1/2"], "--shard is what it sets"),
        (["--", "--overwrite"], "take the old output away"),
        (["--shards", "1"], "greater than or equal to 2"),
    ],
)
def test_what_cannot_be_is_a_sentence(home, options, said):
    code, _, err = run(home, *options)
    assert code and said in err and "Traceback" not in err
    code, _, err = run(home, stage="nothing.py")
    assert (code, err) == (1, "on_ray: nothing.py: no such script\n")


def test_the_slurm_script_of_the_docs_does_the_same_without_ray(home):
    """Run with a stand-in for srun and uv, its tasks in any order."""
    text = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"^```bash\n(#!/bin/bash\n#SBATCH --array.*?)^```", text, re.M | re.S)
    options = f"--limit 60 --output {home / 'items'}"
    script = script.replace("inference_best_of_n.py --n 8", f"preprocess_dataset.py {options}")
    bin = home / "bin"
    bin.mkdir()
    (bin / "srun").write_text('#!/bin/bash\nexec "$@"\n')
    (bin / "uv").write_text(f'#!/bin/bash\nshift\nexec {sys.executable} "$@"\n')
    for path in bin.iterdir():
        path.chmod(0o755)
    env = os.environ | {"PATH": f"{bin}:{os.environ['PATH']}", "PREFPIPE_DATA": str(home)}
    for task in ("3", "1", "2"):
        array = {"SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_COUNT": "3"}
        subprocess.run(["bash", "-c", script], cwd=ROOT, env=env | array, check=True)
    together = f"{sys.executable} preprocess_dataset.py {options} --shard all/3"
    subprocess.run(together.split(), cwd=ROOT, env=env, check=True)
    assert len((home / "items/train.jsonl").read_text().splitlines()) == 60
