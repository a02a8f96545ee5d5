"""The score of an answer to a question, given its context; the one place that says what it is.

    score = weight_grounding * grounding + weight_keywords * keyword_coverage
            - weight_length * length_penalty

grounding         cosine of the embeddings of answer and context; below 0 counts as 0
keyword_coverage  share of the keywords that the answer mentions
length_penalty    0 up to so many characters, then rising evenly to 1

An abstention ("I don't know") has no parts of its own but a worth, from 0 to 1: how likely it is that
the context does not answer (pairs.abstention_worth). Of worth 0 it is scored as the worst text there
can be, with parts 0, 0 and 1; of worth 1 as the best, with 1, 1 and 0; between evenly.

Another part is a line of `parts` in score_answer, and its field in rows.ScoreParts, the file format
(a pair without it is refused); a weight that a user may set, a field of ScoreRules and of Settings.
"""

import functools
import keyword
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from prefpipe.rag.abstention import is_abstention
from prefpipe.rows import ScoreParts
from prefpipe.words import split_words

_NAME_PARTS = re.compile(
    r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])"
)
# What scikit-learn's list of English words lacks: words of every docstring, and Chinese ones.
_MORE_STOP_WORDS = """args did does doing function having just kwargs like param returns self use used
    using way 的 了 是 在 和 有 我 你 他 她 它 吗 呢 什 么 怎 样 如 何 请"""
# What it has and says something here: functions are called so ("find the first empty name").
_WORDS_OF_CODE = """amount back bottom call describe detail empty fill find fire first found front full
    get give go interest keep last least less move name next part put show side system take third top"""


@dataclass(frozen=True)
class ScoreRules:
    """What a score depends on besides the answer: the stage's settings, which say what each is."""

    weight_grounding: float
    weight_keywords: float
    weight_length: float
    free_characters: int
    full_characters: int
    abstentions: Sequence[str]


def score_answer(
    text: str,
    cosine: float,
    keywords: Sequence[str],
    rules: ScoreRules,
    *,
    worth: float = 0.0,
    judge_score: float | None = None,
) -> ScoreParts:
    """The score of one answer and its parts. cosine: of the answer and its context, -1 to 1.
    worth: of an abstention. judge_score: taken over as it is; it
    is no part of the score."""
    grounding = round(min(max(cosine, 0.0), 1.0), 4)  # more digits depend on the machine
    coverage, penalty = keyword_coverage(text, keywords), length_penalty(text, rules)
    parts = {  # name: (value, weight, value at best)
        "grounding": (grounding, rules.weight_grounding, 1.0),
        "keyword_coverage": (coverage, rules.weight_keywords, 1.0),
        "length_penalty": (penalty, -rules.weight_length, 0.0),
    }
    abstains = is_abstention(text, rules.abstentions)
    values = {
        name: (1 - worth) * (1 - best) + worth * best if abstains else value
        for name, (value, _, best) in parts.items()
    }
    score = sum(weight * values[name] for name, (_, weight, _) in parts.items())
    return ScoreParts(
        score=round(score, 6),
        **{name: round(value, 6) for name, value in values.items()},
        is_abstention=abstains,
        judge_score=judge_score,
    )


def score_abstention(rules: ScoreRules, worth: float) -> float:
    """The score of an abstention of that worth."""
    best = rules.weight_grounding + rules.weight_keywords
    return round(worth * best - (1 - worth) * rules.weight_length, 6)


def length_penalty(text: str, rules: ScoreRules) -> float:
    """0 up to free_characters, 1 from full_characters on, a straight line between."""
    over = len(text.strip()) - rules.free_characters
    return min(max(over / (rules.full_characters - rules.free_characters), 0.0), 1.0)


def keyword_coverage(text: str, keywords: Sequence[str]) -> float:
    """Share of the keywords whose words stand in the text, one behind the other; 0 without
    keywords. Case, the encoding of accents and the spelling of identifiers (readLine, read_line) do
    not matter."""
    if not keywords:
        return 0.0
    there = f" {' '.join(split_names(text))} "
    return sum(f" {' '.join(split_names(k))} " in there for k in keywords) / len(keywords)


def extract_keywords(query: str, context: str, most: int) -> list[str]:
    """The words an answer should mention, at most so many: first those of the query that stand in
    the context, in the query's order; then the context's others, the frequent first, equally
    frequent ones as they come. Identifiers are split; stop_words(), numbers and single letters are
    left out."""
    counts = Counter(word for word in split_names(context) if _is_keyword(word))
    shared = [word for word in split_names(query) if word in counts]
    others = sorted(counts, key=lambda word: -counts[word])
    return list(dict.fromkeys([*shared, *others]))[:most]


def says_more(text: str, query: str, context: str) -> bool:
    """Whether an answer has keywords of the context that the question lacks, two of them or a third of
    its own: who only repeats the question is near to a context that answers it, and says nothing."""
    beyond, own = _keywords(context) - _keywords(query), _keywords(text)
    taken = len(own & beyond)
    return not beyond or taken >= 2 or (taken > 0 and 3 * taken >= len(own))


def _keywords(text: str) -> set[str]:
    return {word for word in split_names(text) if _is_keyword(word)}


def split_names(text: str) -> list[str]:
    """Words with identifiers split: readLine and read_line give read, line."""
    return split_words(_NAME_PARTS.sub(" ", text))


def _is_keyword(word: str) -> bool:
    is_long_enough = len(word) > 1 or word > "\u3000"
    return is_long_enough and word not in stop_words() and not word.isdecimal()


@functools.cache
def stop_words() -> frozenset[str]:
    """Words that say nothing of what a text is about: English and Chinese ones, Python's keywords."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS  # here, since that takes seconds

    english = ENGLISH_STOP_WORDS - set(_WORDS_OF_CODE.split())
    return english.union(_MORE_STOP_WORDS.split(), map(str.casefold, keyword.kwlist))


def pick_extremes(
    scores: Sequence[float],
    texts: Sequence[str],
    may_win: Sequence[bool],
    may_lose: Sequence[bool],
) -> tuple[int, int] | None:
    """Places of the best text that may win, and of the worst of the others that may lose; None: there
    are no two. Equal scores are put in order by the text, so the order they come in does not matter."""
    order = sorted(range(len(texts)), key=lambda i: (scores[i], texts[i]))
    best = next((i for i in reversed(order) if may_win[i]), None)
    worst = next((i for i in order if may_lose[i] and i != best), None)
    return None if best is None or worst is None else (best, worst)
