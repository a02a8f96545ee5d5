"""prefpipe.llm.replies: what was asked and answered is kept, whatever stops the run."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prefpipe import files
from prefpipe.files import DataError
from prefpipe.llm import MANY, Completion, Failure, Request
from prefpipe.llm.replies import Replies
from prefpipe.llm.scripted import ScriptedEngine
from prefpipe.rows import Reject, Row
from prefpipe.settings import NoEffectOnRows, Stage


class Settings(Stage, env_prefix="TEST_REPLIES_"):
    output: Path = Path("unused")
    leave_out_failing: NoEffectOnRows[bool] = False


class Text(Row):
    text: str


def request(id: object, samples: tuple[int, ...] = (0,)) -> Request:
    return Request(str(id), ({"role": "user", "content": f"q{id}"},), samples, temperature=1.0)


def numbered(request: Request, sample: int) -> str:
    return f"{request.messages[0]['content']}/{sample}"


@pytest.fixture
def output(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text('{"id": "row", "text": "of the input"}\n')
    return Path("out.jsonl")


@contextmanager
def a_run(output: Path) -> Iterator[files.Run]:
    """A stage's run; at its end it writes what it has read."""
    source, s = Path("in.jsonl"), Settings(output=output)
    with s.open_run(inputs=[source], outputs={output: Text}) as run:
        yield run
        for row in run.read(source, Text):
            run.emit(row)


class Stopped(Exception):
    """The kill of a test."""


class Killed:
    """Answers so many requests, then dies."""

    def __init__(self, answers: int) -> None:
        self._answers = answers

    def generate(self, requests: Iterable[Request]) -> Iterator[list[Completion] | Failure]:
        for number, result in enumerate(ScriptedEngine(numbered).generate(requests)):
            if number == self._answers:
                raise Stopped
            yield result


class Failing(ScriptedEngine):
    """Gives a Failure in place of the texts of some requests."""

    def __init__(self, failures: list[Failure]) -> None:
        super().__init__(numbered)
        self._failures = {failure.id: failure for failure in failures}

    def generate(self, requests: Iterable[Request]) -> Iterator[list[Completion] | Failure]:
        for result in super().generate(requests):
            assert isinstance(result, list)
            yield self._failures.get(result[0].id, result)


def texts(replies: Replies, id: str, samples: int = 1) -> list[str]:
    reply = replies.of(id, samples)
    assert not isinstance(reply, Reject), reply
    return [completion.text for completion in reply]


def test_a_run_that_goes_on_asks_only_for_what_lacks(output):
    asked = [request(i) for i in range(5)]
    with pytest.raises(Stopped), a_run(output) as run:
        Replies(run, lambda: asked).ask(lambda: Killed(3))
    engine = ScriptedEngine(numbered)
    with a_run(output) as run:
        replies = Replies(run, lambda: asked)
        assert [r.id for r in replies.unanswered()] == ["3", "4"]
        replies.ask(lambda: engine)
        assert [texts(replies, str(i)) for i in range(5)] == [[f"q{i}/0"] for i in range(5)]
    assert [r.id for r in engine.asked] == ["3", "4"]


def test_of_several_samples_only_those_that_lack_are_asked_for(output):
    with pytest.raises(Stopped), a_run(output) as run:
        Replies(run, lambda: [request("a", (1,))]).ask(lambda: ScriptedEngine(numbered))
        raise Stopped
    engine = ScriptedEngine(numbered)
    with a_run(output) as run:
        replies = Replies(run, lambda: [request("a", (0, 1, 2))])
        replies.ask(lambda: engine)
        assert texts(replies, "a", 3) == ["qa/0", "qa/1", "qa/2"]
        assert texts(replies, "a") == ["qa/0"]
    assert [r.samples for r in engine.asked] == [(0, 2)]


def test_no_engine_is_opened_where_all_is_there(output):
    with a_run(output) as run:
        Replies(run, lambda: [request("a")]).ask(lambda: ScriptedEngine(numbered))
        again = Replies(run, lambda: [], "another")
        again.ask(lambda: pytest.fail("a model is loaded for nothing"))


