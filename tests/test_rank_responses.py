"""rank_responses: three rankers, the stated rules, a stopped run; scripted judges, known scores."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import rank_responses
from prefpipe import llm
from prefpipe.compare.matches import Contest, Standings, hold
from prefpipe.compare.openers import by_reward
from prefpipe.compare.rankings import to_ranking
from prefpipe.models.classifiers import load_classifier
from prefpipe.rows import Reject, Responses
from rank_responses import Settings, main, to_contest, to_preference, why_not
from tests.known_opinions import AnswerJudge, KnownRewards, by_quality, quality
from tests.preference_data import save_base, write_jsonl

ROWS = [
    {"id": "a", "prompt": "Q a", "responses": ["bad", "good", "fair"], "right": [False, True, False]},
    {"id": "b", "prompt": [{"role": "user", "content": "Q b"}], "responses": ["good", "bad"]},
    {"id": "copies", "prompt": "Q", "responses": ["bad", "good", " bad ", "", "good"]},
    {"id": "one", "prompt": "Q", "responses": ["good", "good", " "]},
    {"id": "many", "prompt": "Q", "responses": [f"x{k}" for k in range(6)] + ["good"]},
    {"id": "wrong", "prompt": "Q", "responses": ["good", "bad"], "right": [True]},
]  # fmt: skip


def known_rewards(contests, _):
    return by_reward(KnownRewards(), contests)  # pyright: ignore[reportArgumentType]


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
    main(s, known_rewards)
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
    main(s, lambda contests, kind: hold(contests, by_quality, kind, seed=s.seed))
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
    main(whole, known_rewards)
    s = settings(output=tmp_path / "stopped", prompts_at_once=1)
    calls: list[list[str] | None] = []

    def fails_at_the_third(contests, kind):
        calls.append([*contests])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return known_rewards(contests, kind)

    with pytest.raises(KeyboardInterrupt):
        main(s, fails_at_the_third)
    assert not (s.output / "rankings.jsonl").exists()
    calls = [None] * 9
    main(s, fails_at_the_third)
    assert calls[9:] == [["copies"], ["many"]]
    for name in ("rankings.jsonl", "preferences.jsonl"):
        assert (s.output / name).read_bytes() == (whole.output / name).read_bytes()


def test_what_was_scored_together_is_scored_together_again_after_a_stop(settings, tmp_path):
    """Scores that depend on their window, as a model's last digits do."""

    def by_window(contests, _) -> Standings:
        standings = known_rewards(contests, None)
        nudge = len(contests) * 1e-8
        return {
            id: replace(standing, strengths=[x + nudge for x in standing.strengths or ()])
            for id, standing in standings.items()
            if not isinstance(standing, Reject)
        }

    whole = settings(output=tmp_path / "whole", prompts_at_once=3)
    main(whole, by_window)
    log = tmp_path / "stopped" / ".rank_responses.partial.jsonl"
    for cut in range(1, 4):
        s = settings(output=log.parent, prompts_at_once=3, overwrite=True)
        with pytest.raises(KeyboardInterrupt):
            main(s, _interrupting(by_window, after=1))
        lines = log.read_bytes().splitlines(keepends=True)
        log.write_bytes(
            b"".join(lines[: 1 + cut])
        )  # within the first window, of "a", "b", "copies"
        main(settings(output=log.parent, prompts_at_once=3), by_window)
        for name in ("rankings.jsonl", "preferences.jsonl"):
            assert (s.output / name).read_bytes() == (whole.output / name).read_bytes()


def _interrupting(rank, after: int):
    calls = iter(range(after))

    def interrupting(contests, kind):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return rank(contests, kind)

    return interrupting


def test_a_judge_is_asked_no_verdict_twice_however_the_run_was_stopped(settings, tmp_path):
    """A knockout of seven, stopped before each verdict in turn: what was said is on disk."""

    def better(first, second):
        return 1 if quality(first) > quality(second) else 2

    whole, judge = settings(by="judge", output=tmp_path / "whole"), AnswerJudge(better)
    main(whole, judge=judge)
    total = len(judge.requests)
    assert total == 2 * (2 + 1 + 1 + 6)  # both orders of n - 1 matches
    for said in (1, 6, total - 3):
        s = settings(by="judge", output=tmp_path / f"stopped{said}")
        budget = iter(range(said))

        def one_more(first, second, budget=budget):
            if next(budget, None) is None:
                raise KeyboardInterrupt
            return better(first, second)

        with pytest.raises(KeyboardInterrupt):
            main(s, judge=AnswerJudge(one_more))
        again = AnswerJudge(better)
        main(s, judge=again)
        assert len(again.requests) == total - said
        for name in ("rankings.jsonl", "preferences.jsonl"):
            assert (s.output / name).read_bytes() == (whole.output / name).read_bytes()


