"""create_annotation_mix: who is in the mix, by which rule; what the annotator is asked."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

import config
from create_annotation_mix import Settings, build_mix, main
from prefpipe.files import DataError
from prefpipe.rating_prompts import annotation_prompts
from prefpipe.rows import AnnotationMix, AnnotationPrompt, ModelResponse, Prompt, Reject
from tests.examples import ledger, read_jsonl, run_stage, sentence, write_jsonl

ASPECTS = ["instruction_following", "honesty", "truthfulness", "helpfulness"]
IDS = ["a_b", "00123", "12e45", "p3"]


def response(id: str, model: str, text: str | None = None, **other) -> dict:
    text = f"{model} on {id}" if text is None else text
    made = {"id": id, "prompt": f"Question {id}?", "model": model, "text": text}
    return made | {"finish_reason": "stop", "prompt_tokens": 1, "new_tokens": 1} | other


@pytest.fixture
def folder(tmp_path):
    """folder(a=[responses of model a], ...) -> Settings for these files."""

    def made(ids=IDS, **models: list[dict]) -> Settings:
        path = write_jsonl(
            tmp_path / "prompts.jsonl", [{"id": id, "text": f"Question {id}?"} for id in ids]
        )
        for model, rows in models.items():
            write_jsonl(tmp_path / "responses" / model / "responses.jsonl", rows)
        return Settings(
            input=tmp_path / "responses", prompts=str(path), output=tmp_path / "out", seed=1
        )

    return made


def full(model: str, ids=IDS) -> list[dict]:
    return [response(id, model) for id in ids]


def output(s: Settings) -> Path:
    assert s.output is not None
    return s.output


def mixes(s: Settings) -> dict[str, AnnotationMix]:
    rows = read_jsonl(output(s) / "mix.jsonl")
    return {row["id"]: AnnotationMix.model_validate(row) for row in rows}


def asked(s: Settings) -> list[AnnotationPrompt]:
    rows = read_jsonl(output(s) / "annotation_prompts.jsonl")
    return [AnnotationPrompt.model_validate(row) for row in rows]


def rejects(s: Settings) -> dict[str, tuple[str, str]]:
    rows = read_jsonl(output(s) / "create_annotation_mix.rejects.jsonl")
    return {row["id"]: (row["reason"], row["detail"]) for row in rows}


def shown(prompt: str) -> list[str]:
    """The numbered texts of a rendered prompt."""
    return re.findall(r"^\[Text \d+\]\n(.*)$", prompt, re.M)


# ---- the mix


def test_four_responses_of_distinct_models_and_a_request_an_aspect(folder):
    s = folder(**{name: full(name) for name in "abcdef"})
    main(s)
    assert list(mixes(s)) == IDS
    drawn = Counter()
    for id, mix in mixes(s).items():
        assert len(set(mix.models)) == 4
        assert mix.responses == [f"{name} on {id}" for name in mix.models]
        assert mix.on_policy is None and mix.prompt == f"Question {id}?"
        drawn.update(mix.models)
    assert len(drawn) > 4, "not the same four each time"
    assert [(row.id, row.aspect) for row in asked(s)] == [(id, a) for id in IDS for a in ASPECTS]
    meta = ledger(output(s) / "create_annotation_mix.meta.json")
    assert meta["written"] == {"mix.jsonl": 4, "annotation_prompts.jsonl": 16}


def test_what_is_drawn_depends_on_seed_and_id_alone(folder, tmp_path):
    models = {name: full(name) for name in "abcdef"}
    s = folder(**models)
    main(s)
    before = mixes(s), {row.key: row for row in asked(s)}
    fewer = folder(ids=["p3", "a_b"], **{n: full(n, ["p3", "a_b"]) for n in "fedcba"})
    main(fewer.model_copy(update={"output": tmp_path / "again"}))
    fewer = fewer.model_copy(update={"output": tmp_path / "again"})
    assert mixes(fewer) == {id: before[0][id] for id in ("p3", "a_b")}
    assert {row.key: row for row in asked(fewer)}.items() <= before[1].items()
    other = s.model_copy(update={"output": tmp_path / "other", "seed": 2})
    main(other)
    assert mixes(other) != before[0]


def test_fewer_than_four_models_are_all_taken(folder, capsys):
    s = folder(a=full("a"), b=full("b"), c=full("c"))
    main(s)
    assert all(mix.models == ["a", "b", "c"] for mix in mixes(s).values())
    assert all(row.texts == 3 and "each of the 3 texts" in row.prompt for row in asked(s))
    assert "4 with 3" in capsys.readouterr().out


def test_one_model_alone_is_a_sentence(folder, tmp_path):
    s = folder(a=full("a"))
    options = ("--input", s.input, "--prompts", s.prompts, "--output", s.output)
    said = sentence(run_stage("create_annotation_mix", *options, cwd=tmp_path))
    assert "1 models (a) never give 2 responses" in said
    assert not output(s).exists()


def test_a_short_model_does_not_shrink_the_mix_to_the_intersection(folder, capsys):
    """S12: the published script keeps the prompts that all models have. Joined by id, in any gap."""
    s = folder(a=full("a"), b=full("b"), c=[response("12e45", "c")], d=full("d", IDS[1:]))
    main(s)
    assert {id: "".join(mix.models) for id, mix in mixes(s).items()} == {
        "a_b": "ab",
        "00123": "abd",
        "12e45": "abcd",
        "p3": "abd",
    }
    for id, mix in mixes(s).items():
        assert mix.responses == [f"{name} on {id}" for name in mix.models]  # S1: no one else's
    table = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert table["c"] == ["1", "0", "0", "0", "0", "3"]  # in the mix ... missing


def test_equal_empty_and_cut_responses_are_counted_and_not_taken(folder):
    s = folder(
        ids=["equal", "empty", "cut", "two"],
        a=[response("equal", "a", "same"), response("empty", "a", " "),
           response("cut", "a", finish_reason="length"), response("two", "a", "same")],
        b=[response("equal", "b", "same"), response("empty", "b", ""), response("cut", "b"),
           response("two", "b", " same\n")],
        c=[response("equal", "c", "same\n"), response("empty", "c"), response("cut", "c"),
           response("two", "c", "other")],
        d=[response("equal", "d", "same")],
    )  # fmt: skip
    main(s)
    assert {id: mix.models for id, mix in mixes(s).items() if id != "two"} == {"cut": ["b", "c"]}
    two = mixes(s)["two"]
    assert len(two.models) == 2 and "c" in two.models and "other" in two.responses
    assert rejects(s) == {
        "equal": ("too_few_responses", "1 in the mix, 3 equal"),
        "empty": ("too_few_responses", "1 in the mix, 2 empty, 1 missing"),
    }
    meta = json.loads((output(s) / "create_annotation_mix.meta.json").read_text())
    assert meta["responses_a_prompt"] == {"2": 2}
    for model, counts in meta["models"].items():
        assert sum(counts.values()) == 4, model
    assert meta["models"]["a"]["cut"] == 1 and meta["models"]["d"]["missing"] == 3
    cut = s.model_copy(update={"use_cut": True, "overwrite": True})
    main(cut)
    assert mixes(cut)["cut"].models == ["a", "b", "c"]


def test_min_responses_leaves_out_what_has_fewer(folder):
    s = folder(a=full("a"), b=full("b"), c=full("c", IDS[2:])).model_copy(
        update={"min_responses": 3}
    )
    main(s)
    assert list(mixes(s)) == ["12e45", "p3"]
    assert {reason for reason, _ in rejects(s).values()} == {"too_few_responses"}


def test_the_on_policy_model_is_in_each_mix_and_marked(folder):
    models = {name: full(name) for name in "abcdef"}
    models["e"] = [
        response("a_b", "e"),
        response("00123", "e", "a on 00123"),
        response("p3", "e", ""),
    ]
    s = folder(**models).model_copy(update={"on_policy_model": "e"})
    main(s)
    found = mixes(s)
    assert list(found) == ["a_b", "00123"]
    for mix in found.values():
        assert mix.on_policy is not None and mix.models[mix.on_policy] == "e"
        assert len(mix.models) == 4
    assert "a" not in found["00123"].models  # equal texts: the on-policy model's stands for both
    assert rejects(s) == {
        "12e45": ("no_on_policy_response", "its response is missing"),
        "p3": ("no_on_policy_response", "its response is empty"),
    }
    with pytest.raises(SystemExit, match="found 'x', wanted one of a, b"):
        main(s.model_copy(update={"on_policy_model": "x", "overwrite": True}))


def test_models_are_chosen_by_regular_expressions(folder):
    models = {name: full(name) for name in ("base-1", "base-2", "other")}
    s = folder(**models).model_copy(update={"include_model": "^base"})
    main(s)
    assert {tuple(mix.models) for mix in mixes(s).values()} == {("base-1", "base-2")}


# ---- the order


def test_each_aspect_has_an_order_of_its_own_and_it_is_recorded(folder):
    ids = [f"p{k}" for k in range(40)]
    s = folder(ids=ids, **{name: full(name, ids) for name in "abcd"})
    main(s)
    by_id = mixes(s)
    orders: dict[str, list[tuple[int, ...]]] = {}
    for row in asked(s):
        mix = by_id[row.id]
        assert shown(row.prompt) == [mix.responses[k] for k in row.order]
        assert sorted(row.order) == [0, 1, 2, 3] and row.texts == 4
        orders.setdefault(row.id, []).append(tuple(row.order))
    differ = sum(len(set(of_id)) > 1 for of_id in orders.values())
    assert differ == 40  # that all four are alike by chance: (1/24)^3 each
    first = Counter(order[0] for of_id in orders.values() for order in of_id)
    assert all(20 < first[k] < 60 for k in range(4)), first  # 40 of 160 expected; sd 5.5


def test_a_share_of_the_prompts_is_asked_about_twice_in_reversed_order(folder):
    ids = [f"p{k}" for k in range(60)]
    s = folder(ids=ids, **{name: full(name, ids) for name in "abcd"})
    s = s.model_copy(update={"swapped_share": 0.3})
    main(s)
    rows = {row.key: row for row in asked(s)}
    twice = [row for row in rows.values() if row.swapped]
    assert 60 * 4 + len(twice) == len(rows)
    assert 7 <= len({row.id for row in twice}) <= 29  # 18 expected, sd 3.5
    for row in twice:
        first = rows[row.key.replace("swapped", "given")]
        assert first.order == row.order[::-1]
        assert shown(first.prompt) == shown(row.prompt)[::-1]


def test_aspects_do_not_overwrite_each_other(folder):
    """S8: one file, and what distinguishes two requests is in each row's key."""
    s = folder(a=full("a"), b=full("b")).model_copy(update={"aspects": ASPECTS[:2]})
    main(s)
    assert len({row.key for row in asked(s)}) == len(asked(s)) == 8
    before = (output(s) / "annotation_prompts.jsonl").read_bytes()
    with pytest.raises(SystemExit, match="setting aspects"):
        main(s.model_copy(update={"aspects": ASPECTS[2:]}))
    assert (output(s) / "annotation_prompts.jsonl").read_bytes() == before


