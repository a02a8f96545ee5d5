"""What a file holds that is not read, or that contradicts what is: counted, and said once at its end."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from copy import copy
from typing import Any

from prefpipe.formats.turns import is_empty, not_text

MEDIA = ("images", "image", "videos", "video", "audios", "audio")
"""Columns that say: what was compared is more than text."""
MEANINGFUL = {
    "--system-column": ("system", "system_prompt", "system_message"),
    "--score-columns": ("scores", "score_0", "score_1", "score_a", "score_b", "ratings", "rating"),
    "--margin-column": ("margin", "magnitude", "preference_strength", "overall_preference"),
    "--label-column": ("winner", "label", "labels", "preference", "better_response_id", "choice"),
    "--tie-column": ("tie", "is_tie", "winner_tie", "status"),
    "--prompt-column": ("prompt", "instruction", "input", "context", "history", "question",
                        "conversations", "conversation", "initial_reason_steps"),
    "nothing reads it": ("tools", "functions"),
}  # fmt: skip
"""Columns that change what a pair means, by the setting that has them read."""
_SETTING_OF = {name: setting for setting, names in MEANINGFUL.items() for name in names}
_SCORE_OF_CHOSEN = re.compile(r"(?=.*chosen).*(?:score|rating|reward|rank)")


_MET = ("unread", "contradictions", "_first", "repeats", "margins", "ties")


class Guard:
    """Watches the records of one file. A column that was looked at once costs no more."""

    def __init__(self, read: set[str]) -> None:
        self._read = read
        self._known, self._media, self._watched = set[str](), list[str](), list[str]()
        self.harmless = set[str]()
        """Columns met so far that mean nothing to a pair."""
        self.unread = Counter[str]()
        """Rows in which a column holds something that changes the meaning, and is not read."""
        self.contradictions = Counter[str]()
        """Rows whose scores say that rejected is better, by what the scores are called."""
        self._first = dict[str, tuple[int, str]]()
        self.at = 0
        """Of the record that is read, among all."""
        self.repeats = 0
        """Rows whose answers both begin with the prompt."""
        self.margins = 0
        self.ties = 0

    def look_at(self, record: Mapping[str, Any]) -> None:
        """Count what is not read. Raises Unusable where a picture or a sound is part of the row."""
        if not self._known.issuperset(record):
            for name in [name for name in record if name not in self._known]:
                if name in self._read:
                    continue
                if name in MEDIA:
                    self._media.append(name)
                elif _setting(name):
                    self._watched.append(name)
                else:
                    self.harmless.add(name)
            self._known.update(record)
        for name in self._media:
            if not is_empty(record.get(name)):
                raise not_text(name, "an image, sound or video")
        for name in self._watched:
            if not is_empty(record.get(name)):
                self.unread[name] += 1

    def contradict(self, names: tuple[str, str], scores: tuple[float, float]) -> None:
        """Count a row whose scores, those of chosen and rejected, say that rejected is better."""
        both = " and ".join(names)
        self.contradictions[both] += 1
        shown = " and ".join(f"{score:g}" for score in scores)
        self._first.setdefault(both, (self.at, shown))

    def state(self) -> dict[str, Any]:
        """What was met so far, for restore()."""
        return {name: copy(value) for name, value in vars(self).items() if name in _MET}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Forget what was met since: in a row that turned out to be another shard's."""
        vars(self).update(state)

    def counts(self) -> Counter[tuple[Any, ...]]:
        """What was met, as counts that those of other shards can be added to."""
        found = Counter[tuple[Any, ...]]({("repeats",): self.repeats, ("margins",): self.margins})
        found["ties",] = self.ties
        for name, n in self.unread.items():
            found["unread", name] = n
        for names, n in self.contradictions.items():
            found["contradictions", names] = n
        for names, (at, shown) in self._first.items():
            found["first", names, at, shown] = 1
        return found


def lines_of(counts: Counter[tuple[Any, ...]]) -> Iterator[str]:
    """What a person should know of what guards met, a line a fact."""
    if unread := sorted(key[1] for key in counts if key[0] == "unread"):
        found = (f"{name} (rows: {counts['unread', name]}; {_setting(name)})" for name in unread)
        yield f"not read: {', '.join(found)}"
    for names in sorted(key[1] for key in counts if key[0] == "contradictions"):
        first = min(key[2:] for key in counts if key[:2] == ("first", names))
        yield (
            f"rows: {counts['contradictions', names]} whose scores contradict chosen ({names}; "
            f"first {first[1]}); chosen stays chosen, no margin"
        )
    if repeats := counts["repeats",]:
        yield (
            f"rows: {repeats} whose answers both begin with the prompt "
            "(--format repeats-prompt cuts it off)"
        )
    met = [(counts["margins",], "with a margin"), (counts["ties",], "that are ties")]
    if shown := [f"{count} {what}" for count, what in met if count]:
        yield f"rows: {', '.join(shown)}"


def _setting(column: str) -> str | None:
    """What has a column read that changes the meaning; None: it changes none."""
    if _SCORE_OF_CHOSEN.match(column.lower()):
        return "--score-columns"
    return _SETTING_OF.get(column)
