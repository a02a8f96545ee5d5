"""llm.outcomes: one row that fails, or all of them would; no server's words are needed."""

import pytest

from prefpipe.llm import MANY, Failure
from prefpipe.llm.outcomes import UNUSABLE, Outcomes

LEAVES_OUT = 5 * MANY


def failure(reason: str, number: int = 0) -> Failure:
    return Failure(
        f"p{number}\thonesty", reason, "HTTP 400: in words that nobody knows " + "x" * 300
    )


def watch(nothing_before=True, leaves_out=False) -> Outcomes:
    return Outcomes(nothing_before, leaves_out)


@pytest.mark.parametrize(
    "reason", ["bad_request", "garbled_reply", "refused", "content_filter", "batch_error"]
)
def test_where_the_first_requests_all_fail_alike_it_stops_and_names_the_first(reason):
    outcomes = watch()
    for number in range(MANY - 1):
        outcomes.add(failure(reason, number))
    with pytest.raises(SystemExit) as end:
        outcomes.add(failure(reason))
    said = str(end.value)
    assert (
        f"first {MANY} requests all failed alike (the first: p0 honesty: {reason}, HTTP 400" in said
    )
    assert len(said) < 300


@pytest.mark.parametrize(
    ("before", "reasons"),
    [
        (False, ["bad_request"] * 3 * MANY),  # a run before this one had texts
        (True, [None, *["bad_request"] * 3 * MANY]),
        (True, ["bad_request", "content_filter"] * 3 * MANY),  # of the rows, it seems
        (True, ["prompt_too_long"] * 3 * MANY),
        (True, ["batch_unreadable"] * 3 * MANY),  # of a batch
        (True, [*["server_error"] * (MANY - 1), None] * 5),
    ],
    ids=str,
)
def test_rows_that_fail_beside_others_stop_nothing(before, reasons):
    outcomes = watch(before)
    for reason in reasons:
        outcomes.add(reason and failure(reason))
    if False in (before,) or None in reasons:
        outcomes.end()


def test_nothing_but_errors_of_the_server_in_a_row_stops_also_where_others_had_passed():
    outcomes = watch(False)
    outcomes.add(None)
    with pytest.raises(
        SystemExit, match=rf"{MANY} requests did not pass in a row.*all others are kept"
    ):
        for number in range(MANY):
            outcomes.add(failure("server_error" if number % 2 else "timeout", number))


def test_where_failing_rows_are_left_out_it_waits_longer():
    outcomes = watch(leaves_out=True)
    for number in range(LEAVES_OUT - 1):
        outcomes.add(failure("server_error", number))
    with pytest.raises(SystemExit, match=f"{LEAVES_OUT} requests did not pass in a row"):
        outcomes.add(failure("server_error"))


def test_at_the_end_of_a_few_requests_that_were_all_refused_it_stops():
    for leaves_out in (False, True):
        outcomes = watch(leaves_out=leaves_out)
        outcomes.add(failure("bad_request"))
        if leaves_out:
            outcomes.end()
            continue
        outcomes.end(asked_again={"bad_request"})
        with pytest.raises(SystemExit, match="not one of 1 requests got a text"):
            outcomes.end()


def test_of_rows_that_are_to_blame_themselves_a_few_are_no_reason_to_stop():
    for reason in ("prompt_too_long", "refused", "content_filter"):
        outcomes = watch()
        outcomes.add(failure(reason))
        outcomes.end()


def test_texts_that_came_and_are_of_no_use_stop_at_many_of_them():
    outcomes = watch()
    with pytest.raises(SystemExit, match=f"not one of the first {MANY} replies can be used.*kept"):
        for number in range(MANY):
            outcomes.add(failure(UNUSABLE, number))


def test_one_that_failed_otherwise_hides_no_refusal_of_all():
    outcomes = watch()
    outcomes.add(failure("timeout"))
    with pytest.raises(SystemExit, match="all failed alike"):
        for k in range(MANY):
            outcomes.add(failure("bad_request", k))
