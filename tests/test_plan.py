"""--dry-run of every stage: it leaves all as it was, and counts what the run behind it counts.

The chains run once, small, in a folder of their own; before each stage, behind it, and with --overwrite
its dry run is made, and the whole folder is compared byte for byte.
"""

import importlib
import json
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sentence_transformers
import transformers

from embedded.server import Server
from prefpipe.files import write_rows
from prefpipe.files.plan import Plan, rows_of, seconds_as_before
from prefpipe.rows import Item, Responses
from tests.examples import ROOT, item, read_jsonl, write_jsonl
from tests.test_connected_chain import answer
from tests.test_layout import STAGES

ITEMS = "data/pairwise_critic_inference2_get_answer/Sky"
SMALL = ["--limit", "24"]
FEW = ["--epochs", "0.5", "--batch-pairs", "8"]
MODELS = '[{"name": "good", "model": "good"}, {"name": "poor", "model": "poor"}]'
SERVED = ["--engine", "server", "--base-urls", "URL"]
CHAIN: list[tuple[str, list[str]]] = [
    ("preprocess_dataset", SMALL),
    ("translation", SMALL),
    ("inference_best_of_n", [*SMALL, "--n", "4", "--max-new-tokens", "60"]),
    ("inference_all", [*SMALL, "--max-new-tokens", "60"]),
    ("post_processing", SMALL),
    ("construct_dpo_dataset", SMALL),
    ("dpo_dataset", SMALL),
    ("dpo_training", FEW),
    ("accuracy", ["--limit", "8", "--max-new-tokens", "60"]),
    ("build_vector_store", ["--limit", "60"]),
    ("build_pairwise_prefs", ["--limit", "12", "--num-candidates", "3", "--max-new-tokens", "40"]),
    ("train_reward_model", [*SMALL, *FEW]),
    ("train_pairwise_model", [*SMALL, *FEW]),
    ("rank_responses", ["--by", "reward"]),
    ("rank_responses", ["--by", "pairwise", "--output", "data/ranked_pairwise"]),
    ("rank_responses", ["--by", "judge", "--output", "data/ranked", "--max-new-tokens", "60"]),
    ("generate_responses", [*SERVED, "--models", MODELS]),
    ("create_annotation_mix", []),
    ("annotate_preferences", [*SERVED, "--model", "judge"]),
    ("parse_preferences", []),
    ("report", []),
]
NAMES = [f"{stage} {' '.join(options[:2])}".strip() for stage, options in CHAIN]


def state(folder: Path) -> dict[str, bytes | None]:
    """Every name in it and every byte, hidden ones too."""
    paths = sorted(folder.rglob("*"))
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in paths}


class Ended(NamedTuple):
    code: object
    out: str
    err: str


def run(stage: str, *options: object, capsys: Any) -> Ended:
    """The stage in this process, as a user runs it; relative paths are relative to the test's folder."""
    capsys.readouterr()
    module = importlib.import_module(stage)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", [f"{stage}.py", *map(str, options)])
        module.Settings.run(module.main)
    shown = capsys.readouterr()
    return Ended(end.value.code, shown.out, shown.err)


def refused(*_: object, **__: object) -> Any:
    raise AssertionError("a dry run loads no weights and opens no connection")


@contextmanager
def without_weights_and_network() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.PreTrainedModel, "from_pretrained", refused)
        patch.setattr(sentence_transformers, "SentenceTransformer", refused)
        patch.setattr(socket.socket, "connect", refused)
        patch.setattr(socket.socket, "connect_ex", refused)
        yield