def test_a_failure_becomes_the_reject_of_its_row_and_of_the_row_it_was_asked_for(output):
    failure = Failure("item 7: judge", "prompt_too_long", "9 tokens")
    with a_run(output) as run:
        replies = Replies(run, lambda: [request(failure.id), request("b")])
        replies.ask(lambda: Failing([failure]))
        assert replies.of(failure.id) == Reject(
            id=failure.id, reason="prompt_too_long", detail="9 tokens"
        )
        rejected = replies.of(failure.id, row="item 7")
        assert isinstance(rejected, Reject) and rejected.id == "item 7"
        assert texts(replies, "b") == ["qb/0"]


def test_what_the_server_failed_stops_the_run_and_the_others_are_kept(output):
    asked = [request(i) for i in range(4)]
    failures = [Failure("1", "rate_limited", "HTTP 429"), Failure("2", "bad_request")]
    stops = pytest.raises(
        SystemExit, match=r"1 requests did not pass .*rate_limited, HTTP 429.*kept"
    )
    with stops, a_run(output) as run:
        Replies(run, lambda: asked).ask(lambda: Failing(failures))
    assert not output.exists()
    with a_run(output) as run:
        # failures are asked for again: the server, or the setting at fault, may be another by now
        assert [r.id for r in Replies(run, lambda: asked).unanswered()] == ["1", "2"]


def test_the_samples_of_a_request_that_failed_are_kept_and_not_asked_for_again(output):
    asked = [request("a", (0, 1, 2)), request("b", (0, 1, 2))]
    given = [
        Completion(
            id="a", sample=k, text=f"qa/{k}", finish_reason="stop", prompt_tokens=1, new_tokens=1
        )
        for k in (0, 1)
    ]
    failure = Failure("a", "server_error", "HTTP 500", tuple(given))
    stops = pytest.raises(SystemExit, match=r"1 requests did not pass \(the first: a: server_error")
    with stops, a_run(output) as run:
        Replies(run, lambda: asked).ask(lambda: Failing([failure]))
    engine = ScriptedEngine(numbered)
    with a_run(output) as run:
        replies = Replies(run, lambda: asked)
        replies.ask(lambda: engine)
        assert texts(replies, "a", 3) == ["qa/0", "qa/1", "qa/2"]
    assert [(r.id, r.samples) for r in engine.asked] == [("a", (2,))]


def test_failing_rows_are_left_out_where_that_is_asked_for(output):
    s = Settings(output=output, leave_out_failing=True)
    failure = Failure("b", "server_error", "HTTP 500")
    with s.open_run(inputs=[Path("in.jsonl")], outputs={output: Text}) as run:
        replies = Replies(run, lambda: [request("a"), request("b")])
        replies.ask(lambda: Failing([failure]))
        assert texts(replies, "a") == ["qa/0"]
        assert replies.of("b") == Reject(id="b", reason="server_error", detail="HTTP 500")
        for row in run.read(Path("in.jsonl"), Text):
            run.emit(row)


def test_paid_texts_that_are_of_no_use_stop_the_run_and_are_kept_and_free_ones_do_not(output):
    class Paid(ScriptedEngine):
        def spent(self) -> str:
            return ""

    asked = [request(k) for k in range(3 * MANY)]
    stops = pytest.raises(
        SystemExit, match=f"not one of the first {MANY} replies can be used.*unusable, so"
    )
    with stops, a_run(output) as run:
        Replies(run, lambda: asked).ask(
            lambda: Paid(numbered), fault_of=lambda completion: "so it is"
        )
    with a_run(output) as run:
        replies = Replies(run, lambda: asked)
        assert len(list(replies.unanswered())) == 2 * MANY
        replies.ask(lambda: Paid(numbered), fault_of=lambda completion: "so it is")  # as told
        free = Replies(run, lambda: asked, "free")
        free.ask(lambda: ScriptedEngine(numbered), fault_of=lambda completion: "so it is")


