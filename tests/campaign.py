"""Kills by the hundred: each stage is killed at random, started again to its end, and compared with a whole run.

    python -m tests.campaign --short --minutes 10          # the stages that need no chain before
    python -m tests.campaign --minutes 60                  # all stages in turn, for so long
    python -m tests.campaign --stages dpo_training --chains 40 --seed 7
    python -m tests.campaign --table                       # docs/reliability.md of the results

A chain is up to twelve kills of one stage and a last run. The process group is killed

    time   at a moment drawn over the stage's time: SIGKILL, SIGTERM or SIGINT
    ops    SIGKILL at the n-th file operation in the data folder, half of them among the last 14: the
           renames at the end, the rotation of checkpoints
    watch  SIGKILL on sight of a temporary file or a checkpoint that is being written

and every third chain of a training also damages a file of the newest checkpoint. A chain may begin
with a finished run of other settings that is overwritten. After each kill every output that is there
is a whole one. Stages that pay ask a loopback server of which a third of the replies fail; no more
replies arrive than a whole run's and what was in flight at each kill (of the Batch API, rows alone
are compared). Runs are forked from a process that has imported
the libraries, so a chain takes seconds. The data folder is made by tests.chains the first time.
"""

import argparse
import hashlib
import json
import multiprocessing
import multiprocessing.forkserver
import os
import pkgutil
import random
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from embedded.server import BatchFault, Fault, Server, last_message
from embedded.server.canned_answers import translate

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "campaign.json"
PAGE = ROOT / "docs" / "reliability.md"
LIBRARIES = [
    "torch",
    "transformers",
    "trl",
    "datasets",
    "peft",
    "faiss",
    "pyarrow.parquet",
    "sentence_transformers",
    "aiohttp",
    "openai",
    "pandas",
    "matplotlib.figure",
    "scipy.stats",
    "sklearn.feature_extraction.text",
    "transformers.models.qwen2.modeling_qwen2",
    "trl.trainer.dpo_trainer",
    "trl.trainer.reward_trainer",
]
ITEMS = "pairwise_critic_inference2_get_answer/Sky"
SMALL = ["--limit", "24"]
TRAINING = ["--limit", "64", "--save-steps", "2", "--epochs", "2"]
IN_FLIGHT = 8
TEMPORARY = re.compile(r"\.tmp|saving|checkpoint-\d+")

Answer = Callable[[dict[str, Any], int], str]


def number_of(body: dict[str, Any]) -> int:
    return int(hashlib.sha256(last_message(body).encode()).hexdigest(), 16)


def rate(body: dict[str, Any], sample: int) -> str:
    count = len(re.findall(r"^\[Text \d+\]", last_message(body), re.MULTILINE)) or 2
    return "\n\n".join(
        f"Text {k}\nReason: r\nRating: {1 + (number_of(body) >> k) % 5}"
        for k in range(1, count + 1)
    )


def judge(body: dict[str, Any], sample: int) -> str:
    number = number_of(body)
    return json.dumps({"reason": f"because {number % 997}", "better_answer": 1 + number % 2})


def echo(body: dict[str, Any], sample: int) -> str:
    return f"{last_message(body)[-40:]} {sample}"


@dataclass(frozen=True)
class Killed:
    """A stage as the campaign runs it."""

    command: list[str]
    outputs: list[str]
    """Under the data folder; taken away before, compared after."""
    answer: Answer | None = None
    """Of the server; None: no server."""
    is_training: bool = False


def _served(script: str, outputs: list[str], answer: Answer, *options: str) -> Killed:
    retries = ["--max-retries", "30", "--requests-in-flight", str(IN_FLIGHT)]
    return Killed([script, *options, *retries, "--engine", "server"], outputs, answer)


def _batched(script: str, outputs: list[str], answer: Answer, *options: str) -> Killed:
    polls = ["--poll-seconds", "0.05", "--batch-requests", "20", "--batch-tries", "20"]
    retries = ["--max-retries", "30", "--engine", "batch"]
    return Killed([script, *options, *polls, *retries], [*outputs, "batches"], answer)