class Step(NamedTuple):
    """A stage of the chain: its dry runs' plans, one for each run in it, and what it left."""

    first: list[dict[str, Any]]
    after: list[dict[str, Any]]
    overwriting: list[dict[str, Any]]
    words: str
    changed: list[str]
    """Names of files that one of its dry runs changed."""
    real: Ended
    calls: int
    """What the server was asked by the real run."""
    calls_dry: int


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("plan")
    (made / "embedded").symlink_to(ROOT / "embedded")
    documents = [
        f"d{k},how to do thing {k}?,def f{k}(): return {k},Does thing {k}.\n" for k in range(60)
    ]
    (made / "data/rag").mkdir(parents=True)
    (made / "data/rag/stdlib.csv").write_text("id,query,code,description\n" + "".join(documents))
    asked = [{"id": f"p{k}", "text": f"Question {k} of a longer kind?"} for k in range(6)]
    write_jsonl(made / "data/synthetic/prompts.jsonl", asked)
    rows = [
        Responses(
            id=f"r{k}", prompt=f"{k}+{k}?", responses=["0", str(2 * k + 1), "two", ""][: 2 + k % 3]
        )
        for k in range(9)
    ]
    write_rows(made / "data/responses.jsonl", rows, Responses)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
            patch.delenv(name, raising=False)
        yield made


@pytest.fixture(scope="module")
def steps(folder) -> dict[str, Step]:
    return {}


@pytest.fixture
def chain(folder, steps, capsys) -> Callable[[int], Step]:
    """The step of that number; those before it are made first, each once."""

    def make(last: int) -> Step:
        with Server(answer, models=("good", "poor", "judge")) as server:
            for name, (stage, options) in list(zip(NAMES, CHAIN, strict=True))[: last + 1]:
                if name not in steps:
                    steps[name] = step(folder, stage, options, server, capsys)
        return steps[NAMES[last]]

    return make


def step(folder: Path, stage: str, options: list[str], server: Server, capsys: Any) -> Step:
    given = [server.url if option == "URL" else option for option in options]
    changed: list[str] = []

    def dry(*more: str) -> str:
        before = state(folder)
        with without_weights_and_network():
            ended = run(stage, *given, "--dry-run", *more, capsys=capsys)
        assert ended.code == 0, ended
        after = state(folder)
        changed.extend(n for n in {*before, *after} if before.get(n, 0) != after.get(n, 0))
        return ended.out

    def plans(*more: str) -> list[dict[str, Any]]:
        lines = dry("--json", *more).splitlines() if stage not in ("dpo_dataset", "report") else []
        return [json.loads(line) for line in lines]

    first, words = plans(), dry()
    assert dry("--quiet") == ""
    calls_dry = len(server.requests)
    real = run(stage, *given, capsys=capsys)
    calls = len(server.requests) - calls_dry
    return Step(first, plans(), plans("--overwrite"), words, changed, real, calls, calls_dry)


def test_every_stage_is_in_the_chain():
    assert {stage for stage, _ in CHAIN} == {path.stem for path in STAGES}


@pytest.mark.parametrize("number", range(len(CHAIN)), ids=NAMES)
def test_a_dry_run_leaves_everything_as_it_was_before_and_behind_its_run(chain, number):
    made = chain(number)
    assert made.changed == []
    assert made.real.code == 0, made.real.err


@pytest.mark.parametrize("number", range(len(CHAIN)), ids=NAMES)
def test_what_a_dry_run_counts_is_what_the_run_counts(chain, folder, number):
    made, stage = chain(number), CHAIN[number][0]
    assert made.words.startswith(f"{stage}: dry run") or stage == "dpo_dataset"
    for plan, behind, again in zip(made.first, made.after, made.overwriting, strict=True):
        meta = meta_of(plan)
        counts, real = plan["counts"], meta["counts"]
        assert counts["read"] == real["read"]
        assert not plan["finished_before"] and behind["finished_before"] == meta["closing_line"]
        assert all(out["is_there"] for out in behind["outputs"])
        assert again["work"] == plan["work"] and again["counts"] == counts
        for reason, n in counts["left_out"].items():
            assert real["left_out"][reason] >= n
        if not counts["waiting"]:
            assert counts["kept"] == real["kept"] and counts["left_out"] == real["left_out"]
            if not stage.startswith(("train_", "dpo_")):
                assert counts["written"] == real["written"]
        assert counts["kept"] + counts["waiting"] >= real["kept"]