def test_two_kinds_of_requests_of_one_stage_have_a_log_each(output):
    with a_run(output) as run:
        first = Replies(run, lambda: [request("a")], "first")
        second = Replies(run, lambda: [request("a")], "second")
        first.ask(lambda: ScriptedEngine(numbered))
        assert [r.id for r in second.unanswered()] == ["a"]
        second.ask(lambda: ScriptedEngine(lambda request, sample: "another"))
        assert (texts(first, "a"), texts(second, "a")) == (["qa/0"], ["another"])


def test_requests_of_a_second_round_may_depend_on_the_answers_of_the_first(output):
    """As translation has it: what a check refuses is asked for again."""

    def asked_again() -> Iterator[Request]:
        return (request(i) for i in range(3) if texts(first, str(i)) == ["q1/0"])

    with a_run(output) as run:
        first = Replies(run, lambda: map(request, range(3)), "try0")
        second = Replies(run, asked_again, "try1")
        engine = ScriptedEngine(numbered)
        first.ask(lambda: engine)
        second.ask(lambda: engine)
    assert [r.id for r in engine.asked] == ["0", "1", "2", "1"]


def test_what_a_paid_engine_has_spent_is_shown_behind_the_bar(output, monkeypatch):
    class Paid(ScriptedEngine):
        def spent(self) -> str:
            return f"{len(self.asked)} paid"

    notes = []
    monkeypatch.setattr("prefpipe.screen.Progress.note", lambda self, words: notes.append(words))
    with a_run(output) as run:
        Replies(run, lambda: map(request, range(2)), "paid").ask(lambda: Paid(numbered))
        Replies(run, lambda: map(request, range(2)), "free").ask(lambda: ScriptedEngine(numbered))
    assert notes == ["1 paid", "2 paid"]


def test_what_texts_took_stands_in_the_summary_and_money_where_it_is_known(output):
    """A prompt counts once for all of its samples; of an engine that has worked before, what is new."""

    class Priced(ScriptedEngine):
        usd = 5.0

        def generate(self, requests):
            for result in super().generate(requests):
                self.usd += 0.25
                assert isinstance(result, list)
                yield [c.model_copy(update={"prompt_tokens": 7, "new_tokens": 3}) for c in result]

    with a_run(output) as run:
        Replies(run, lambda: [request("a", (0, 1)), request("b", (0, 1))], "x").ask(
            lambda: Priced(numbered)
        )
        assert run.spent() == {"tokens": {"prompt": 14, "new": 12}, "usd": 0.5}
        Replies(run, lambda: [request("c")], "y").ask(lambda: Priced(numbered))
        assert run.spent() == {"tokens": {"prompt": 21, "new": 15}, "usd": 0.75}
    with a_run(output.with_name("other.jsonl")) as run:
        Replies(run, lambda: [request("a")]).ask(lambda: ScriptedEngine(numbered))
        assert "usd" not in run.spent()


@pytest.mark.parametrize(
    ("prompts", "samples", "varied", "is_said"),
    [
        (MANY, (0, 1), 0, True),
        (MANY - 1, (0, 1), 0, False),
        (MANY, (0, 1), 1, False),  # one prompt has two texts: it does sample
        (MANY, (0,), 0, False),
    ],
)
def test_a_server_that_gives_every_sample_the_same_text_is_told_of(
    output, capsys, prompts, samples, varied, is_said
):
    def answer(request: Request, sample: int) -> str:
        return f"text {sample}" if int(request.id) < varied else "text"

    with a_run(output) as run:
        asked = [request(k, samples) for k in range(prompts)]
        Replies(run, lambda: asked).ask(lambda: ScriptedEngine(answer))
    said = f"each of {prompts} prompts; is the temperature 0, or does the server not sample?"
    assert (said in capsys.readouterr().err) == is_said


def test_a_stopped_run_whose_log_holds_other_rows_is_refused(output):
    """An earlier version kept rows in it: to read them as what a model wrote would be wrong."""
    with pytest.raises(Stopped), a_run(output) as run:
        run.open_log(Text).add(Text(id="a", text="a row of another kind"))
        raise Stopped
    with pytest.raises(DataError, match=r"partial\.jsonl:"), a_run(output) as run:
        Replies(run, lambda: [request("a")])
    assert not output.exists()
