"""generate_responses: prompts in, a folder a model out; engines are scripted or behind real HTTP."""

import json
from collections import Counter
from pathlib import Path

import pytest

import config
from embedded.server import Reply, Server, last_message
from generate_responses import Settings, main
from prefpipe import llm
from prefpipe.files import DataError
from prefpipe.formats import prompts
from prefpipe.llm.responders import Responder
from prefpipe.llm.scripted import ScriptedEngine
from prefpipe.rows import Prompt, Reject
from tests.examples import ROOT, ledger, read_jsonl, run_stage, sentence, write_jsonl

MODELS = [
    Responder(name="one", model="m1", temperature=0.3),
    Responder(name="two", model="m1", temperature=0.9, max_new_tokens=99),
    Responder(name="three", model="m2"),
]
PROMPTS = [{"id": f"p{k}", "text": f"Question {k}?"} for k in range(5)]


@pytest.fixture
def s(tmp_path) -> Settings:
    path = write_jsonl(tmp_path / "prompts.jsonl", PROMPTS)
    return Settings(input=str(path), output=tmp_path / "responses", models=MODELS, top_k=7)


class Engines:
    """A scripted engine a model. fails: what happens when that model is opened."""

    def __init__(self, answer=None, fails: dict[str, BaseException] | None = None) -> None:
        self.answer = answer or (lambda request, sample: f"answer to {request.id}")
        self.fails = fails or {}
        self.opened: list[str] = []
        self.engines: list[ScriptedEngine] = []

    def __call__(self, s: Settings) -> llm.Engine:
        (model,) = s.models
        self.opened.append(model.name)
        if model.name in self.fails:
            raise self.fails[model.name]
        self.engines.append(ScriptedEngine(self.answer))
        return self.engines[-1]

    def asked(self) -> list[llm.Request]:
        return [request for engine in self.engines for request in engine.asked]


def responses(s: Settings, name: str) -> list[dict]:
    return read_jsonl(s.output / name / "responses.jsonl")


def test_each_model_has_a_folder_with_its_answer_to_each_prompt(s):
    main(s, Engines())
    assert sorted(p.name for p in s.output.iterdir()) == ["one", "three", "two"]
    for name in ("one", "two", "three"):
        rows = [(r["id"], r["model"], r["prompt"], r["text"]) for r in responses(s, name)]
        assert rows == [
            (f"p{k}", name, f"Question {k}?", f"answer to p{k}\t{name}") for k in range(5)
        ]
        assert ledger(s.output / name / "responses.meta.json")["kept"] == 5


def test_a_model_s_own_values_go_before_the_stages(s):
    engines = Engines()
    main(s, engines)
    asked = {tuple(r.id.split("\t")): r for r in engines.asked()}
    got = {n: asked["p0", n] for n in ("one", "two", "three")}
    assert {n: r.temperature for n, r in got.items()} == {"one": 0.3, "two": 0.9, "three": 0.7}
    assert {n: r.max_new_tokens for n, r in got.items()} == {"one": 256, "two": 99, "three": 256}
    assert {r.top_k for r in asked.values()} == {7} and {r.seed for r in asked.values()} == {2021}
    assert got["one"].messages == ({"role": "user", "content": "Question 0?"},)


def test_one_model_at_two_temperatures_is_loaded_once(s):
    engines = Engines()
    main(s, engines)
    assert engines.opened == ["one", "three"]  # two has the model of one


@pytest.mark.parametrize("error", [SystemExit("m1 cannot be loaded"), DataError("m1: broken")])
def test_a_model_that_fails_costs_the_others_nothing_and_goes_on_later(s, error, capsys):
    with pytest.raises(SystemExit, match=r"2 of 3 models did not finish \(one, two"):
        main(s, Engines(fails={"one": error, "two": error}))
    assert "m1" in capsys.readouterr().err
    assert [p.name for p in s.output.glob("*/responses.jsonl")] == ["responses.jsonl"]
    assert len(responses(s, "three")) == 5
    again = Engines()
    main(s, again)
    assert {r.id.split("\t")[1] for r in again.asked()} == {"one", "two"}
    assert len(responses(s, "one")) == len(responses(s, "two")) == 5


def test_a_killed_run_asks_only_for_what_it_lacks_and_ends_in_the_same_bytes(s, tmp_path):
    main(s, Engines())
    killed = s.model_copy(update={"output": tmp_path / "killed"})
    seen: Counter[str] = Counter()

    def dying(request, sample):
        if len(seen) == 7:
            raise KeyboardInterrupt
        seen[request.id] += 1
        return f"answer to {request.id}"

    with pytest.raises(KeyboardInterrupt):
        main(killed, Engines(dying))
    rest = Engines()
    main(killed, rest)
    seen.update(r.id for r in rest.asked())
    assert set(seen.values()) == {1} and len(seen) == 15
    for name in ("one", "two", "three"):
        path = f"{name}/responses.jsonl"
        assert (killed.output / path).read_bytes() == (s.output / path).read_bytes()


