"""Training on several ranks against training on one: the matrix, on CPUs and over gloo.

    python -m tests.distributed                  # all of it, each case a launcher of its own: minutes
    python -m tests.distributed dpo fsdp2        # those whose name has these words
    DS_ACCELERATOR=cpu python -m tests.distributed zero3    # with DeepSpeed, which is no dependency

A case trains a tiny model with two ranks, and its curve, weights and folder must be those of one
process. `python -m tests.distributed run FOLDER CASE ...` is what the launcher starts.
"""

import contextlib
import csv
import importlib.util
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file

from prefpipe import files
from prefpipe.rows import JudgmentPair
from tests.preference_data import judgment_pair, rows, write_jsonl
from tests.training_models import qwen2, tokenizer

ROOT = Path(__file__).parent.parent
STAGES = {
    "dpo": "dpo_training",
    "reward": "train_reward_model",
    "pairwise": "train_pairwise_model",
}
TOLERANCE = 2e-5
"""Of each number of a curve, and of each weight: sums in another order, through 12 steps of Adam."""


_OF_TOKENS = re.compile("num_tokens|token_accuracy|logits/|entropy")
"""Numbers that depend on how a step is cut, into three parts where one process has two: a prompt whose
pairs two ranks share is run by both, and TRL's means over the tokens of a batch are weighed by pairs."""


class Case(NamedTuple):
    stage: str
    method: str = "full"
    backend: str = "ddp"
    ranks: int = 2
    then: int = 0
    """Where it is killed in step 6, the number of ranks that go on; 0: it is not killed."""

    def __str__(self) -> str:
        name = f"{self.stage}-{self.method}-{self.backend}-{self.ranks}"
        return f"{name}-{self.then}" if self.then else name


def case(name: str) -> Case:
    stage, method, backend, *ranks = name.split("-")
    return Case(stage, method, backend, *map(int, ranks))


CASES = [
    *(
        Case(stage, method, backend)
        for stage in STAGES
        for method in ("full", "lora")
        for backend in ("ddp", "fsdp2")
    ),
    Case("dpo", backend="zero3"),
    Case("dpo", "lora", backend="zero3"),
    Case("reward", backend="zero3"),
    Case("pairwise", "lora", backend="zero3"),
    Case("reward", backend="zero3", then=2),
    Case("dpo", ranks=3),
    Case("reward", backend="fsdp2", ranks=3),
    Case("pairwise", then=2),
    Case("dpo", then=3),
    Case("reward", method="lora", then=1),
    Case("reward", ranks=1, then=2),
    Case("dpo", backend="fsdp2", then=2),
    Case("pairwise", method="lora", backend="fsdp2", then=3),
    Case("reward", backend="fsdp2", ranks=3, then=2),
]


def make_data(folder: Path) -> None:
    """Pairs in groups of one to four, so that no cut by their number alone falls between groups; 45 of
    them, so that the last step of an epoch has one pair more than there are ranks to give it to."""
    rng = random.Random(0)
    for split, items in (("train", 20), ("validation", 5)):
        made = [judgment_pair(f"{split}{i}", k, split, rng) for i in range(items) for k in range(1 + i % 4)]  # fmt: skip
        files.write_rows(folder / "pairs" / f"{split}.parquet", made[:45], JudgmentPair)
    ties = [{**row, "tie": k % 7 == 0, "margin": k % 3 / 2} for k, row in enumerate(rows(45))]
    write_jsonl(folder / "train.jsonl", ties)
    write_jsonl(folder / "validation.jsonl", rows(13, "v"))
    tok = tokenizer()
    for name, tied in (("tied", True), ("untied", False)):
        model = qwen2(vocabulary=len(tok), initializer_range=0.05, tie_word_embeddings=tied)
        model.save_pretrained(folder / name)
        tok.save_pretrained(folder / name)


def settings(folder: Path, of: Case, output: Path, **changes: Any) -> dict[str, Any]:
    """Of the stage; 12 steps over 2 epochs, with a checkpoint and an evaluation after each 4."""
    given: dict[str, Any] = {
        "input": folder / "pairs",
        "reference_cache": output.with_name(f"{output.name}-cache"),
    }
    if of.stage != "dpo":
        given = {
            "input": folder / "train.jsonl",
            "validation_input": folder / "validation.jsonl",
            "ties": "half",
        }
    if of.method == "lora":
        given |= {"lora_r": 4, "merge_adapter": of.stage == "pairwise"}
    return {
        **given,
        "output": output,
        "model": folder / ("untied" if of.stage == "pairwise" else "tied"),
        "method": of.method,
        "batch_pairs": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 3e-3,
        "epochs": 2.0,
        "save_steps": 4,
        "checkpoint": "best",
        **changes,
    }


def options(given: dict[str, Any]) -> list[str]:
    """The settings as they are typed."""
    typed = []
    for name, value in given.items():
        name = name.replace("_", "-")
        if isinstance(value, bool):
            typed.append(f"--{name}" if value else f"--no-{name}")
        else:
            typed += [f"--{name}", str(value)]
    return typed