def meta_of(plan: dict[str, Any]) -> dict[str, Any]:
    output = Path(plan["outputs"][0]["path"])
    places = [output, output.parent, output.with_suffix("")]
    names = [p / f"{plan['stage']}.meta.json" for p in places] + [output.with_suffix(".meta.json")]
    return json.loads(next(name for name in names if name.is_file()).read_text())


def works(step: Step) -> dict[str, dict[str, Any]]:
    return {work["what"]: work for plan in step.first for work in plan["work"]}


def number_of(stage: str, nth: int = 0) -> int:
    return [k for k, (name, _) in enumerate(CHAIN) if name == stage][nth]


@pytest.mark.parametrize(
    ("stage", "what", "files"),
    [
        ("inference_best_of_n", "items", ["best_of_n"]),
        ("inference_all", "prompts", ["guide", "guide_reverse", "output"]),
    ],
)
def test_requests_texts_and_prompt_tokens_of_a_local_model_are_the_runs(chain, stage, what, files):
    work = works(chain(number_of(stage)))[what]
    rows = [row for name in files for row in read_jsonl(Path(f"data/judgments/raw/{name}.jsonl"))]
    asked = {(row["id"], row["variant"]): row["prompt_tokens"] for row in rows}
    assert work["requests"] == len(asked) == 48 * len(files)
    assert work["texts"] == len(rows)
    assert work["prompt_tokens"] == sum(asked.values())
    assert work["new_tokens_at_most"] == 60 * len(rows)
    assert sum(row["new_tokens"] for row in rows) <= work["new_tokens_at_most"]


def test_what_accuracy_asks_and_scores(chain):
    work = works(chain(number_of("accuracy")))
    judged = read_jsonl(Path("data/accuracy/judgments.jsonl"))
    scored = read_jsonl(Path("data/accuracy/pair_scores.jsonl"))
    for judge in ("base", "tuned"):
        own = [row for row in judged if row["judge"] == judge]
        assert work[judge]["requests"] == len(own) == 16
        assert work[judge]["prompt_tokens"] == sum(row["prompt_tokens"] for row in own)
        assert work[f"{judge}: pairs"]["pairs"] == sum(row["judge"] == judge for row in scored)


def test_what_rag_embeds_and_asks(chain):
    embedded = works(chain(number_of("build_vector_store")))["to embed"]
    assert embedded["documents"] == rows_of(Path("data/rag/store/documents.parquet"))
    assert embedded["to_embed"] == embedded["documents"]
    meta = json.loads(Path("data/rag/store/build_vector_store.meta.json").read_text())
    assert embedded["to_embed"] == meta["embedded"]
    work = works(chain(number_of("build_pairwise_prefs")))["queries"]
    assert (work["requests"], work["texts"]) == (12, 36)


@pytest.mark.parametrize("stage", ["dpo_training", "train_reward_model", "train_pairwise_model"])
def test_steps_and_pairs_of_a_training_are_the_runs(chain, stage):
    work = works(chain(number_of(stage)))["to train"]
    (plan,) = chain(number_of(stage)).first
    meta = meta_of(plan)
    assert work["steps"] == meta["steps"] and work["steps_done"] == 0
    assert work["pairs"] == meta["pairs"]["train pairs"]
    assert work["held_out"] == meta["pairs"]["validation pairs"]


def test_the_matches_of_a_knockout_are_counted_to_the_last_round(chain):
    work = works(chain(number_of("rank_responses", 2)))["verdicts"]
    rankings = read_jsonl(Path("data/ranked/rankings.jsonl"))
    left_out = read_jsonl(Path("data/ranked/rank_responses.rejects.jsonl"))
    rows = {row["id"]: row["responses"] for row in read_jsonl(Path("data/responses.jsonl"))}
    played = {row["id"] for row in [*rankings, *left_out]}
    different = [len({text for text in rows[id] if text.strip()}) for id in played]
    assert work["requests"] == sum(2 * (n - 1) for n in different)
    assert sum(2 * len(row["comparisons"]) for row in rankings) <= work["requests"]