def test_another_model_in_the_list_or_another_server_is_no_reason_to_ask_again(s):
    main(s, Engines())
    more = [*MODELS[:2], Responder(name="four", model="m4")]
    engines = Engines()
    main(s.model_copy(update={"models": more, "base_urls": ["http://127.0.0.1:9/v1"]}), engines)
    assert engines.opened == ["four"]
    changed = [MODELS[0].model_copy(update={"temperature": 1.0})]
    with pytest.raises(SystemExit, match="1 of 1"):
        main(s.model_copy(update={"models": changed}), engines)


@pytest.mark.parametrize(
    ("include", "ignore", "names"),
    [("^t", None, {"two", "three"}), (None, "o", {"three"}), ("o", "one|x", {"two"})],
)
def test_models_are_chosen_by_regular_expressions(s, include, ignore, names):
    main(s.model_copy(update={"include_model": include, "ignore_model": ignore}), Engines())
    assert {p.name for p in s.output.iterdir()} == names


def test_no_model_left_is_a_sentence_with_their_names(s):
    with pytest.raises(SystemExit, match="there are: one, two, three"):
        main(s.model_copy(update={"include_model": "four"}), Engines())


def test_a_glob_reads_its_files_in_order_and_limit_counts_in_each(s, tmp_path):
    for name, ids in (("b", ["b1", "b2", "b3"]), ("a", ["a1", "a2"])):
        write_jsonl(tmp_path / f"in/{name}.jsonl", [{"id": id, "prompt": "Q"} for id in ids])
    update = {"input": str(tmp_path / "in/*.jsonl"), "limit": 2, "models": MODELS[:1]}
    main(s.model_copy(update=update), Engines())
    assert [row["id"] for row in responses(s, "one")] == ["a1", "a2", "b1", "b2"]
    with pytest.raises(DataError, match="no such file"):
        main(s.model_copy(update={"input": str(tmp_path / "none/*.jsonl")}), Engines())


# ---- S11: ids, and rows that are none


def test_ids_stay_the_strings_that_they_are(s):
    """S11: `_`, leading zeros and an exponent crash or change where ids are split or made numbers."""
    ids = ["a_b_c", "00123", "12e45", "1.0", "x\ty", "编号"]
    write_jsonl(Path(s.input), [{"id": id, "text": "Q"} for id in ids])
    main(s, Engines())
    for name in ("one", "two", "three"):
        assert [row["id"] for row in responses(s, name)] == ids


@pytest.mark.parametrize("where", ["one file", "two files"])
def test_a_duplicate_id_is_an_error_with_both_lines_before_any_model_is_opened(s, tmp_path, where):
    if where == "one file":
        write_jsonl(Path(s.input), [*PROMPTS, {"id": "p2", "text": "Another?"}])
        said = r"prompts\.jsonl:6: id 'p2' stands at .*prompts\.jsonl:3 already"
    else:
        write_jsonl(tmp_path / "prompts2.jsonl", [{"id": "p2", "text": "Another?"}])
        s = s.model_copy(update={"input": str(tmp_path / "prompts*.jsonl")})
        said = r"prompts2\.jsonl:1: id 'p2' stands at .*prompts\.jsonl:3 already"
    engines = Engines()
    with pytest.raises(DataError, match=said):
        main(s, engines)
    assert not engines.opened


