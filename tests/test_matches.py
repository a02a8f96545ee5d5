"""prefpipe.compare.matches, openers: a pairwise model's and a judge's matches, and who ranks by them."""

from functools import partial

import pytest

from prefpipe import llm
from prefpipe.compare.matches import Contest, JudgeMatches, hold, pairwise_matches
from prefpipe.compare.openers import by_implicit_reward, by_pairwise, by_reward
from prefpipe.compare.tournament import Match
from prefpipe.files import Run, StageFacts
from prefpipe.models.prefix_cache import PrefixCache
from prefpipe.rows import Reject
from tests.known_opinions import AnswerJudge, quality
from tests.test_ab_model import pairwise_model
from tests.test_reward_model import reward_model
from tests.training_models import scorable


def contest(*responses: str, prompt: str = "Q?") -> Contest:
    return Contest(prompt, responses, range(len(responses)))


# ---- a judge, in both orders ---------------------------------------------------------------------

CONTESTS = {"q": contest("good", "bad")}
MATCH = Match("q", 0, 1)


@pytest.fixture
def judge_matches(tmp_path):
    """The matches of a scripted judge, in a run of their own."""

    def made(judge: AnswerJudge, **changes) -> JudgeMatches:
        facts = StageFacts("test", {}, {}, limit=None, overwrite=False, strict=False, **changes)
        output = tmp_path / f"out{len(list(tmp_path.iterdir()))}.jsonl"
        run = Run(facts, inputs=[], outputs={output: Reject})
        return JudgeMatches(run, lambda: judge, template=None, max_new_tokens=9, seed=0)

    return made


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
def test_a_judge_is_asked_in_both_orders_and_unreadable_is_no_verdict(verdict, p, judge_matches):
    judge = AnswerJudge(verdict)
    assert judge_matches(judge)(CONTESTS, [MATCH]) == [p]
    assert [request.id for request in judge.requests] == ["q\t0\t1", "q\t1\t0"]
    assert all(r.temperature == 0 and r.max_new_tokens == 9 for r in judge.requests)


def test_a_judge_that_cannot_take_one_order_gives_no_outcome(judge_matches):
    failure = llm.Failure("", "prompt_too_long", "900 tokens")
    judge = AnswerJudge(lambda first, second: 1 if first == "good" else failure)
    reject = Reject(id="q", reason="prompt_too_long", detail="900 tokens")
    assert judge_matches(judge)(CONTESTS, [MATCH]) == [reject]


def test_a_server_s_failure_stops_the_run_or_leaves_the_prompt_out(judge_matches):
    judge = AnswerJudge(lambda first, second: llm.Failure("", "timeout", "600 s"))
    with pytest.raises(
        SystemExit, match=r"did not pass \(the first: .*timeout, 600 s\).*--leave-out"
    ):
        judge_matches(judge)(CONTESTS, [MATCH])
    reject = Reject(id="q", reason="timeout", detail="600 s")
    assert judge_matches(judge, leave_out_failing=True)(CONTESTS, [MATCH]) == [reject]


def test_where_not_one_verdict_can_be_read_there_is_no_standing(judge_matches):
    play = judge_matches(AnswerJudge(lambda a, b: "?"))
    standing = hold({"q": contest("bad", "good", "fair")}, play, "knockout", seed=0)["q"]
    assert isinstance(standing, Reject) and standing.reason == "all_unreadable"


def test_a_prompt_that_cannot_be_compared_is_asked_about_no_more():
    asked: list[str] = []

    def play(contests, matches):
        asked.extend(match.id for match in matches)
        return [Reject(id=m.id, reason="too_long") if m.id == "bad" else 0.9 for m in matches]

    contests = {"bad": contest(*"abcd"), "fine": contest(*"abcd")}
    standings = hold(contests, play, "knockout", seed=0)
    assert standings["bad"] == Reject(id="bad", reason="too_long")
    assert not isinstance(standings["fine"], Reject)
    assert (asked.count("bad"), asked.count("fine")) == (2, 3)  # of three matches, two in round one


# ---- the models themselves -------------------------------------------------------------------------


