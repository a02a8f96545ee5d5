"""What an annotator wrote -> ratings. (Which responses become a pair: prefpipe/rated_pairs.py.)

A rating is of one text under one aspect: a number from 1 to 5, or N/A. A response's rating is the
mean over the aspects. What cannot be read counts for nobody: no rating is guessed, and none that is
missing stands in as the lowest. (What the annotator is asked: prefpipe/rating_prompts.py.)
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from prefpipe.rating_prompts import SCALE
from prefpipe.rows import AnnotationAnswer, AnnotationPrompt, Completion
from prefpipe.thoughts import begins_with_object, without_thoughts
from prefpipe.verdicts import KeyValues, Unreadable, json_objects

Ratings = list[float | None]
"""A rating each; None: N/A, or none that counts."""


# ---- how the answer is read ----------------------------------------------------------------------

# A line of nothing but `Text 2`, `Rating: 4`, or both, in any markdown. A line of a reason that goes
# on ("Text 2 says more") is neither.
_RATING_LINE = re.compile(
    r"[^\w\n]*(?:(?:output\s+for\s+)?text\s*(?:#\s*)?(?P<number>\d{1,4})\b[^\w\n]*)?"
    r"(?:(?:rating|score)\b[*_`\s]*(?:\((?P<within>[^)\n]*)\)[*_`\s]*)?(?:[:：=][*_`\s]*(?P<value>.*)|(?P<bare>\d.*)))?",
    re.IGNORECASE,
)
# 4, 4.5, 4/5, "4 out of 5", and a remark behind it that begins with no digit: "4 (good)", "4 - good".
_RATING = re.compile(
    r"\[?(?P<rating>-?\d{1,9}(?:\.\d{1,9})?)\]?"
    r"(?:\s*(?:/|out\s+of)\s*(?P<scale>\d{1,9})\b)?"
    r"(?P<remark>[\s*_`.,;:]*|\s*[.,;:]\s+[^\d\s].*|\s*[-–—(（*_]\s*[^\d\s].*)"
)
# The highest rating of a scale that is named: in brackets behind the key, behind a rating, in prose.
_TOP = re.compile(r"(?P<top>\d+|ten|twenty|hundred|%)\W*\Z", re.IGNORECASE)
_TOP_IN_REMARK = re.compile(
    r"[\W_]*(?:(?:out\s+)?of|/|on\s+an?\s|scale|max)\D{0,30}(?:\d+\s*(?:-|–|to)\s*)?(?P<top>\d+)",
    re.IGNORECASE,
)
_TOP_IN_PROSE = re.compile(
    r"\bscale\s*(?:of|from|[:(])?\s*\d+\s*(?:-|–|—|to|through)\s*(?P<top>\d+)"
    r"|\b(?:\d+\s*(?:-|–|to)\s*)?(?P<points>\d+)(?:[- ]point)?\s+scale"
    r"|\b(?:ratings?|scores?)\s*\((?:\d+\s*(?:-|–|to)|out\s+of|/)\s*(?P<head>\d+)"
    r"|\b(?:ratings?|scores?)\s+(?:\w+\s+){0,3}?(?:from|between)\s+\d+\s*(?:-|–|to|and)\s*(?P<range>\d+)"
    r"|\b(?:ratings|scores)\s+(?:\w+\s+){0,2}?out\s+of\s+(?P<all>\d+)",
    re.IGNORECASE,
)
_RATIONALE = re.compile(
    r"^[^\w\n]*+(?:rationale|reason\w*|explanation|justification|comment|feedback|理由|原因)[^\w\n]*[:：].*$",
    re.IGNORECASE | re.MULTILINE,
)
_NOT_APPLICABLE = re.compile(r"\[?(?:n\s*/\s*a|not applicable)\b(?!\s*/).*", re.IGNORECASE)
_TEXT_KEY = re.compile(r"text[_ ]?(\d{1,4})", re.IGNORECASE)
_FULL_WIDTH = {0xFF10 + d: str(d) for d in range(10)} | {ord("／"): "/", ord("．"): "."}


def read_ratings(text: str, count: int) -> Ratings | Unreadable:
    """The ratings of texts 1 to count, from 1 to 5, each by its number; None is N/A. Never raises.

    A rating stands on a line of its own below its `Text <number>` line, or behind it. Reasons,
    markdown, blank lines and CRLF between them are fine. One text without a rating, or with two
    that differ, makes all of it Unreadable: which text a rating belongs to is never guessed. An
    answer that begins with an object is read as that of ratings_schema.
    """
    answer = without_thoughts(text)
    if answer is None:
        return Unreadable("cut_off")
    if not answer.strip():
        return Unreadable("empty")
    # a rationale may speak of the scales that its text is about
    prose = _RATIONALE.sub("", answer)
    tops = {top for match in _TOP_IN_PROSE.finditer(prose) for top in match.groups() if top}
    if not all(map(_is_our_scale, tops)):
        return Unreadable("out_of_scale")
    is_object = begins_with_object(answer)
    by_number: dict[int, float | None] = {}
    for number, value in _stated_in_object(answer) if is_object else _stated_in_lines(answer):
        rating = value if isinstance(value, Unreadable) else _read_rating(value)
        if isinstance(rating, Unreadable):
            return rating
        if number is None or not 1 <= number <= count:
            return Unreadable("unknown_text")
        if number in by_number and by_number[number] != rating:
            return Unreadable("two_ratings")
        by_number[number] = rating
    if len(by_number) < count:
        return Unreadable("no_rating")
    return [by_number[k] for k in range(1, count + 1)]


_Stated = Iterator[tuple[int | None, str | Unreadable]]
"""The number of a text, and what stands there as its rating."""


def _stated_in_lines(answer: str) -> _Stated:
    number, is_waiting = None, False
    for line in answer.split("\n"):
        if is_waiting:  # "Rating:" with its number on the next line
            value = line.strip()
            if not value:
                continue
        elif not (match := _RATING_LINE.fullmatch(line.strip())):
            continue
        else:
            number = int(match["number"]) if match["number"] else number
            value = match["value"] if match["value"] is not None else match["bare"]
            if value is None:
                continue
            top = _TOP.search(match["within"] or "")
            if top and not _is_our_scale(top["top"]):
                yield number, Unreadable("out_of_scale")
                return
            if not value.strip("*_` "):
                is_waiting = True
                continue
        is_waiting = False
        yield number, value


def _stated_in_object(answer: str) -> _Stated:
    objects = json_objects(answer)
    if isinstance(objects, Unreadable):
        yield None, Unreadable("cut_off" if objects.reason == "cut_off" else "broken_json")
        return
    for key, rated in (pair for pairs in objects for pair in pairs):
        if name := _TEXT_KEY.fullmatch(key):
            is_nested = isinstance(rated, KeyValues)
            tops = [v for k, v in rated if k in ("scale", "max", "out_of")] if is_nested else []
            if not all(_is_our_scale(str(top)) for top in tops):
                yield int(name[1]), Unreadable("out_of_scale")
                return
            for value in [v for k, v in rated if k == "rating"] if is_nested else [rated]:
                # 4 and 4.0 as "4"; neither true nor null nor another object is a rating
                is_plain = type(value) in (int, float, str)
                yield int(name[1]), str(value) if is_plain else Unreadable("not_a_rating")


def _read_rating(value: str) -> float | Unreadable | None:
    value = value.translate(_FULL_WIDTH).strip()
    if _NOT_APPLICABLE.fullmatch(value):
        return None
    match = _RATING.fullmatch(value)
    if not match:
        return Unreadable("not_a_rating")
    named = _TOP_IN_REMARK.match(match["remark"])
    tops = filter(None, (match["scale"], named and named["top"]))
    low, high = SCALE
    if not low <= float(match["rating"]) <= high or not all(map(_is_our_scale, tops)):
        return Unreadable("out_of_scale")
    return float(match["rating"])


def _is_our_scale(top: str) -> bool:
    """Whether a scale that ends there is the one that was asked for; "1-5" is read as its end."""
    return bool(found := _TOP.search(top)) and found["top"] == str(SCALE[1])


def fault_of_ratings(reply: Completion) -> str:
    """Why an annotator's reply says nothing that can be used, whatever texts it was shown; empty:
    it does."""
    if reply.finish_reason == "length":
        return "cut_off"
    found = read_ratings(reply.text, 1)  # "unknown_text": it rates several
    return found.reason if isinstance(found, Unreadable) and found.reason != "unknown_text" else ""


# ---- the ratings of one prompt's responses -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Annotation:
    """What one AnnotationPrompt came to."""

    aspect: str
    swapped: bool
    order: list[int]
    ratings: Ratings | Unreadable
    """By index of the response, whatever the order they were shown in."""


def read_annotation(asked: AnnotationPrompt, answer: AnnotationAnswer | None) -> Annotation:
    """The ratings in the answer; Unreadable too where there is none, or it was cut."""
    if answer is None:
        ratings = Unreadable("missing")
    elif answer.finish_reason == "length":
        ratings = Unreadable("cut_off")  # "Rating: 4" may have been going to be 4.5
    else:
        ratings = read_ratings(answer.text, len(asked.order))
    if not isinstance(ratings, Unreadable):
        by_index = dict(zip(asked.order, ratings, strict=True))
        ratings = [by_index[index] for index in range(len(ratings))]
    return Annotation(asked.aspect, asked.swapped, asked.order, ratings)


def ratings_by_aspect(annotations: Iterable[Annotation], count: int) -> dict[str, Ratings]:
    """Aspect -> the ratings of the count responses, from the first annotations, not the swapped."""
    return {
        a.aspect: [None] * count if isinstance(a.ratings, Unreadable) else a.ratings
        for a in annotations
        if not a.swapped
    }


def mean_rating(ratings: Iterable[float | None], min_aspects: int) -> float | None:
    """The mean of those that are there; None where they are fewer than min_aspects."""
    given = [rating for rating in ratings if rating is not None]
    return sum(given) / len(given) if len(given) >= min_aspects else None


def mean_ratings(by_aspect: Mapping[str, Ratings], min_aspects: int) -> dict[int, float]:
    """Index of the response -> its mean over the aspects, where it has ratings in min_aspects."""
    means = (mean_rating(column, min_aspects) for column in zip(*by_aspect.values(), strict=True))
    return {index: mean for index, mean in enumerate(means) if mean is not None}
