"""What requests came to, one behind the other: whether it is a row that fails, or all of them would.

A server has many words for a wrong setting, and none of them has to be known: where the first MANY
requests fail alike, or none at all has passed, the rows are not to blame.
"""

from collections.abc import Container, Sequence

from prefpipe.llm import MANY, SERVER_FAILURES, Failure

UNUSABLE = "unusable"
"""Reason of a Failure that stands for a text that came and is of no use; of no row."""
_SAY_NOTHING = frozenset({"prompt_too_long", "batch_unreadable"})
"""Reasons of a row, or a batch, whatever becomes of the others."""
_OF_ALL = frozenset({"bad_request", "garbled_reply", "too_few_choices"})
_PATIENCE = 5 * MANY  # failures in a row, in place of MANY, where failing rows are left out


class Outcomes:
    """Watches the results of one ask; each method raises SystemExit where no more should be asked."""

    def __init__(self, nothing_before: bool, leaves_out: bool) -> None:
        """nothing_before: no request of this kind has passed in an earlier run. leaves_out: rows
        that fail are left out."""
        self.nothing_passed, self._leaves_out = nothing_before, leaves_out
        self._failures: list[Failure] = []
        """In a row: since the last request that passed."""

    def add(self, failure: Failure | None) -> None:
        """One result more; None: a text."""
        if failure is None:
            self.nothing_passed = False
            self._failures.clear()
        elif failure.reason not in _SAY_NOTHING:
            self._failures.append(failure)
            self._check()

    def _check(self) -> None:
        most = _PATIENCE if self._leaves_out else MANY
        last = self._failures[-most:]
        if len(last) == most and all(failure.reason in SERVER_FAILURES for failure in last):
            raise SystemExit(passes_later(last, "in a row"))
        # what the server had no part in; one that failed for another reason between them changes nothing
        failures = [f for f in self._failures if f.reason not in SERVER_FAILURES][-most:]
        reasons = {failure.reason for failure in failures}
        if self.nothing_passed and len(failures) == most and len(reasons) == 1:
            if reasons == {UNUSABLE}:
                raise SystemExit(
                    f"not one of the first {len(failures)} replies can be used {_shown(failures)}; they "
                    "are kept and not paid again; the same command asks for the rest all the same"
                )
            raise SystemExit(
                f"the first {len(failures)} requests all failed alike {_shown(failures)}; {_ADVICE}"
            )

    def end(self, asked_again: Container[str] = ()) -> None:
        """Behind the last result. asked_again: reasons of failures that another try may not have."""
        reasons = {failure.reason for failure in self._failures}
        is_alike = len(reasons) == 1 and all(
            r not in asked_again and (r in _OF_ALL or r.startswith("batch_")) for r in reasons
        )
        if self.nothing_passed and is_alike and not self._leaves_out:
            raise SystemExit(
                f"not one of {len(self._failures)} requests got a text {_shown(self._failures)}; {_ADVICE}"
            )


_ADVICE = "mend what it names, or see --leave-out-options; the same command asks again"


def passes_later(failures: Sequence[Failure], how: str = "") -> str:
    """The sentence that ends a run whose requests may pass in the next one."""
    return (
        f"{len(failures)} requests did not pass {how}{' ' if how else ''}{_shown(failures)}; all others "
        "are kept: the same command asks for these again, --leave-out-failing leaves them out"
    )


def _shown(failures: Sequence[Failure]) -> str:
    """The first one, with the row that it is of."""
    first = failures[0]
    id, detail = " ".join(first.id.split()), first.detail
    shown = f"{id[:27]}...: " if len(id) > 30 else f"{id}: "
    return f"(the first: {shown}{first.reason}, {detail[:87]}{'...' if len(detail) > 87 else ''})"