def test_bad_rows_are_rejects_and_the_others_are_answered(s):
    rows = [
        {"id": "null", "text": None},
        {"id": "blank", "text": " \n"},
        {"id": "both", "text": "a", "prompt": "b"},
        {"id": 1.5, "text": "Q"},
        ["no object"],
        {"id": "last", "prompt": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
        {"id": 7, "prompt": [{"role": "user", "content": "Q"}], "topic": "kept out"},
    ]  # fmt: skip
    write_jsonl(Path(s.input), rows)
    main(s.model_copy(update={"models": MODELS[:1]}), Engines())
    both, row = responses(s, "one")
    assert (both["id"], both["prompt"]) == ("both", "b")  # a text beside it is what came of it
    assert (row["id"], row["prompt"]) == ("7", [{"role": "user", "content": "Q"}])
    rejects = read_jsonl(s.output / "one/responses.rejects.jsonl")
    assert [r["reason"] for r in rejects] == ["not_text", *["bad_row"] * 4]
    assert [r["id"].rpartition(":")[2] for r in rejects] == ["1", "2", "4", "5", "6"]


def test_a_row_without_id_gets_that_of_its_content_and_its_copy_is_left_out(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", [{"text": "Q"}, {"prompt": "Q2"}, {"prompt": "Q"}])
    rows = [row for _, row in prompts.read_prompts([path])]
    first, second, copy = rows
    assert isinstance(first, Prompt) and isinstance(second, Prompt) and first.id != second.id
    assert isinstance(copy, Reject) and copy.reason == "duplicate_row" and copy.id == first.id


def test_a_null_response_is_a_reject_of_that_model_alone(tmp_path, monkeypatch):
    """Through real HTTP, as a server gives it."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    path = write_jsonl(tmp_path / "prompts.jsonl", PROMPTS)

    def answer(body, sample):
        null = body["model"] == "m2" and last_message(body) == "Question 3?"
        return Reply(None) if null else f"{body['model']}: {last_message(body)}"

    with Server(answer, models=("m1", "m2")) as server:
        s = Settings(
            input=str(path),
            output=tmp_path / "responses",
            models=[*MODELS, Responder(name="gone", model="m3")],
            engine="server",
            base_urls=[server.url],
        )
        with pytest.raises(SystemExit, match=r"1 of 4 models did not finish \(gone;"):
            main(s)
    assert [r["text"] for r in responses(s, "one")] == [f"m1: Question {k}?" for k in range(5)]
    assert [r["id"] for r in responses(s, "three")] == ["p0", "p1", "p2", "p4"]
    (reject,) = read_jsonl(s.output / "three/responses.rejects.jsonl")
    assert (reject["id"], reject["reason"]) == ("p3", "garbled_reply")
    sent = [body for body in server.requests if last_message(body) == "Question 0?"]
    seeds = {body["seed"] for body in sent if body["model"] == "m1"}
    assert len(seeds) == 2, "one model at two temperatures draws twice"


# ---- settings


def test_models_can_be_given_in_config_a_profile_and_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "PROFILES", tmp_path)
    monkeypatch.setenv("PROFILE", "mine")
    (tmp_path / "mine.toml").write_text(
        '[[generate_responses.models]]\nname = "a"\nmodel = "org/a"\nengine = "server"\n'
        'base_urls = ["http://a:8000/v1"]\n\n[[generate_responses.models]]\nname = "b"\n'
    )
    a, b = Settings.from_command_line([]).models
    assert (a.name, a.model, a.engine, a.base_urls) == (
        "a",
        "org/a",
        "server",
        ["http://a:8000/v1"],
    )
    assert (b.name, b.model, b.engine) == ("b", config.BASE_MODEL, None)
    given = json.dumps([{"name": "c", "temperature": 0.1}])
    (c,) = Settings.from_command_line(["--models", given]).models
    assert (c.name, c.temperature) == ("c", 0.1)
    monkeypatch.delenv("PROFILE")
    assert Settings.from_command_line([]).models == config.RESPONSE_MODELS


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ([{"name": "a"}, {"name": "A"}], "two models named a; each needs a name of its own"),
        ([{"name": "../a"}], "String should match pattern"),
        ([{"name": "a", "temprature": 1}], "Extra inputs are not permitted"),
        ([{"name": "a", "temperature": -1}], "greater than or equal to 0"),
    ],
)
def test_a_wrong_model_is_a_sentence(models, said):
    with pytest.raises(SystemExit, match=said):
        Settings.from_command_line(["--models", json.dumps(models)])


def test_a_wrong_regular_expression_is_a_sentence(tmp_path):
    said = sentence(run_stage("generate_responses", "--include-model", "(", cwd=tmp_path))
    assert "include_model" in said and "no regular expression" in said


def test_the_embedded_model_answers_as_two_models(tmp_path):
    """The local engine itself: the lower temperature is not a copy of the higher one."""
    path = write_jsonl(tmp_path / "prompts.jsonl", PROMPTS[:3])
    models = [
        Responder(name=f"t{t}", model=str(ROOT / "embedded/model"), temperature=t)
        for t in (0.9, 0.91)
    ]
    s = Settings(input=str(path), output=tmp_path / "r", models=models, max_new_tokens=12)
    main(s)
    assert len(responses(s, "t0.9")) == len(responses(s, "t0.91")) == 3
    assert [r["text"] for r in responses(s, "t0.9")] != [r["text"] for r in responses(s, "t0.91")]
    assert all(0 < r["new_tokens"] <= 12 for r in responses(s, "t0.9"))
