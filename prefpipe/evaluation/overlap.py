"""How much of a benchmark was trained on: word n-grams that its questions share with training texts."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from prefpipe.evaluation import held_out
from prefpipe.evaluation.held_out import Measured
from prefpipe.files import DataError, Run
from prefpipe.formats.opening import HowRead, OpenFile
from prefpipe.rows import Preference, Question, answer_of, flatten_turns
from prefpipe.words import split_words


class Overlap:
    """How much of a benchmark's questions stands in training texts, by word n-grams.

    Brown et al. 2020, appendix C: a question counts as seen where one of its n-grams is found; the
    share of its n-grams is kept too, for a reader to see what is chance. Texts shorter than n words
    are compared whole. In memory are the benchmark's n-grams only.
    """

    def __init__(self, questions: Mapping[str, str], n: int = 8) -> None:
        self._n = n
        self._grams: dict[int, list[str]] = {}
        self._total: dict[str, int] = {}
        self._found: dict[str, set[int]] = {id: set() for id in questions}
        for id, question in questions.items():
            grams = self._ngrams(question)
            self._total[id] = len(grams)
            for gram in grams:
                self._grams.setdefault(gram, []).append(id)

    def add(self, text: str) -> None:
        """A text that was trained on."""
        for gram in self._ngrams(text):
            for id in self._grams.get(gram, ()):
                self._found[id].add(gram)

    def shared_with(self, texts: Iterable[str]) -> str | None:
        """A question that one of these texts would make count as seen; None: there is none."""
        found = (self._grams[g] for text in texts for g in self._ngrams(text) if g in self._grams)
        return next((ids[0] for ids in found), None)

    def report(self, shown: int = 5) -> dict[str, Any]:
        """seen: share of questions with an n-gram in the training texts; mostly_seen: with half of
        theirs; most_seen: the questions with the largest shares."""
        shares = {id: len(of) / max(1, self._total[id]) for id, of in self._found.items()}
        count = max(1, len(shares))
        worst = sorted(shares, key=lambda id: (-shares[id], id))[:shown]
        return {
            "n": self._n,
            "questions": len(shares),
            "seen": sum(share > 0 for share in shares.values()) / count,
            "mostly_seen": sum(share >= 0.5 for share in shares.values()) / count,
            "mean_share": float(np.mean(list(shares.values()))) if shares else 0.0,
            "most_seen": {id: round(shares[id], 4) for id in worst if shares[id]},
        }

    def _ngrams(self, text: str) -> set[int]:
        words = split_words(text)
        if len(words) < self._n:
            return {hash(" ".join(words))} if words else set()
        return {hash(" ".join(words[k : k + self._n])) for k in range(len(words) - self._n + 1)}


def overlaps(run: Run, sets: Iterable[Measured], trained_on: Sequence[Path]) -> dict[str, Any]:
    """By set: how much of its questions stands in the preference files that were trained on."""
    by_set: dict[str, Any] = {}
    for measured in {measured.name: measured for measured in sets}.values():
        asked = (q for q in held_out.questions(measured, run) if isinstance(q, Question))
        seen = Overlap({question.id: flatten_turns(question.prompt) for question in asked})
        for text in _training_texts(trained_on):
            seen.add(text)
        by_set[measured.name] = seen.report()
    return by_set


def benchmark_questions(entries: Sequence[str], how: HowRead) -> dict[str, str]:
    """The questions of benchmarks that are given as name=path. Raises DataError for a row that is none."""
    asked, how = {}, replace(how, part={})  # a split is of the data that is trained on
    for name, path in held_out.parse_benchmarks(entries, "--not-in").items():
        for place, row in held_out.rows_of(Measured("reward", name, path, how), None):
            if isinstance(row, ValueError):
                raise DataError(f"{place}: {row}")
            asked[f"{name}:{row.id}"] = flatten_turns(held_out.prompt_of(row))
    return asked


def texts_of(row: Preference) -> tuple[str, str, str]:
    """What is trained on."""
    return flatten_turns(row.prompt), answer_of(row.chosen), answer_of(row.rejected)


def _training_texts(paths: Iterable[Path]) -> Iterator[str]:
    """The rows that a trainer can read; it leaves the others out, too."""
    for path in paths:
        file = OpenFile(str(path), HowRead(), None)
        pairs = (file.pairs(record) for _, record in file.records())
        for rows in (rows for rows in pairs if isinstance(rows, list)):
            for row in rows:
                yield from texts_of(row)