STAGES = {
    "preprocess_dataset": Killed(["preprocess_dataset.py"], [ITEMS]),
    "translation": Killed(["translation.py", "--offline"], [f"{ITEMS}_english"]),
    "inference_best_of_n": Killed(["inference_best_of_n.py", *SMALL, "--n", "3"], ["judgments"]),
    "inference_all": Killed(["inference_all.py", *SMALL], ["judgments"]),
    "post_processing": Killed(["post_processing.py"], ["judgments/clean"]),
    "construct_dpo_dataset": Killed(["construct_dpo_dataset.py"], ["dpo"]),
    "dpo_training": Killed(["dpo_training.py", *TRAINING], ["models/judge"], is_training=True),
    "dpo_training_lora": Killed(
        ["dpo_training.py", *TRAINING, "--method", "lora", "--checkpoint", "best"],
        ["models/judge"],
        is_training=True,
    ),
    "train_reward_model": Killed(
        ["train_reward_model.py", *TRAINING], ["models/reward"], is_training=True
    ),
    "train_pairwise_model": Killed(
        ["train_pairwise_model.py", *TRAINING], ["models/pairwise"], is_training=True
    ),
    "accuracy": Killed(["accuracy.py", "--limit", "12"], ["accuracy"]),
    "rank_by_reward": Killed(["rank_responses.py", "--limit", "40"], ["ranking"]),
    "rank_by_pairwise": Killed(
        ["rank_responses.py", "--by", "pairwise", "--limit", "12"], ["ranking"]
    ),
    "rank_by_judge": Killed(["rank_responses.py", "--by", "judge", "--limit", "6"], ["ranking"]),
    "build_vector_store": Killed(["build_vector_store.py", "--limit", "300"], ["rag/store"]),
    "build_pairwise_prefs": Killed(
        ["build_pairwise_prefs.py", *SMALL, "--max-new-tokens", "24", "--min-margin", "0.001"],
        ["rag/pairwise_prefs*"],
    ),
    "create_annotation_mix": Killed(
        ["create_annotation_mix.py"],
        ["synthetic/mix*", "synthetic/annotation_prompts*", "synthetic/create_annotation_mix*"],
    ),
    "parse_preferences": Killed(["parse_preferences.py"], ["synthetic/preferences*"]),
    "annotate_server": _served(
        "annotate_preferences.py", ["synthetic/annotations*"], rate, "--model", "m"
    ),
    "annotate_batch": _batched(
        "annotate_preferences.py", ["synthetic/annotations*"], rate, "--model", "m"
    ),
    "translation_server": _served(
        "translation.py", [f"{ITEMS}_english"], translate, "--model", "m", "--tries", "9"
    ),
    "best_of_n_server": _served(
        "inference_best_of_n.py", ["judgments"], judge, "--model", "m", "--n", "4"
    ),
    "best_of_n_batch": _batched(
        "inference_best_of_n.py", ["judgments"], judge, "--model", "m", "--n", "4", *SMALL
    ),
    "inference_all_server": _served(
        "inference_all.py", ["judgments"], judge, "--model", "m", *SMALL
    ),
    "rank_judge_server": _served(
        "rank_responses.py", ["ranking"], judge, "--by", "judge", "--judge", "m", "--limit", "20"
    ),
    "generate_server": _served(
        "generate_responses.py", ["synthetic/responses"], echo, "--models",
        '[{"name":"a","model":"m"},{"name":"b","model":"m"}]',
    ),
}  # fmt: skip


SHORT = {
    "preprocess_dataset", "translation", "translation_server", "best_of_n_server", "best_of_n_batch",
    "inference_all_server", "generate_server", "build_vector_store", "train_reward_model",
    "train_pairwise_model",
}  # fmt: skip
"""Stages whose inputs are made in seconds."""
BASE = [
    ["preprocess_dataset.py", *SMALL],
    ["translation.py", "--offline"],
    ["-m", "embedded.stdlib_documents"],
    ["-m", "embedded.synthetic", "prompts", "--questions", "40"],
]
"""What makes these inputs."""


# ---- one run -------------------------------------------------------------------------------------


