"""What a person sees while a stage runs and at its end: tables and progress bars, by rich.

Where standard output is no terminal a table is plain text, without colour and as wide as it needs to
be; where standard error is none progress is a line a minute.
"""

import functools
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def quiet_libraries() -> None:
    """Let the libraries report nothing to anyone and warn of nothing; before they are imported."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import transformers

    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of TRL and transformers, mutually
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()


def visible(text: str) -> str:
    """The text of a file or a server as a terminal may show it: what would be orders to the terminal
    (colours, titles, the other way of writing) is a blank."""
    return "".join(c if c.isprintable() or c in "\n\t" else " " for c in text)


_MOST = 300
"""Characters of a sentence that says what is wrong."""


def short_sentence(sentence: str) -> str:
    """The sentence as a screen shows it: names and values that go on for ever are cut in their middle,
    and so is what is too long still, since the place stands before and what to do behind."""
    text = re.sub(r"\S{160,}", lambda word: f"{word[0][:70]}...{word[0][-70:]}", visible(sentence))
    if len(text) <= _MOST:
        return text
    return f"{text[: _MOST // 2]} ... {text[5 - _MOST // 2 :]}"


_WIDE = 500
"""Columns of a page that is no terminal: nothing is wrapped."""


def table_text(header: Sequence[str], rows: Iterable[Sequence[str]], *, plain: bool = True) -> str:
    """Lines of a table, the first column left, all columns as wide as they must be.

    plain: as in a file; else with a terminal's colours and width. No line ends in white space.
    """
    from rich import box, table, text
    from rich.console import Console

    made = table.Table(box=None if plain else box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for name in header:
        made.add_column(text.Text(name))
    for row in rows:
        made.add_row(
            *(text.Text(visible(cell)) for cell in row)
        )  # as Text, since brackets in data are no markup
    page = StringIO()
    width = _WIDE if plain else None
    console = Console(file=page, width=width, force_terminal=not plain, no_color=plain)
    console.print(made)
    return "\n".join(line.rstrip() for line in page.getvalue().rstrip("\n").split("\n"))


def show_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print the table: in colour on a terminal, plain elsewhere."""
    print(table_text(header, rows, plain=not sys.stdout.isatty()))


LINE_SECONDS, SILENT_SECONDS = 60.0, 300.0
"""In a log file: the least time between two lines of progress, and the most where nothing moves."""


class _Step:
    """Something that takes long: how far it is, and how a log file says so."""

    def __init__(
        self, what: str, total: int | None, count: Callable[[], int] | None = None
    ) -> None:
        """count: asked where the step does not count by itself."""
        self.what, self.total, self._asked = what, total, count
        self.done: int | None = None
        """None: it does not count."""
        self.note = ""
        self.shown_at = 0
        """The count in its last line."""
        self._began = time.monotonic()

    @property
    def count(self) -> int:
        return self._asked() if self._asked else self.done or 0

    def line(self) -> str:
        seconds, count = time.monotonic() - self._began, self.count
        if not self._asked and self.done is None:
            return f"{self.what}: {_clock(seconds)} so far"
        of = "" if self.total is None else f" of {self.total:,}"
        rows = " rows" if self._asked else ""
        rate = count / seconds
        left = f", {_clock((self.total - count) / rate)} left" if self.total and rate else ""
        note = f"; {self.note}" if self.note else ""
        return f"{self.what}: {count:,}{of}{rows} in {_clock(seconds)}{left}{note}"


class _LogLines:
    """Progress where standard error is a file: a line a minute while something moves, and one in five
    minutes while nothing does, so that a log tells a long step from a hang. Of steps inside steps the
    innermost is told of. From a thread of its own, since a row may take an hour."""

    def __init__(self) -> None:
        self._steps: list[_Step] = []
        self._ended = threading.Event()
        self._lock = threading.Lock()

    @contextmanager
    def during(self, step: _Step) -> Iterator[None]:
        with self._lock:
            self._steps.append(step)
            if len(self._steps) == 1:
                self._ended = threading.Event()
                threading.Thread(target=self._run, args=[self._ended], daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                self._steps.remove(step)
                if not self._steps:
                    self._ended.set()

    def _run(self, ended: threading.Event) -> None:
        told = time.monotonic()
        while not ended.wait(LINE_SECONDS):
            with self._lock:
                step = self._steps[-1] if self._steps else None
            if step and (step.count > step.shown_at or time.monotonic() - told >= SILENT_SECONDS):
                told, step.shown_at = time.monotonic(), step.count
                print(step.line(), file=sys.stderr, flush=True)


_log_lines = _LogLines()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


@functools.cache
def _terminal() -> Any:
    """Standard error: one console for all bars, so that those inside others share its lines."""
    from rich.console import Console

    return Console(stderr=True)


def _bar(*columns: Any, **options: Any) -> Any:
    from rich.progress import Progress as Bar

    # standard output that goes elsewhere stays there; on the same terminal it is printed above
    return Bar(*columns, console=_terminal(), redirect_stdout=sys.stdout.isatty(), **options)


@contextmanager
def working(what: str, count: Callable[[], int] | None = None) -> Iterator[None]:
    """Show on stderr that a step is under way whose length nobody knows: loading, a whole stage.

    count: the rows that it has read so far.
    """
    if not sys.stderr.isatty():
        with _log_lines.during(_Step(what, None, count)):
            yield
        return
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    class Rows(TextColumn):
        def render(self, task: Any) -> Any:
            task.fields["rows"] = f"{n:,} rows" if count and (n := count()) else ""
            return super().render(task)

    columns = (SpinnerColumn(), TextColumn("{task.description}"), Rows("{task.fields[rows]}"))
    with _bar(*columns, TimeElapsedColumn(), transient=True) as bar:
        bar.add_task(what, total=None, rows="")
        yield


class Progress(Generic[T]):
    """The rows, with count, rate and time left on stderr: a bar, or where that is no terminal lines."""

    def __init__(self, rows: Iterable[T], total: int | None, what: str) -> None:
        self._rows, self._total, self._what = rows, total, what
        self._bar: Any = None
        self._step: _Step | None = None
        self._note = ""

    def note(self, words: str) -> None:
        """Show these words behind the bar, tokens and money spent for example."""
        self._note = words
        if self._step is not None:
            self._step.note = words
        if self._bar is not None:
            self._bar.update(self._task, note=words)

    def __iter__(self) -> Iterator[T]:
        if not sys.stderr.isatty():
            self._step = step = _Step(self._what, self._total)
            step.done, step.note = 0, self._note
            with _log_lines.during(step):
                for row in self._rows:
                    yield row
                    step.done += 1
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns: list[Any] = [
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        ]
        with _bar(*columns) as bar:
            self._bar = bar
            self._task = bar.add_task(self._what, total=self._total, note="", rate="")
            for row in self._rows:
                yield row
                speed = bar.tasks[0].speed
                bar.update(self._task, advance=1, rate=f"{speed:.1f}/s" if speed else "")
        self._bar = None


def progress(rows: Iterable[T], total: int | None, what: str) -> Progress[T]:
    """The rows with their progress; total: how many they are, None where that is not known."""
    return Progress(rows, total, what)