def test_an_implicit_reward_is_the_gain_in_log_probability():
    class Engine:
        def __init__(self, of):
            self.of = of

        def score(self, prompted):
            for messages, answers in prompted:
                assert messages == [{"role": "user", "content": "Q?"}]
                if "too long" in answers:
                    yield llm.Failure("0", "prompt_too_long", "9 tokens")
                else:
                    yield [type("S", (), {"sum_logp": self.of[a]}) for a in answers]

    base, tuned = Engine({"a": -3.0, "b": -1.0}), Engine({"a": -2.0, "b": -4.0})
    contests = {"1": contest("b", "a"), "2": contest("too long", "b")}
    standings = by_implicit_reward(base, tuned, contests)
    first = standings["1"]
    assert not isinstance(first, Reject)
    assert (first.order, first.strengths) == ([1, 0], [1.0, -3.0])
    assert standings["2"] == Reject(id="2", reason="prompt_too_long", detail="9 tokens")


def test_a_reward_model_ranks_those_who_compete():
    model = reward_model()
    responses = ["one", "two", "three"]
    standing = by_reward(model, {"q": Contest("Q", responses, [0, 2])})["q"]
    scores = scorable(next(model.score([("Q", [responses[0], responses[2]])])))
    assert not isinstance(standing, Reject) and set(standing.order) == {0, 2}
    assert standing.strengths == pytest.approx(sorted(scores, reverse=True), abs=1e-4)


def test_the_pairwise_model_s_matches_are_its_comparisons():
    model = pairwise_model()
    contests = {"q": contest("one", "two", "three"), "r": contest("x", "y", prompt="R")}
    matches = [Match("q", 0, 1), Match("r", 1, 0), Match("q", 2, 1)]
    outcomes = pairwise_matches(model, contests, matches)
    for match, p in zip(matches, outcomes, strict=True):
        prompt, responses, _ = contests[match.id]
        alone = next(model.compare([(prompt, responses, [(match.first, match.second)])]))
        assert p == pytest.approx(scorable(alone)[0].p, abs=1e-4)


def test_a_prompt_too_long_for_the_model_is_a_reject_and_others_are_ranked():
    model = pairwise_model(max_length=150)
    contests = {"long": contest("x" * 100, "y" * 100), "short": contest("x", "y")}
    standings = by_pairwise(model, contests, "knockout", seed=0)
    long = standings["long"]
    assert isinstance(long, Reject) and long.reason == "responses_too_long"
    assert not isinstance(standings["short"], Reject)


def test_a_knockout_reads_less_than_its_rounds_one_by_one_and_ends_alike(monkeypatch):
    """Two prompts fit into a batch, five must be ranked: groups of 2, 2 and 1, each with its rounds."""
    model = pairwise_model(max_batch_tokens=250)
    contests = {
        f"q{k}": contest(*(f"{w} {k}" * 9 for w in "abcdefg"), prompt=f"Question {k}?")
        for k in range(5)
    }
    tokens: list[int] = []
    hook = lambda _, args, options: tokens.append(options["input_ids"].numel())  # noqa: E731
    model.model.register_forward_pre_hook(hook, with_kwargs=True)
    one_by_one = hold(contests, partial(pairwise_matches, model), "knockout", seed=0)
    read_one_by_one = sum(tokens)
    tokens.clear()
    groups: list[int] = []
    large = lambda: groups.append(len(tokens)) or PrefixCache(10_000)  # noqa: E731
    monkeypatch.setattr(model, "new_cache", large)
    standings = by_pairwise(model, contests, "knockout", seed=0)
    assert len(groups) == 3 and list(standings) == list(one_by_one)
    assert sum(tokens) < 0.8 * read_one_by_one
    for id, standing in standings.items():
        wanted = one_by_one[id]
        assert not isinstance(standing, Reject) and not isinstance(wanted, Reject)
        assert standing.order == wanted.order
        for a, b in zip(standing.played, wanted.played, strict=True):
            assert (a.first, a.second) == (b.first, b.second)
            assert a.p == pytest.approx(b.p, abs=1e-5)