def _run_stage(
    command: list[str], data: str, env: dict[str, str], kill_at: int, folder: str, stop_at: str
) -> None:
    """In a forked process: the stage as a script; counts the file operations below data."""
    os.setsid()
    home = Path(data).parent
    os.chdir(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(home / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    os.environ.update(env, PREFPIPE_DATA=data)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path[0] = str(ROOT)
    sys.argv = [str(ROOT / command[0]), *command[1:]]
    names = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree")
    count = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        writes = event == "open" and isinstance(args[2], int) and args[2] & 0o103
        if not (writes or event in names) or not isinstance(args[0], str | bytes | os.PathLike):
            return
        if os.path.abspath(os.fsdecode(args[0])).startswith(data):
            count += 1
            if count == kill_at:
                os.killpg(0, signal.SIGKILL)

    sys.addaudithook(hook)
    if stop_at:
        place, _, name = stop_at.rpartition(".")
        setattr(pkgutil.resolve_name(place), name, lambda *_, **__: os._exit(0))
    code = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    (home / "operations").write_text(str(count))
    (home / "peak").write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
    (home / "exit_code").write_text(str(code))
    os._exit(code)


class Runner:
    """Starts stages in processes forked from one that has imported the libraries, and what else is named."""

    def __init__(self, *preloaded: str, libraries: Sequence[str] = LIBRARIES) -> None:
        os.environ |= {
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
        }
        # A process has one forkserver. Where another runner's is up, the stages that it imported have
        # its data folder: it ends here, and starts anew with what this runner asks for.
        forkserver: Any = multiprocessing.forkserver
        forkserver._forkserver._stop()
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([*libraries, *preloaded])
        first: Any = self._context.Process(target=int)  # the libraries are imported for it
        first.start()
        first.join()

    def start(
        self,
        command: list[str],
        data: Path,
        env: dict[str, str],
        *,
        kill_at: int = 0,
        folder: Path = ROOT,
        stop_at: str = "",
    ) -> Any:
        """The command as a process with that data folder. kill_at: the file operation at which it is
        killed; folder: where it runs; stop_at: a function of prefpipe at which it ends, as if killed."""
        options = (command, str(data), env, kill_at, str(folder), stop_at)
        process = self._context.Process(target=_run_stage, args=options, daemon=True)
        process.start()
        return process


def kill(process: Any, number: int) -> None:
    """Signal the stage's process group; before it has one, the process."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def said(home: Path) -> str:
    """What the last run printed; nothing where it was killed before it could."""
    paths = [home / name for name in ("stdout", "stderr")]
    return "".join(path.read_text(errors="replace") for path in paths if path.exists())


def snapshot(stage: Killed, data: Path) -> dict[str, str]:
    """Name -> hash of each output; of a meta file without times, and what a server was asked."""
    found = {}
    for path in (p for out in stage.outputs for p in sorted(data.glob(out))):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            name = str(file.relative_to(data))
            is_hidden = any(part.startswith(".") for part in file.relative_to(data).parts)
            if file.is_dir() or is_hidden or "checkpoints/" in name or name.startswith("batches"):
                continue
            content = file.read_bytes()
            if name.endswith(".meta.json"):
                meta = json.loads(content)
                kept = {k: meta[k] for k in ("stage", "counts", "fingerprint", "closing_line")}
                content = json.dumps(kept, sort_keys=True).encode()
            found[name] = hashlib.sha256(content).hexdigest()[:16]
    return found


# ---- servers that fail -----------------------------------------------------------------------------


class Faults:
    """Random faults of a third of the replies, half of the batches; what was delivered."""

    REPLIES = [
        Fault(status=429, retry_after="0.02"), Fault(status=429), Fault(status=500), Fault(status=408),
        Fault(status=503, body=b"<html>busy</html>", content_type="text/html"), Fault(cut=True),
        Fault(status=500, cut=True), Fault(raw=b""), Fault(raw=b"\x00\xff garbage"),
        Fault(raw=b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"),
    ]  # fmt: skip
    BATCHES = [
        BatchFault(end="expired", answered=0.5), BatchFault(end="cancelled", answered=0.3),
        BatchFault(answered=0.6), BatchFault(duplicate=True, shuffle=True, garbage=5),
        BatchFault(end="expired", answered=0.0),
    ]  # fmt: skip

    def __init__(self, seed: int, share: float = 0.33) -> None:
        self._rng, self.share = random.Random(seed), share
        self.count = 0
        self.delivered: Counter[str] = Counter()

    def of_reply(self, call: Any) -> Fault | None:
        if self._rng.random() < self.share:
            self.count += 1
            return self._rng.choice(self.REPLIES)
        self.delivered[last_message(call.body)] += 1
        return None

    def of_batch(self, _: Any) -> BatchFault | None:
        if self._rng.random() < 0.5:
            self.count += 1
            return self._rng.choice(self.BATCHES)
        return None

    def of_api(self, request: Any, number: int) -> Fault | None:
        if self._rng.random() < 0.2:
            self.count += 1
            return self._rng.choice([Fault(status=500), Fault(status=429), Fault(cut=True)])
        return None


@contextmanager
def serving(stage: Killed, faults: Faults | None) -> Iterator[dict[str, str]]:
    """The environment in which the stage finds its server, if it has one."""
    if stage.answer is None:
        yield {}
        return
    options: dict[str, Any] = {}
    if faults and "batch" in stage.command and faults.share:
        options = {"batch_fault": faults.of_batch, "api_fault": faults.of_api}
    elif faults and "batch" not in stage.command:
        options = {"fault": faults.of_reply}
    with Server(stage.answer, **options) as server:
        yield {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "sk-campaign"}


# ---- chains ----------------------------------------------------------------------------------------


@dataclass
class Totals:
    """Of one stage."""

    kills: dict[str, int] = field(default_factory=Counter[str])
    chains: int = 0
    equal: int = 0
    damages: int = 0
    faults: int = 0
    extra: int = 0
    """Replies that arrived more than once: in flight when the client was killed."""
    problems: list[str] = field(default_factory=list)


_UNEXPECTED = ": unexpected "
"""How a stage names an error that nobody foresaw (Script.run)."""


class Campaign:
    """Chains of one stage in one folder, so that paths in the outputs are the same."""

    def __init__(self, name: str, base: Path, work: Path, runner: Runner) -> None:
        self.name, self.stage, self.runner = name, STAGES[name], runner
        self.home, self.base = work / name, base
        self.data = self.home / "data"
        self.totals = Totals()
        self.delivered: Counter[str] = Counter()
        """Replies to a whole run, by prompt."""
        self.whole, self.seconds, self.operations = self._whole([])

    def _prepare(self) -> None:
        shutil.rmtree(self.home, ignore_errors=True)
        skip = shutil.ignore_patterns(".*", "checkpoints", "cache")
        shutil.copytree(self.base, self.data, ignore=skip)
        for path in (p for out in self.stage.outputs for p in self.data.glob(out)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _whole(self, extra: list[str]) -> tuple[dict[str, str], float, int]:
        self._prepare()
        started = time.monotonic()
        none_fail = Faults(0, share=0.0)
        with serving(self.stage, none_fail) as env:
            process = self.runner.start([*self.stage.command, *extra], self.data, env)
            process.join()
        self.delivered |= none_fail.delivered
        if process.exitcode:
            raise SystemExit(f"{self.name}: exit code {process.exitcode}\n{said(self.home)}")
        operations = int((self.home / "operations").read_text())
        return snapshot(self.stage, self.data), time.monotonic() - started, operations

    def chain(self, seed: int) -> None:
        rng = random.Random(f"{self.name} {seed}")
        overwrites = seed % 4 == 3
        if overwrites:  # a finished run of other settings is replaced
            self._whole(["--seed", "5"])
        else:
            self._prepare()
        extra = ["--overwrite"] if overwrites else []
        faults = Faults(seed) if self.stage.answer else None
        problems, kills = [], 0
        with serving(self.stage, faults) as env:
            for _ in range(rng.choice([3, 5, 8, 12])):
                # what is left to do is less each time: so is the moment of the next kill
                if not self._killed_run(rng, extra, env, problems, overwrites, 1 / (1 + kills)):
                    extra = []  # it is finished: to overwrite it again would ask all again
                    break
                kills += 1
                # with other outputs still in place the option is needed again
                extra = ["--overwrite"] if overwrites and self._is_of_other_settings() else []
                if self.stage.is_training and seed % 3 == 2:
                    self._damage(rng)
            code = self._last_run(extra, env)
        self.totals.chains += 1
        if faults:
            self.totals.faults += faults.count
        if faults and not overwrites:  # which asks anew by its name, each time that it is given
            extra_replies = (faults.delivered - self.delivered).total()
            self.totals.extra += extra_replies
            if extra_replies > IN_FLIGHT * kills:
                problems.append(f"{extra_replies} replies more than a whole run's, {kills} kills")
        if code or _UNEXPECTED in said(self.home):
            problems.append(f"exit code {code}: {said(self.home)[-300:]}")
        elif differing := self._differing(snapshot(self.stage, self.data)):
            problems.append(f"not the same: {', '.join(differing[:4])}")
        self.totals.equal += not problems
        self.totals.problems += [f"seed {seed}: {problem}" for problem in problems]

    def _is_of_other_settings(self) -> bool:
        """Whether the finished run that is to be overwritten still stands there, whole."""
        return any(
            name.endswith(".meta.json") and value != self.whole.get(name)
            for name, value in snapshot(self.stage, self.data).items()
        )

    def _last_run(self, extra: list[str], env: dict[str, str]) -> int:
        process = self.runner.start([*self.stage.command, *extra], self.data, env)
        process.join(900)
        if process.exitcode is None:
            kill(process, signal.SIGKILL)
            process.join()
        return -1 if process.exitcode is None else process.exitcode

    def _killed_run(
        self, rng: random.Random, extra: list[str], env: dict[str, str], problems: list[str], other: bool, left: float
    ) -> bool:  # fmt: skip
        """Start, kill; False where it came to its end before."""
        mode = rng.choice(["time", "time", "ops", "ops", "watch"])
        kill_at = 0
        if mode == "ops":
            last = rng.random() < 0.5
            operations = max(1, int(left * self.operations))
            kill_at = max(1, operations - rng.randrange(14) if last else 1 + rng.randrange(operations))  # fmt: skip
        process = self.runner.start([*self.stage.command, *extra], self.data, env, kill_at=kill_at)
        number = signal.SIGKILL
        if mode == "time":
            number = rng.choices([signal.SIGKILL, signal.SIGTERM, signal.SIGINT], [6, 2, 2])[0]
            process.join(rng.uniform(0.05, left * self.seconds))
        elif mode == "watch":
            self._wait_for_a_temporary_file(process, rng.randrange(1, 12))
        else:
            process.join(900)
        if process.exitcode is None:
            kill(process, number)
            process.join()
        if process.exitcode == 0:
            return False
        self.totals.kills[number.name if mode == "time" else mode] += 1
        text = said(self.home)
        if _UNEXPECTED in text or process.exitcode not in (-number, 130):
            problems.append(f"exit code {process.exitcode} before {mode}: {text[-300:]}")
        if not other and (wrong := self._differing(snapshot(self.stage, self.data), there=True)):
            problems.append(f"half an output after {mode}: {', '.join(wrong[:4])}")
        return True

    def _wait_for_a_temporary_file(self, process: Any, sights: int) -> None:
        seen: set[str] = set()
        end = time.monotonic() + 900
        while process.is_alive() and len(seen) < sights and time.monotonic() < end:
            for folder, folders, files in os.walk(self.data):
                seen |= {f"{folder}/{n}" for n in (*folders, *files) if TEMPORARY.search(n)}
            time.sleep(0.002)

    def _damage(self, rng: random.Random) -> None:
        """A file of the newest checkpoint cut, emptied or gone."""
        checkpoints = sorted(
            (p for out in self.stage.outputs for p in (self.data / out).glob("checkpoints/checkpoint-*")),
            key=lambda p: int(p.name.rpartition("-")[2]),
        )  # fmt: skip
        files = sorted(p for p in checkpoints[-1].iterdir() if p.is_file()) if checkpoints else []
        # with a single checkpoint there is no older one to go on from
        if len(checkpoints) < 2 or not files:
            return
        file, how = rng.choice(files), rng.randrange(3)
        if how == 0:
            file.unlink()
        else:
            file.write_bytes(b"" if how == 1 else file.read_bytes()[: file.stat().st_size // 2])
        self.totals.damages += 1

    def _differing(self, found: dict[str, str], *, there: bool = False) -> list[str]:
        """Names whose content is not the whole run's; there: only of those that are there."""
        names = {*found} if there else {*self.whole, *found}
        if there:  # a training's curve grows while it trains
            names = {name for name in names if not name.endswith("loss_curve.csv")}
        return [name for name in names if found.get(name) != self.whole.get(name)]


# ---- results ---------------------------------------------------------------------------------------


def table(results: dict[str, Any]) -> str:
    header = "| stage | kills | KILL | TERM | INT | file operation | temporary file | damaged checkpoints | faults | chains | equal |"
    lines = [header, "|---" * header.count("| ") + "|"]
    columns = ("SIGKILL", "SIGTERM", "SIGINT", "ops", "watch")
    of_all = [Counter[str](), 0, 0, 0, 0]
    for name, one in results["stages"].items():
        counts = Counter(one["kills"])
        row = [counts.total(), *(counts[c] for c in columns), one["damages"], one["faults"], one["chains"], one["equal"]]  # fmt: skip
        lines.append("| " + " | ".join(map(str, [name, *row])) + " |")
        of_all[0] += counts
        of_all[1:] = [a + b for a, b in zip(of_all[1:], row[-4:], strict=True)]
    total = [of_all[0].total(), *(of_all[0][c] for c in columns), *of_all[1:]]
    lines.append("| " + " | ".join(map(str, ["all", *total])) + " |")
    return "\n".join(lines)


def make_page(maker: str, made: str) -> None:
    """docs/reliability.md with that between the marks of the module that made it."""
    begin, end = f"<!-- made by {maker} -->\n", f"<!-- end of {maker} -->"
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    _, _, tail = rest.partition(end)
    PAGE.write_text(f"{head}{begin}{made}{end}{tail}", encoding="utf-8")


def write_page(results: dict[str, Any]) -> None:
    source = f"Commit {results['commit']}, {results['date']}, {results['machine']['processor']}."
    make_page("tests/campaign.py", f"{source}\n\n{table(results)}\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--short", action="store_true", help="the stages that need no chain before")
    parser.add_argument("--minutes", type=float, help="end the first chain behind this")
    parser.add_argument("--chains", type=int, default=1000, help="of each stage, at most")
    parser.add_argument("--seed", type=int, default=0, help="of the first chain")
    parser.add_argument("--work", type=Path, default=Path("/tmp/prefpipe-campaign"))
    parser.add_argument("--results", type=Path, help="JSON to write, or to add to")
    parser.add_argument("--table", action="store_true", help="docs/reliability.md of the results")
    a = parser.parse_args()
    if a.table:
        write_page(json.loads((a.results or RESULTS).read_text()))
        return
    stages = [name for name in a.stages if name in SHORT or not a.short]
    has_earlier = a.results and a.results.exists()
    earlier = json.loads(a.results.read_text())["stages"] if has_earlier else {}
    base = make_base(a.work, a.short)
    runner, begun = Runner(), time.monotonic()
    campaigns: dict[str, Campaign] = {}
    known: dict[str, int] = {}
    broken: dict[str, str] = {}  # stages that do not even run whole, and what they said
    for number in range(a.chains):
        for name in (name for name in stages if name not in broken):
            if a.minutes and time.monotonic() - begun > 60 * a.minutes:
                break
            if name not in campaigns:
                try:
                    campaigns[name] = Campaign(name, base, a.work, runner)
                except SystemExit as error:
                    broken[name] = str(error)
                    print(error, flush=True)
                    continue
            campaigns[name].chain(a.seed + number)
            totals = campaigns[name].totals
            took = f"a whole run {campaigns[name].seconds:.1f} s"
            print(f"{name}: {sum(totals.kills.values())} kills, {totals.equal} of {totals.chains} equal; {took}", flush=True)  # fmt: skip
            print("\n".join(totals.problems[known.get(name, 0) :]), end="", flush=True)
            known[name] = len(totals.problems)
            if a.results:
                save(a.results, campaigns, earlier)
    problems = [
        p for c in campaigns.values() for p in (f"{c.name}, {x}" for x in c.totals.problems)
    ] + [*broken.values()]
    print("\n".join(problems) or "all equal")
    raise SystemExit(bool(problems))


def make_base(work: Path, short: bool) -> Path:
    """The data folder that chains start from; what is there of it stays."""
    base = work / ("short" if short else "base")
    if short:
        commands = [[sys.executable, *command] for command in BASE]
    else:
        commands = [[sys.executable, "-m", "tests.chains", "run", str(base), "--limit", "40"]]
    for command in commands:
        environment = os.environ | {"PREFPIPE_DATA": str(base.resolve())}
        subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    return base


def facts() -> dict[str, Any]:
    """Of which commit, when and where the numbers are."""
    from benchmarks import machine

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    return {"commit": commit, "date": time.strftime("%Y-%m-%d"), "machine": machine()}


def save(path: Path, campaigns: dict[str, Campaign], earlier: dict[str, Any]) -> None:
    """earlier: stages of the file as it was before this run, to which this one's numbers are added."""
    # replace: asdict would make a Counter of a Counter's items
    totals = {name: replace(c.totals, kills=dict(c.totals.kills)) for name, c in campaigns.items()}
    stages = dict(earlier)
    for name, one in totals.items():
        stages[name] = _sum(asdict(one), earlier.get(name, {}))
    path.write_text(json.dumps({**facts(), "stages": stages}, indent=1) + "\n")


def _sum(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Counts added, kills by how, problems one behind the other."""

    def add(a: Any, b: Any) -> Any:
        return dict(Counter(a) + Counter(b)) if isinstance(a, dict) else a + b

    return {key: add(value, other[key]) if key in other else value for key, value in one.items()}


if __name__ == "__main__":
    main()
