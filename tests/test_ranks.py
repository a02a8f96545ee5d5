"""prefpipe.training.ranks: two processes train as one does, one of them speaks, and a lost one ends all.

The whole matrix, with more ranks and kills, is `python -m tests.distributed`; here are a few of its
cases in one launch, since each process takes seconds to import torch.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from prefpipe.files import Run, StageFacts
from prefpipe.rows import Preference
from prefpipe.training import ranks
from tests import distributed
from tests.distributed import Case, torchrun
from train_reward_model import Settings

CASES = [
    Case("dpo", "lora"),
    Case("pairwise", "full"),
    Case("dpo", "full", "fsdp2"),
    Case("reward", "lora", "fsdp2"),
]
KILLED = Case("reward", "full", "ddp", then=1)


def alone(case: Case) -> Case:
    return case._replace(backend="ddp", ranks=1, then=0)


class Launched(NamedTuple):
    folder: Path
    code: int
    said: str


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> Launched:
    """Two ranks train all cases, and rank 1 is killed in the last; one process trains them, too."""
    folder = tmp_path_factory.mktemp("ranks")
    distributed.make_data(folder)
    names = [str(case) for case in [*CASES, KILLED]]
    run = ("-m", "tests.distributed", "run", str(folder))
    killed = torchrun(*run, *names, env={**os.environ, "KILL": "1"})
    said, _ = killed.communicate(timeout=400)
    assert not (folder / str(KILLED) / "README.md").exists(), said
    by_itself = [*{str(alone(case)) for case in [*CASES, KILLED]}, str(KILLED)]
    one = subprocess.run(
        [sys.executable, *run, *by_itself],
        cwd=distributed.ROOT, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert one.returncode == 0 and "going on from step 4 of 12" in one.stderr, one.stderr
    return Launched(folder, killed.returncode, said)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_ranks_give_the_curve_the_weights_and_the_folder_of_one_process(launched, case):
    folder = launched.folder
    assert not distributed.differences(folder / str(alone(case)), folder / str(case))


def test_one_process_ends_what_two_began(launched):
    folder = launched.folder
    assert not distributed.differences(folder / str(alone(KILLED)), folder / str(KILLED))


def test_a_killed_rank_ends_the_run_with_one_sentence(launched):
    assert launched.code != 0
    sentences = [line for line in launched.said.split("\n") if ranks.GONE in line]
    assert sentences == [f"train_reward_model: {ranks.GONE}"]
    assert len(sentences[0]) < 300


def test_each_run_is_told_of_once(launched):
    for case in CASES:
        closing = [line for line in launched.said.split("\n") if f"{case}: " in line]
        assert len(closing) == 1 and "pairs read" in closing[0]


def test_the_weights_that_ranks_share_are_checkpoints_in_pieces(launched):
    folder = launched.folder / str(CASES[2]) / "checkpoints" / "checkpoint-12"
    assert len([*folder.glob("pytorch_model_fsdp_0/*.distcp")]) == 2
    assert not [*folder.glob("*.safetensors")]


# ---- without a launcher: the environment says that there is one


@pytest.fixture
def as_rank(monkeypatch):
    def given(rank: int, count: int = 2) -> None:
        for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count}.items():
            monkeypatch.setenv(name, str(value))

    monkeypatch.setattr(ranks, "_PATIENCE", 0.0)
    return given


def test_another_rank_is_silent_but_for_what_ended_it(as_rank, capsys):
    as_rank(1)
    with pytest.raises(SystemExit) as end, ranks.one_voice("dpo_training"):
        print("numbers")
        print("going on", file=sys.stderr)
        raise SystemExit("dpo_training: step 3: the loss is nan")
    assert end.value.code == "dpo_training: step 3: the loss is nan (rank 1)"
    assert capsys.readouterr() == ("", "")


def test_what_ends_well_is_not_told_by_another_rank(as_rank, capsys):
    as_rank(1)
    with pytest.raises(SystemExit) as end, ranks.one_voice("dpo_training"):
        raise SystemExit(0)
    assert end.value.code == 0 and capsys.readouterr() == ("", "")


def test_without_a_launcher_there_is_one_rank(monkeypatch):
    """RANK by itself is anybody's variable."""
    monkeypatch.setenv("RANK", "3")
    assert ranks.count() == 1 and not ranks.is_other() and ranks.agree("x") == "x"


def test_another_rank_leaves_the_output_to_the_main_one(tmp_path):
    def run(is_other_rank: bool) -> Run:
        facts = StageFacts("train", {}, {}, None, False, False, is_other_rank=is_other_rank)
        (tmp_path / "in.jsonl").touch()
        inputs = [tmp_path / "in.jsonl"]
        return Run(facts, inputs=inputs, outputs={tmp_path / "out.jsonl": Preference})

    main = run(is_other_rank=False)
    here = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit, match="another run is writing it"):
        run(is_other_rank=False)
    with pytest.raises(SystemExit), run(is_other_rank=True) as other:
        other.read_count += 1
        other.keep((tmp_path / "out.jsonl", Preference(id="a", prompt="", chosen="", rejected="b")))
        raise SystemExit(0)
    assert sorted(tmp_path.iterdir()) == here
    with pytest.raises(SystemExit), main:
        raise SystemExit(0)


def test_deepspeed_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr(ranks, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="deepspeed is not installed"):
        ranks.meet()


def test_4_bit_weights_are_not_shared(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    settings = Settings(method="lora", output=tmp_path, model="x")
    assert settings.load_options()["load_in_4bit"] is False
    with pytest.raises(SystemExit, match="4-bit weights are not shared"):
        settings.model_copy(update={"load_in_4bit": True}).check()


@pytest.mark.parametrize(
    ("words", "is_lost"),
    [
        ("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:3412", True),
        ("NCCL communicator was aborted on rank 0", True),
        ("CUDA out of memory", False),
    ],
)
def test_an_error_of_a_collective_operation_means_a_lost_rank(as_rank, words, is_lost):
    assert not ranks.lost(RuntimeError(words))  # there is none but this
    as_rank(0)
    assert ranks.lost(RuntimeError(words)) is is_lost


def test_a_lost_rank_is_told_of_once_whoever_notices_first(as_rank, capsys, monkeypatch):
    as_rank(0)
    monkeypatch.setattr(ranks, "_told", set())
    sentence = f"dpo_training: {ranks.GONE}"
    with pytest.raises(SystemExit) as end, ranks.tells_of_lost_ranks("dpo_training"):
        raise RuntimeError("NCCL communicator was aborted on rank 0")
    ranks._tell(sentence)  # the launcher's signal, behind it
    assert end.value.code == 1
    assert capsys.readouterr().err == f"{sentence}\n"