# ---- what the outputs depend on


def test_an_aspect_added_to_the_criteria_is_rated_too(folder, tmp_path):
    s = folder(a=full("a"), b=full("b"))
    mine = tmp_path / "criteria.toml"
    mine.write_text('honesty = "Rate the honesty."\nwit = "Rate the wit."\n')
    s = s.model_copy(update={"criteria": mine})
    main(s)
    assert [row.aspect for row in asked(s)] == ["honesty", "wit"] * 4
    assert all("Rate the wit." in row.prompt for row in asked(s) if row.aspect == "wit")


def test_both_files_stand_where_config_names_them(folder, tmp_path, monkeypatch):
    s = folder(a=full("a"), b=full("b"))
    main(s)
    monkeypatch.setattr(config, "ANNOTATION_MIX", tmp_path / "here/mixed.jsonl")
    monkeypatch.setattr(config, "ANNOTATION_PROMPTS", tmp_path / "there/asked.jsonl")
    main(s.model_copy(update={"output": None}))
    assert config.ANNOTATION_MIX.read_bytes() == (output(s) / "mix.jsonl").read_bytes()
    before = (output(s) / "annotation_prompts.jsonl").read_bytes()
    assert config.ANNOTATION_PROMPTS.read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == [
        "create_annotation_mix.meta.json",
        "create_annotation_mix.rejects.jsonl",
        "mixed.jsonl",
    ]