def told_by(configuration: str) -> dict[str, str]:
    """What `accelerate launch --config_file` adds to the environment of its processes."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    path = str(ROOT / "configs" / configuration)
    arguments = launch_command_parser().parse_args(["--config_file", path, "script.py"])
    validated, defaults, _ = _validate_launch_command(arguments)
    if validated.use_deepspeed:
        fields: Any = defaults
        validated.deepspeed_fields_from_accelerate_config = ",".join(fields.deepspeed_config)
        told = prepare_deepspeed_cmd_env(validated)[1]
    else:
        told = prepare_multi_gpu_env(validated)
    return {name: value for name, value in told.items() if os.environ.get(name) != value}


@contextlib.contextmanager
def sharded_on_cpus(configuration: str) -> Iterator[None]:
    """accelerate shards only on accelerators; over gloo FSDP2 itself runs on CPUs just as well, and so
    does DeepSpeed."""
    import torch.distributed as dist
    from accelerate import state

    def backend(self: Any, *_: Any, **__: Any) -> tuple[str, Any]:
        if not dist.is_initialized():
            dist.init_process_group("gloo")
        kind = state.DistributedType
        return "gloo", kind.DEEPSPEED if "zero3" in configuration else kind.MULTI_GPU

    as_it_was = state.PartialState._prepare_backend
    state.PartialState._prepare_backend = backend  # pyright: ignore[reportAttributeAccessIssue]
    told = told_by(configuration) | {"ACCELERATE_TORCH_DEVICE": "cpu"}
    before = dict(os.environ)
    os.environ |= told
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before
        state.PartialState._prepare_backend = as_it_was


def run_stage(of: Case, given: dict[str, Any]) -> None:
    """In this process, as one rank of several, or as the only one."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # of the case before
    stage = importlib.import_module(STAGES[of.stage])
    alone = of.backend == "ddp"
    with contextlib.nullcontext() if alone else sharded_on_cpus(f"{of.backend}.yaml"):
        sys.argv = [f"{STAGES[of.stage]}.py", *options(given)]
        try:
            stage.Settings.run(stage.main)
        except SystemExit as end:
            if end.code:
                raise


def kill_in_step(step: int, ranks: Sequence[str]) -> None:
    """Let these ranks be killed with SIGKILL at the end of that step, as by the kernel for memory."""
    from prefpipe.training.checkpoints import TrainingCallback

    as_it_was = TrainingCallback.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == step and os.environ["RANK"] in ranks:
            os.kill(os.getpid(), signal.SIGKILL)
        as_it_was(self, args, state, control, **kwargs)

    TrainingCallback.on_step_end = on_step_end


def torchrun(
    *arguments: str, ranks: int = 2, env: Mapping[str, str] = os.environ, **more: Any
) -> subprocess.Popen[str]:
    """The launcher and its ranks; this file's cases, or a script."""
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": ROOT}
    own = {**env, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TORCH_CPP_LOG_LEVEL": "ERROR"}  # fmt: skip
    return subprocess.Popen([sys.executable, *command, *arguments], env=own, **(how | more))


def launch(folder: Path, of: Case, ranks: int, **more: Any) -> tuple[int, str]:
    """A case, to its end: the exit status, and what was said."""
    process = torchrun("-m", "tests.distributed", "run", str(folder), str(of), ranks=ranks, **more)
    said, _ = process.communicate(timeout=600)
    return process.returncode, said


def differences(one: Path, several: Path) -> dict[str, float]:
    """What of the two folders differs by more than the tolerance; names of files that only one has."""
    found = {p.name: 1.0 for p in {*one.iterdir()} | {*several.iterdir()} if (one / p.name).exists() != (several / p.name).exists()}  # fmt: skip
    curves = [list(csv.DictReader(open(f / "loss_curve.csv"))) for f in (one, several)]  # noqa: SIM115
    assert [row.keys() for row in curves[0]] == [row.keys() for row in curves[1]]
    for a, b in zip(*curves, strict=True):
        for name in a:
            assert bool(a[name]) == bool(b[name]), name
            error = abs(float(a[name] or 0) - float(b[name] or 0)) / max(1.0, abs(float(a[name] or 0)))  # fmt: skip
            found[name] = max(found.get(name, 0.0), error)
    for path in one.glob("*.safetensors"):
        a, b = load_file(path), load_file(several / path.name)
        assert a.keys() == b.keys() and all(a[k].dtype == b[k].dtype for k in a)
        found[path.name] = max(float((a[k] - b[k]).abs().max()) for k in a)
    return {k: e for k, e in found.items() if e > (0.02 if _OF_TOKENS.search(k) else TOLERANCE)}


def main(arguments: Sequence[str]) -> None:
    if arguments[:1] == ["run"]:
        from accelerate import PartialState

        # a second group in one process would meet what the first one left in the launcher's store
        PartialState.destroy_process_group = lambda *_: None  # pyright: ignore[reportAttributeAccessIssue]
        folder = Path(arguments[1])
        for name in arguments[2:]:
            of = case(name)
            if of.then and "KILL" in os.environ:
                kill_in_step(6, os.environ["KILL"].split(","))
            run_stage(of, settings(folder, of, folder / name))
        return
    import tempfile

    failed = 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_data(folder)
        can = {"ddp", "fsdp2", *(["zero3"] if importlib.util.find_spec("deepspeed") else [])}
        cases = [c for c in CASES if c.backend in can]
        for of in [c for c in cases if all(word in str(c) for word in arguments)]:
            one = of._replace(backend="ddp", ranks=1, then=0)
            began = time.monotonic()
            if not (folder / str(one)).exists():
                command = [sys.executable, "-m", "tests.distributed", "run", str(folder), str(one)]
                subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
            if of.then:
                killed = {**os.environ, "KILL": "0,1,2" if of.method == "full" else "0"}
                code, said = launch(folder, of, of.ranks, env=killed)
                assert code and not (folder / str(of) / "README.md").exists(), said
            code, said = launch(folder, of, of.then or of.ranks)
            if code:
                print(f"{of}: failed\n{said[-3000:]}")
                failed += 1
                continue
            assert not of.then or "going on from step 4 of 12" in said, said
            found = differences(folder / str(one), folder / str(of))
            failed += bool(found)
            print(f"{of}: {found or 'equal'} ({time.monotonic() - began:.0f} s)", flush=True)
    raise SystemExit(f"{failed} cases failed" if failed else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
