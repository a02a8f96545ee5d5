"""What a person sees while a stage runs and at its end: tables and progress bars, by rich.

Where standard output is no terminal a table is plain text, without colour and as wide as it needs to
be; where standard error is none progress is a line a minute.
"""

import os
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
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


class _Lines:
    """Progress where standard error is a file: a line a minute while rows come, and one in five
    minutes while none does, so that a log tells a long step from a hang. From a thread of its own,
    since a row may take an hour."""

    def __init__(self, total: int | None, what: str) -> None:
        self._total, self._what = total, what
        self.count, self.note = 0, ""
        self._began = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "_Lines":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        said, at = 0, self._began
        while not self._ended.wait(LINE_SECONDS):
            now = time.monotonic()
            if self.count > said or now - at >= SILENT_SECONDS:
                print(self._line(now - self._began), file=sys.stderr, flush=True)
                said, at = self.count, now

    def _line(self, seconds: float) -> str:
        rate = self.count / seconds
        of = "" if self._total is None else f" of {self._total:,}"
        left = (
            ""
            if self._total is None or not rate
            else f", {_clock((self._total - self.count) / rate)} left"
        )
        note = f"; {self.note}" if self.note else ""
        return f"{self._what}: {self.count:,}{of} in {_clock(seconds)}{left}{note}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


class Progress(Generic[T]):
    """The rows, with count, rate and time left on stderr: a bar, or where that is no terminal lines."""

    def __init__(self, rows: Iterable[T], total: int | None, what: str) -> None:
        self._rows, self._total, self._what = rows, total, what
        self._bar: Any = None
        self._lines: _Lines | None = None
        self._note = ""

    def note(self, words: str) -> None:
        """Show these words behind the bar, tokens and money spent for example."""
        self._note = words
        if self._lines is not None:
            self._lines.note = words
        if self._bar is not None:
            self._bar.update(self._task, note=words)

    def __iter__(self) -> Iterator[T]:
        if not sys.stderr.isatty():
            with _Lines(self._total, self._what) as lines:
                self._lines, lines.note = lines, self._note
                for row in self._rows:
                    yield row
                    lines.count += 1
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bar

        columns: list[Any] = [
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        ]
        with Bar(*columns, console=Console(stderr=True)) as bar:
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