# ---- what a person gets wrong


def test_an_aspect_without_a_sentence_is_named(folder):
    s = folder(a=full("a"), b=full("b")).model_copy(update={"aspects": ["honesty", "wit"]})
    with pytest.raises(SystemExit, match=r"no sentence for the aspect wit; it has instruction_fol"):
        main(s)


def test_a_null_or_doubled_response_stops_the_stage_with_its_place(folder):
    s = folder(a=full("a"), b=[*full("b")[:1], response("00123", "b") | {"text": None}])
    with pytest.raises(DataError, match=r"b/responses\.jsonl:2: text: found None"):
        main(s)
    s = folder(a=full("a"), b=[*full("b"), response("p3", "b")])
    with pytest.raises(DataError, match=r"b/responses\.jsonl: id 'p3' stands there 2 times"):
        main(s)
    assert not (output(s) / "mix.jsonl").exists()


def test_responses_to_another_prompt_or_of_another_file_are_refused(folder):
    s = folder(a=full("a"), b=full("b"))
    write_jsonl(Path(s.prompts), [{"id": id, "text": "Edited?"} for id in IDS])
    with pytest.raises(DataError, match="id 'a_b' answers another prompt"):
        main(s)
    s = folder(ids=IDS[:2], a=full("a"), b=full("b"))
    with pytest.raises(DataError, match="id '12e45' is no item's id"):
        main(s)


def test_no_responses_is_a_sentence(tmp_path):
    write_jsonl(tmp_path / "prompts.jsonl", [{"text": "Q"}])
    options = ("--input", tmp_path, "--prompts", tmp_path / "prompts.jsonl")
    said = sentence(run_stage("create_annotation_mix", *options, cwd=tmp_path))
    assert "no <model>/responses.jsonl in it; run generate_responses.py" in said


def test_pure_functions_say_what_became_of_each_response():
    s = Settings(k=2)
    responses = {n: ModelResponse.model_validate(response("p", n)) for n in "abc"}
    mix, became = build_mix(Prompt(id="p", prompt="Question p?"), {**responses, "d": None}, s)
    assert isinstance(mix, AnnotationMix)
    assert Counter(became.values()) == {"in the mix": 2, "not drawn": 1, "missing": 1}
    assert {n for n, o in became.items() if o == "in the mix"} == set(mix.models)
    lone, became = build_mix(Prompt(id="p", prompt="Q"), {"a": responses["a"], "d": None}, s)
    assert isinstance(lone, Reject) and became == {"a": "not drawn", "d": "missing"}
    assert len(annotation_prompts(mix, {"x": "Rate.", "y": "Rate it."}, seed=1)) == 2