def test_a_server_is_asked_as_often_as_the_dry_run_says_and_by_it_not_once(chain):
    for stage in ("generate_responses", "annotate_preferences"):
        made = chain(number_of(stage))
        assert made.calls_dry == 0
        asked = sum(w["requests"] for plan in made.first for w in plan["work"])
        assert asked == made.calls > 0


# ---- where the run would fail, its dry run fails with the same sentence

ITEM_FILE = ["--input", "items.jsonl"]
BROKEN: dict[str, tuple[str, list[str]]] = {
    "an input that is not there": ("inference_best_of_n", ["--input", "nowhere.jsonl"]),
    "a setting out of its range": ("inference_best_of_n", [*ITEM_FILE, "--n", "0"]),
    "an option that is none": ("inference_best_of_n", [*ITEM_FILE, "--nn", "3"]),
    "an output that is the input": ("inference_best_of_n", [*ITEM_FILE, "--output", "items.jsonl"]),
    "a model that is nowhere": ("inference_best_of_n", [*ITEM_FILE, "--model", "./nowhere"]),
    "a model without a tokenizer": ("inference_best_of_n", [*ITEM_FILE, "--model", "no_model"]),
    "no server": ("inference_best_of_n", [*ITEM_FILE, "--engine", "server"]),
    "an address that is none": (
        "inference_best_of_n", [*ITEM_FILE, "--engine", "server", "--base-urls", "ftp://x"]
    ),
    "no row": ("inference_best_of_n", ["--input", "empty.jsonl"]),
    "no row that can be used": ("inference_best_of_n", ["--input", "bad.jsonl"]),
    "a bad row, strictly": ("inference_best_of_n", ["--input", "bad.jsonl", "--strict"]),
    "an id that stands twice": ("inference_best_of_n", ["--input", "twice.jsonl"]),
    "only ties": ("inference_best_of_n", ["--input", "ties.jsonl"]),
    "columns that are not there": ("preprocess_dataset", ["--input", "odd.jsonl"]),
    "judgments of no item": ("post_processing", ["--items", "items.jsonl", "--input", "nowhere"]),
    "nothing to train on": ("train_reward_model", ["--input", "all_ties.jsonl"]),
    "training an adapter's output": (
        "train_reward_model", ["--input", "pairs.jsonl", "--merge-adapter"]
    ),
    "a layer that is not there": (
        "dpo_training",
        ["--input", "nowhere", "--method", "lora", "--lora-target-modules", "nothing"],
    ),
    "no model left": ("generate_responses", ["--input", "prompts.jsonl", "--include-model", "zzz"]),
    "no store": ("build_pairwise_prefs", ["--input", "table.csv", "--store", "nowhere"]),
    "an embedding model that is nowhere": (
        "build_vector_store", ["--input", "table.csv", "--embedding-model", "./nowhere"]
    ),
    "a benchmark that is none": ("accuracy", ["--benchmark", "nothing=items.jsonl"]),
    "a kind that needs the model here": (
        "accuracy",
        ["--items", "items.jsonl", "--kind", "dpo", "--engine", "server", "--pairs", "None"],
    ),
    "a reward model that is nowhere": ("rank_responses", ["--input", "answers.jsonl", "--reward-model", "./n"]),
    "another folder's page": ("report", ["--output", "items.jsonl", "."]),
    "a damaged .meta.json": ("inference_best_of_n", [*ITEM_FILE, "--output", "damaged.jsonl"]),
    "an output of other settings": ("inference_best_of_n", [*ITEM_FILE, "--output", "other.jsonl"]),
    "a log of other settings": ("inference_best_of_n", [*ITEM_FILE, "--output", "stopped.jsonl"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("broken")
    (made / "embedded").symlink_to(ROOT / "embedded")
    write_rows(made / "items.jsonl", [item(f"i{k}") for k in range(4)], Item)
    write_rows(made / "ties.jsonl", [item(f"i{k}", better=None) for k in range(4)], Item)
    write_jsonl(made / "empty.jsonl", [])
    write_jsonl(made / "bad.jsonl", [{"id": 1}, 2])
    lines = (made / "items.jsonl").read_text()
    (made / "twice.jsonl").write_text(lines * 2)
    write_jsonl(made / "odd.jsonl", [{"a": 1, "b": 2}])
    pair = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
    write_jsonl(made / "pairs.jsonl", [pair | {"prompt": f"{k}+2?"} for k in range(30)])
    write_jsonl(
        made / "all_ties.jsonl", [pair | {"prompt": f"{k}?", "tie": True} for k in range(30)]
    )
    write_jsonl(made / "prompts.jsonl", [{"id": "a", "text": "A?"}])
    write_jsonl(made / "answers.jsonl", [{"id": "a", "prompt": "A?", "responses": ["1", "2"]}])
    (made / "table.csv").write_text("id,query,code,description\na,b,c,d\n")
    (made / "no_model").mkdir()
    (made / "damaged.meta.json").write_text("{")
    (made / "damaged.jsonl").write_text("")
    mark = {"stage": "inference_best_of_n", "setting n": "3", "rows": "Completion"}
    meta = {"closing_line": "", "fingerprint": mark}
    (made / "other.meta.json").write_text(json.dumps(meta))
    (made / "other.jsonl").write_text("")
    (made / ".stopped.partial.items.jsonl").write_text("")
    (made / ".stopped.partial.jsonl").write_text(json.dumps(mark) + '\n{"id": "a"}\n')
    return made


@pytest.mark.parametrize("what", BROKEN)
def test_what_the_run_refuses_the_dry_run_refuses_with_the_same_sentence(
    broken, what, tmp_path, monkeypatch, capsys
):
    stage, options = BROKEN[what]
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "here"
    shutil.copytree(broken, folder, symlinks=True)
    monkeypatch.chdir(folder)
    before = state(folder)
    with without_weights_and_network():
        dry = run(stage, *options, "--dry-run", capsys=capsys)
    assert state(folder) == before
    real = run(stage, *options, capsys=capsys)
    assert dry.code not in (0, None) and (dry.code, dry.err) == (real.code, real.err)


# ---- a run that was stopped


def stop(folder: Path, at: int) -> dict[str, bytes | None]:
    """A run of inference_best_of_n that is stopped by Ctrl-C when it is asked for that request."""
    from inference_best_of_n import Settings, main
    from tests.test_inference_best_of_n import Dying

    s = Settings(input=folder / "items.jsonl", output=folder / "out.jsonl", n=3)
    with pytest.raises(KeyboardInterrupt):
        main(s, Dying(at))
    return state(folder)


def test_a_stopped_run_is_gone_on_from_in_the_plan_and_its_log_stays(
    broken, tmp_path, monkeypatch, capsys
):
    (tmp_path / "embedded").symlink_to(ROOT / "embedded")
    monkeypatch.chdir(tmp_path)
    shutil.copy(broken / "items.jsonl", tmp_path)
    before = stop(tmp_path, 3)
    options = ["--input", tmp_path / "items.jsonl", "--output", tmp_path / "out.jsonl", "--n", "3"]
    for more, done, texts in (([], 9, 3), (["--overwrite"], 0, 12)):
        with without_weights_and_network():
            ended = run(
                "inference_best_of_n", *options, "--dry-run", "--json", *more, capsys=capsys
            )
        plan = json.loads(ended.out)
        assert sum(plan["done_before"].values()) == done
        assert plan["work"][0]["texts"] == texts
        assert plan["counts"] == {
            "read": 4, "kept": done // 3, "left_out": {}, "waiting": 4 - done // 3,
            "written": {"out.jsonl": done} if done else {},
        }  # fmt: skip
        assert state(tmp_path) == before
    log = (tmp_path / ".out.partial.jsonl").read_text()
    assert json.loads(log.splitlines()[0])["stage"] == "inference_best_of_n"


def test_a_dry_run_is_refused_while_another_run_writes_there(tmp_path, monkeypatch, capsys, broken):
    from prefpipe.files import open_alone

    shutil.copy(broken / "items.jsonl", tmp_path)
    monkeypatch.chdir(tmp_path)
    with open_alone(tmp_path / ".out.lock"):
        options = ["--input", "items.jsonl", "--output", "out.jsonl"]
        ended = run("inference_best_of_n", *options, "--dry-run", capsys=capsys)
    assert str(ended.code) == ".out.lock: another run is writing it; wait for its end"


# ---- what is estimated


MARK = {"stage": "s", "setting n": "3", "input a.jsonl": "1"}


@pytest.mark.parametrize(
    ("changes", "read", "seconds"),
    [
        ({}, 100, 20.0),
        ({}, 200, 40.0),
        ({}, 401, None),  # of so few rows most of the time may be the loading's
        ({"fingerprint": MARK | {"input a.jsonl": "2"}}, 100, 20.0),
        ({"fingerprint": MARK | {"setting limit": "5"}}, 100, 20.0),
        ({"fingerprint": MARK | {"setting n": "4"}}, 100, None),
        ({"went_on": True}, 100, None),
        ({"seconds": "long"}, 100, None),
        ({"counts": {"read": 0}}, 100, None),
    ],
)
def test_the_time_is_that_of_an_earlier_run_alike_and_else_nothing(
    tmp_path, changes, read, seconds
):
    meta = {"closing_line": "", "fingerprint": MARK, "seconds": 20.0, "counts": {"read": 100}}
    path = tmp_path / "x.meta.json"
    path.write_text(json.dumps(meta | changes))
    assert seconds_as_before(path, MARK, read) == seconds
    assert seconds_as_before(tmp_path / "none.meta.json", MARK, read) is None


def test_rows_of_each_kind_of_file_and_of_what_has_none(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{"a": 2}')
    (tmp_path / "a.csv").write_text('a,b\n1,"two\nlines"\n')
    (tmp_path / "a.json").write_text('[{"a": 1}, {"a": 2}, {"a": 3}]')
    (tmp_path / "a.toml").write_text("a = 1")
    found = {
        name: rows_of(tmp_path / name) for name in ("a.jsonl", "a.csv", "a.json", "a.toml", "b", "")
    }
    assert found == {"a.jsonl": 2, "a.csv": 1, "a.json": 3, "a.toml": None, "b": None, "": None}


def test_a_plan_says_what_becomes_of_each_output(tmp_path):
    (tmp_path / "old.jsonl").write_text("")
    outputs = [tmp_path / "new.jsonl", tmp_path / "old.jsonl"]
    plan = Plan("s", "rows", [], outputs)
    plan.counts = {
        "read": 1200,
        "kept": 1190,
        "waiting": 0,
        "left_out": {"tie": 10},
        "written": {"new.jsonl": 1190},
    }
    plan.put("items", ["first", "second"], requests=3)
    lines = plan.lines()
    assert lines[0] == "s: dry run; nothing is written, sent or loaded"
    assert lines[1].endswith("new.jsonl: new") and lines[2].endswith(
        "old.jsonl: stands there and would be replaced"
    )
    assert (
        lines[3]
        == "  rows    1,200 rows read = 1,190 kept + 10 left out (10 tie); would be written: 1,190 in new.jsonl"
    )
    assert lines[4:] == ["  items   first", "          second"]
    plan.before = "all done"
    assert (
        plan.lines()[2].endswith("stands there and is kept") and "nothing to do" in plan.lines()[-1]
    )
