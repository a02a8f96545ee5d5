"""rank_responses: three rankers, the stated rules, a stopped run; scripted judges, known scores."""

import json
import math
from functools import partial
from pathlib import Path

import pytest

import rank_responses
from prefpipe import llm
from prefpipe.compare.matches import Contest, judge_matches, pairwise_matches
from prefpipe.compare.tournament import Match
from prefpipe.models.prefix_cache import PrefixCache
from prefpipe.rows import Reject, Responses
from prefpipe.verdicts import render_judgment
from rank_responses import (
    Settings,
    competitors,
    main,
    rank_by_matches,
    rank_by_pairwise_model,
    rank_by_reward,
    to_preference,
)
from tests.preference_data import save_base, write_jsonl
from tests.test_shared_pass import pairwise_model, reward_model
from tests.training_models import scorable

ROWS = [
    {"id": "a", "prompt": "Q a", "responses": ["bad", "good", "fair"], "right": [False, True, False]},
    {"id": "b", "prompt": [{"role": "user", "content": "Q b"}], "responses": ["good", "bad"]},
    {"id": "copies", "prompt": "Q", "responses": ["bad", "good", " bad ", "", "good"]},
    {"id": "one", "prompt": "Q", "responses": ["good", "good", " "]},
    {"id": "many", "prompt": "Q", "responses": [f"x{k}" for k in range(6)] + ["good"]},
    {"id": "wrong", "prompt": "Q", "responses": ["good", "bad"], "right": [True]},
]  # fmt: skip


def quality(text: str) -> float:
    return {"good": 5.0, "fair": 1.0, "bad": -2.0}.get(text.strip(), -3 - len(text) / 10)


def by_quality(contests, matches, failed):
    def p(match: Match) -> float:
        texts = contests[match.id].responses
        return 1 / (1 + math.exp(quality(texts[match.second]) - quality(texts[match.first])))

    return [p(match) for match in matches]


class Scorer:
    """A reward model whose scores are known; counts what it is asked."""

    def __init__(self):
        self.asked = 0

    def score(self, questions):
        for _, responses in questions:
            self.asked += 1
            yield [quality(text) for text in responses]


