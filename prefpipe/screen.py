"""What a person sees while a stage runs and at its end: tables and progress bars, by rich.

Where standard output is no terminal a table is plain text, without colour and as wide as it needs to
be; where standard error is none there is no bar.
"""

import os
import re
import sys
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


class Progress(Generic[T]):
    """The rows, with count, rate and time left on stderr; quiet where that is no terminal."""

    def __init__(self, rows: Iterable[T], total: int | None, what: str) -> None:
        self._rows, self._total, self._what, self._bar = rows, total, what, None

    def note(self, words: str) -> None:
        """Show these words behind the bar, tokens and money spent for example."""
        if self._bar is not None:
            self._bar.update(self._task, note=words)

    def __iter__(self) -> Iterator[T]:
        if not sys.stderr.isatty():
            yield from self._rows
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
    """The rows with a progress bar; total: how many they are, None where that is not known."""
    return Progress(rows, total, what)