def test_a_judge_whose_server_fails_keeps_what_it_said(settings):
    def verdict(first, second):
        return llm.Failure("", "timeout", "600 s") if "fair" in first + second else 1

    s = settings(by="judge", tournament="round-robin")
    with pytest.raises(SystemExit, match=r"did not pass .*timeout, 600 s.*asks for these again"):
        main(s, judge=AnswerJudge(verdict))
    again = AnswerJudge(lambda first, second: 1)
    main(s, judge=again)
    assert all("fair" in r.messages[0]["content"] for r in again.requests)


def test_equal_scores_are_a_tie_and_keep_the_order_of_the_input():
    row = Responses(id="q", prompt="Q", responses=["x1", "x2"])
    standing = known_rewards({"q": to_contest(row)}, None)["q"]
    assert not isinstance(standing, Reject)
    ranking = to_ranking(row, standing, "reward", None)
    preference = to_preference(row, ranking)
    assert ranking.ranking == [0, 1] and preference.tie and preference.margin == 0


def test_a_prompt_the_judge_cannot_read_is_left_out_by_its_reason(settings):
    def verdict(first, second):
        return llm.Failure("", "prompt_too_long", "900 tokens") if "x" in first + second else 1

    s = settings(by="judge", tournament="round-robin")
    main(s, judge=AnswerJudge(verdict))
    rejects = {r["id"]: r["reason"] for r in read(s.output / "rank_responses.rejects.jsonl")}
    assert rejects["many"] == "prompt_too_long"


@pytest.mark.parametrize("by", ["reward", "pairwise"])
def test_a_folder_is_loaded_and_ranks(settings, tmp_path, by, monkeypatch):
    base = save_base(tmp_path / "base")
    monkeypatch.setattr("prefpipe.compare.ab_model.MOST_OUTSIDE", 1.0)  # it answers anything
    if by == "reward":
        load_classifier(base, new_head=True)[0].save_pretrained(base)
    s = settings(by=by, reward_model=str(base), pairwise_model=str(base))
    rank = rank_responses.open_ranker(s, s.open_run(inputs=[s.input], outputs={}, home=s.output))
    (standing,) = rank({"q": Contest("Q", ["one", "two"], [0, 1])}, "knockout").values()
    assert not isinstance(standing, Reject) and sorted(standing.order) == [0, 1]
    assert (standing.outside is None) == (by == "reward")
    if standing.outside is not None:  # of all its tokens A and B are two
        assert 0.5 < standing.outside < 1


def test_a_model_that_answers_neither_a_nor_b_is_refused(settings, tmp_path):
    s = settings(by="pairwise", pairwise_model=str(save_base(tmp_path / "base")))
    rank = rank_responses.open_ranker(s, s.open_run(inputs=[s.input], outputs={}, home=s.output))
    with pytest.raises(SystemExit, match=r"\d+% of its probability is on neither A nor B"):
        rank({"q": Contest("Q", ["one", "two"], [0, 1])}, "knockout")


@pytest.mark.parametrize("prompt", ["", " \n", [{"role": "user", "content": " "}]])
def test_where_nothing_was_asked_nobody_wins(prompt):
    row = Responses(id="a", prompt=prompt, responses=["good", "bad"])
    reject = why_not(row)
    assert reject is not None and reject.reason == "empty_question"
    assert why_not(Responses(id="a", prompt="Q", responses=["good", "bad"])) is None


def test_the_score_s_temperature_goes_by_its_short_name_too():
    for option in ("--temperature", "--score-temperature"):
        assert Settings.from_command_line([option, "2.5"]).score_temperature == 2.5


def test_a_folder_of_our_own_rows_is_read_as_such(settings, tmp_path):
    (tmp_path / "mine").mkdir()
    write_jsonl(tmp_path / "mine/train.jsonl", ROWS[:2])
    s = settings(input=tmp_path / "mine")
    main(s, known_rewards)
    assert [r["id"] for r in read(s.output / "rankings.jsonl")] == ["a", "b"]