@pytest.fixture
def settings(tmp_path):
    def made(**changes) -> Settings:
        options = {
            "input": write_jsonl(tmp_path / "responses.jsonl", ROWS),
            "output": tmp_path / "ranking",
            "reward_model": "none",
            "pairwise_model": "none",
            "judge": "none",
        }
        return Settings(**{**options, **changes})

    return made


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_reward_model_orders_by_score_and_gives_a_preference_row(settings, capsys):
    s = settings()
    main(s, lambda rows: rank_by_reward(Scorer(), rows))  # pyright: ignore[reportArgumentType]
    found = {r["id"]: r for r in read(s.output / "rankings.jsonl")}
    assert list(found) == ["a", "b", "copies", "many"]  # order of the input
    a = found["a"]
    assert (a["ranking"], a["best"], a["worst"]) == ([1, 2, 0], 1, 0)
    assert (a["scores"], a["margins"]) == ([5.0, 1.0, -2.0], [4.0, 3.0])
    assert a["best_is_right"] is True and a["right_share"] == pytest.approx(1 / 3)
    assert found["copies"]["ranking"] == [1, 0]
    assert found["copies"]["copies"] == [[1, 4], [0, 2]]  # the empty one competes nowhere
    preferences = {r["id"]: r for r in read(s.output / "preferences.jsonl")}
    assert preferences["a"] == {
        "id": "a", "prompt": "Q a", "chosen": "good", "rejected": "bad", "margin": 7.0,
        "tie": False, "source": "rank_responses/reward",
    }  # fmt: skip
    assert preferences["b"]["chosen"] == [{"role": "assistant", "content": "good"}]
    rejects = {r["id"]: r["reason"] for r in read(s.output / "rank_responses.rejects.jsonl")}
    assert rejects == {"one": "fewer_than_two_responses", "wrong": "right_does_not_fit"}
    assert (
        "the best response by reward is right: 1.000; a random one: 0.333"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("tournament", ["knockout", "round-robin"])
def test_a_tournament_finds_the_best_and_says_what_it_compared(settings, tournament):
    s = settings(by="pairwise", tournament=tournament)
    main(s, lambda rows: rank_by_matches(s, rows, by_quality))
    found = {r["id"]: r for r in read(s.output / "rankings.jsonl")}
    for id, n in (("a", 3), ("b", 2), ("copies", 2), ("many", 7)):
        texts = next(r for r in ROWS if r["id"] == id)["responses"]
        assert texts[found[id]["best"]].strip() == "good"
        wanted = n - 1 if tournament == "knockout" else n * (n - 1) // 2
        assert len(found[id]["comparisons"]) == wanted
        assert (found[id]["scores"] is None) == (tournament == "knockout")
    first, second = found["b"]["comparisons"][0]["first"], found["b"]["comparisons"][0]["second"]
    assert {first, second} == {0, 1}
    margin = {r["id"]: r["margin"] for r in read(s.output / "preferences.jsonl")}
    assert margin["b"] == pytest.approx(7.0, abs=1e-6 if tournament == "knockout" else 4)
    if tournament == "knockout":
        assert margin["many"] is None  # best and worst need not have met


def test_a_stopped_run_asks_only_for_what_is_left_and_ends_in_the_same_bytes(settings, tmp_path):
    whole = settings(output=tmp_path / "whole", prompts_at_once=1)
    main(whole, lambda rows: rank_by_reward(Scorer(), rows))  # pyright: ignore[reportArgumentType]
    s = settings(output=tmp_path / "stopped", prompts_at_once=1)
    calls: list[list[str] | None] = []

    def fails_at_the_third(rows):
        calls.append([row.id for row in rows])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return rank_by_reward(Scorer(), rows)  # pyright: ignore[reportArgumentType]

    with pytest.raises(KeyboardInterrupt):
        main(s, fails_at_the_third)
    assert not (s.output / "rankings.jsonl").exists()
    calls = [None] * 9
    main(s, fails_at_the_third)
    assert calls[9:] == [["copies"], ["many"]]
    for name in ("rankings.jsonl", "preferences.jsonl"):
        assert (s.output / name).read_bytes() == (whole.output / name).read_bytes()


def test_equal_scores_are_a_tie_and_keep_the_order_of_the_input():
    row = Responses(id="q", prompt="Q", responses=["x1", "x2"])
    made = rank_by_reward(Scorer(), [row])["q"]  # pyright: ignore[reportArgumentType]
    assert not isinstance(made, Reject) and made.ranking == [0, 1]
    assert to_preference(row, made).tie and to_preference(row, made).margin == 0


# ---- a judge, in both orders ---------------------------------------------------------------------


class Judge:
    """Says by `verdict(first, second)` which of the two answers is better: 1, 2, or garbage."""

    def __init__(self, verdict):
        self.verdict, self.requests = verdict, []

    def generate(self, requests):
        for request in requests:
            self.requests.append(request)
            text = request.messages[0]["content"]
            first, second = (text.split(f"[Answer {k}]")[1].strip().split("\n")[0] for k in (1, 2))
            said = self.verdict(first, second)
            if isinstance(said, llm.Failure):
                yield llm.Failure(request.id, said.reason, said.detail)
                continue
            answer = render_judgment("why", said, "en") if said in (1, 2) else "no idea"
            yield [
                llm.Completion(
                    id=request.id,
                    sample=0,
                    text=answer,
                    finish_reason="stop",
                    prompt_tokens=9,
                    new_tokens=9,
                )
            ]


OPTIONS = {"template": None, "max_new_tokens": 9, "seed": 0}
CONTESTS = {"q": Contest("Q?", ["good", "bad"])}
MATCH = Match("q", 0, 1)


@pytest.mark.parametrize(
    ("verdict", "p"),
    [
        (lambda a, b: 1 if quality(a) > quality(b) else 2, 1.0),
        (lambda a, b: 2 if quality(a) > quality(b) else 1, 0.0),
        (lambda a, b: 1, 0.5),  # always the first position: the orders cancel out
        (lambda a, b: 1 if a == "good" else "?", 1.0),  # one unreadable: the other decides
        (lambda a, b: "?", None),  # nothing readable is no tie
    ],
)
def test_a_judge_is_asked_in_both_orders_and_unreadable_is_no_verdict(verdict, p):
    judge, failed = Judge(verdict), {}
    assert judge_matches(judge, CONTESTS, [MATCH], failed, **OPTIONS) == [p]
    assert len(judge.requests) == 2 and not failed
    assert all(r.temperature == 0 and r.max_new_tokens == 9 for r in judge.requests)


def test_a_prompt_the_judge_cannot_read_is_left_out_by_its_reason(settings):
    def verdict(first, second):
        return llm.Failure("", "prompt_too_long", "900 tokens") if "x" in first + second else 1

    s = settings(by="judge", tournament="round-robin")
    judge = Judge(verdict)
    main(s, lambda rows: rank_by_matches(s, rows, lambda c, m, f: judge_matches(judge, c, m, f, **OPTIONS)))  # fmt: skip
    rejects = {r["id"]: r["reason"] for r in read(s.output / "rank_responses.rejects.jsonl")}
    assert rejects["many"] == "prompt_too_long"


def test_a_row_without_one_readable_verdict_is_a_reject(settings):
    s = settings(by="judge")
    judge = Judge(lambda a, b: "?")
    rows = [Responses.model_validate(ROWS[0])]
    play = lambda c, m, f: judge_matches(judge, c, m, f, **OPTIONS)  # noqa: E731
    result = rank_by_matches(s, rows, play)["a"]
    assert isinstance(result, Reject) and result.reason == "all_unreadable"


# ---- the models themselves -------------------------------------------------------------------------


def test_the_pairwise_model_s_matches_are_its_comparisons():
    model = pairwise_model()
    contests = {"q": Contest("Q", ["one", "two", "three"]), "r": Contest("R", ["x", "y"])}
    matches = [Match("q", 0, 1), Match("r", 1, 0), Match("q", 2, 1)]
    found = pairwise_matches(model, contests, matches, {})
    for match, p in zip(matches, found, strict=True):
        prompt, responses = contests[match.id]
        alone = next(model.compare([(prompt, responses, [(match.first, match.second)])]))
        assert p == pytest.approx(scorable(alone)[0].p, abs=1e-4)


def test_a_prompt_too_long_for_the_model_is_a_reject_and_others_are_ranked(settings):
    s = settings(by="pairwise")
    model = pairwise_model(max_length=150)
    rows = [
        Responses(id="long", prompt="Q", responses=["x" * 100, "y" * 100]),
        Responses(id="short", prompt="Q", responses=["x", "y"]),
    ]
    found = rank_by_matches(s, rows, lambda c, m, f: pairwise_matches(model, c, m, f))
    assert isinstance(found["long"], Reject) and found["long"].reason == "responses_too_long"
    assert not isinstance(found["short"], Reject)


def test_a_knockout_reads_less_than_its_rounds_one_by_one_and_ends_alike(settings, monkeypatch):
    """Two prompts fit into a batch, five must be ranked: groups of 2, 2 and 1, each with its rounds."""
    s = settings(by="pairwise")
    model = pairwise_model(max_batch_tokens=250)
    rows = [
        Responses(
            id=f"q{k}", prompt=f"Question {k}?", responses=[f"{w} {k}" * 9 for w in "abcdefg"]
        )
        for k in range(5)
    ]
    tokens: list[int] = []
    hook = lambda _, args, options: tokens.append(options["input_ids"].numel())  # noqa: E731
    model.model.register_forward_pre_hook(hook, with_kwargs=True)
    one_by_one = rank_by_matches(s, rows, partial(pairwise_matches, model))
    read_one_by_one = sum(tokens)
    tokens.clear()
    groups: list[int] = []
    large = lambda: groups.append(len(tokens)) or PrefixCache(10_000)  # noqa: E731
    monkeypatch.setattr(model, "new_cache", large)
    found = rank_by_pairwise_model(s, rows, model)
    assert len(groups) == 3 and list(found) == list(one_by_one)
    assert sum(tokens) < 0.8 * read_one_by_one
    for id, ranked in found.items():
        wanted = one_by_one[id]
        assert not isinstance(ranked, Reject) and not isinstance(wanted, Reject)
        assert ranked.ranking == wanted.ranking
        for a, b in zip(ranked.comparisons, wanted.comparisons, strict=True):
            assert (a["first"], a["second"]) == (b["first"], b["second"])
            assert a["p"] == pytest.approx(b["p"], abs=1e-5)


def test_the_reward_model_s_scores_rank(settings):
    model = reward_model()
    row = Responses(id="q", prompt="Q", responses=["one", "two", "three"])
    made = rank_by_reward(model, [row])["q"]
    scores = scorable(next(model.score([("Q", row.responses)])))
    assert not isinstance(made, Reject) and made.scores is not None
    assert made.scores == pytest.approx(sorted(scores, reverse=True), abs=1e-4)


@pytest.mark.parametrize("by", ["reward", "pairwise"])
def test_a_folder_is_loaded_and_ranks(settings, tmp_path, by):
    base = save_base(tmp_path / "base")
    s = settings(by=by, reward_model=str(base), pairwise_model=str(base))
    rank = rank_responses.open_ranker(s)
    (found,) = rank([Responses(id="q", prompt="Q", responses=["one", "two"])]).values()
    assert not isinstance(found, Reject) and sorted(found.ranking) == [0, 1]


@pytest.mark.parametrize("prompt", ["", " \n", [{"role": "user", "content": " "}]])
def test_where_nothing_was_asked_nobody_wins(prompt):
    row = Responses(id="a", prompt=prompt, responses=["good", "bad"])
    found = competitors(row)
    assert isinstance(found, Reject) and found.reason == "empty_prompt"
    asked = Responses(id="a", prompt="Q", responses=["good", "bad"])
    assert competitors(asked) == {0: [0], 1: [1]}
