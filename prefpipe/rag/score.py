"""How good is an answer to a question, given its context: grounding, keywords, length, abstention.

    score = 0.7 * grounding + 0.3 * keyword_coverage - 0.05 * length_penalty

grounding         cosine of the embeddings of answer and context; below 0 counts as 0
keyword_coverage  share of the keywords that the answer mentions
length_penalty    0 up to so many characters, then rising evenly to 1

An abstention ("I don't know") has no parts of its own. Where the context is held to answer (its
retrieval score is not under a threshold) it is scored as the worst text there can be: parts 0, 0
and 1. Where not, it is the right answer, and scored as the best: parts 1, 1 and 0.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

ABSTENTIONS = (
    "I don't know",
    "I do not know",
    "I'm not sure",
    "I am not sure",
    "The context does not",
    "The context doesn't",
    "The provided context does not",
    "The provided context doesn't",
    "我不知道",
)
"""How an abstention begins, behind words like "Sorry, but" or "Based on the context"."""

# A CJK character is a word of its own, since nothing separates words there.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\d_\u3040-\u30ff\u3400-\u9fff]+|\d+")
_OPENING = re.compile(
    r"((i'm |i am )?sorry|unfortunately|based on the (provided |given )?context|but)\b[,.: ]*"
)
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_DIGITS = re.compile(r"\d+")
_STOP = """a about above after all also am an and any are as at be because been before being below
    between both but by can could did do does doing down during each few for from further had has
    have having he her here hers him his how i if in into is it its itself just like me more most my
    no nor not of off on once one only or other our out over own same she should so some such than
    that the their them then there these they this those through to too under until up use used
    using very was way we were what when where which while who whom why will with would you your
    args class def elif else except false finally function import kwargs lambda none param pass
    raise return returns self true try yield 的 了 是 在 和 有 我 你 他 她 它 吗 呢 什 么 怎 样 如 何 请"""
_STOP_WORDS = frozenset(_STOP.split())


@dataclass(frozen=True)
class Rules:
    """The weights of the score, and the shape of its length penalty."""

    grounding: float = 0.7
    keywords: float = 0.3
    length: float = 0.05
    free_characters: int = 600
    """Up to here an answer costs nothing."""
    full_characters: int = 1800
    """From here on the penalty is 1."""


@dataclass(frozen=True)
class Score:
    """A score and its parts."""

    score: float
    grounding: float
    keyword_coverage: float
    length_penalty: float
    is_abstention: bool


def score_answer(
    text: str,
    cosine: float,
    keywords: Sequence[str],
    rules: Rules,
    *,
    is_answerable: bool = True,
    abstentions: Sequence[str] = ABSTENTIONS,
) -> Score:
    """The score of one answer; it depends on nothing but these arguments.

    cosine: of the answer and its context, -1 to 1. is_answerable: the context is held to answer the
    question.
    """
    abstains = is_abstention(text, abstentions)
    if abstains:
        grounding, coverage, penalty = (0.0, 0.0, 1.0) if is_answerable else (1.0, 1.0, 0.0)
    else:
        grounding = round(min(max(cosine, 0.0), 1.0), 4)  # more digits depend on the machine
        coverage = keyword_coverage(text, keywords)
        penalty = length_penalty(text, rules)
    score = rules.grounding * grounding + rules.keywords * coverage - rules.length * penalty
    return Score(
        score=round(score, 6),
        grounding=grounding,
        keyword_coverage=round(coverage, 6),
        length_penalty=round(penalty, 6),
        is_abstention=abstains,
    )


def length_penalty(text: str, rules: Rules) -> float:
    """0 up to free_characters, 1 from full_characters on, a straight line between."""
    over = len(text.strip()) - rules.free_characters
    return min(max(over / (rules.full_characters - rules.free_characters), 0.0), 1.0)


def keyword_coverage(text: str, keywords: Sequence[str]) -> float:
    """Share of the keywords whose words stand in the text, one behind the other; 0 without keywords.

    Case, accents' encoding and the way identifiers are written do not matter: `readLine` stands in
    "read_line".
    """
    if not keywords:
        return 0.0
    there = f" {' '.join(split_words(text))} "
    return sum(f" {' '.join(split_words(k))} " in there for k in keywords) / len(keywords)


def extract_keywords(query: str, context: str, most: int) -> list[str]:
    """The words an answer should mention, at most so many, by this rule:

    1. words of the query that stand in the context, in the order of the query;
    2. then the context's other words, the frequent first, equally frequent ones as they come.

    Identifiers are split (`read_line`, `readLine`: read, line); stop words, Python's keywords,
    numbers and single letters are left out.
    """
    counts = Counter(word for word in split_words(context) if _is_keyword(word))
    shared = [word for word in split_words(query) if word in counts]
    others = sorted(counts, key=lambda word: -counts[word])
    return list(dict.fromkeys([*shared, *others]))[:most]


def split_words(text: str) -> list[str]:
    """The words of a text in lower case, identifiers split: readLine and read_line give read, line."""
    plain = unicodedata.normalize("NFKC", text)
    return [word.casefold() for word in _WORD.findall(_CAMEL.sub(" ", plain))]


def _is_keyword(word: str) -> bool:
    is_long_enough = len(word) > 1 or word > "\u3000"
    return is_long_enough and word not in _STOP_WORDS and not _DIGITS.fullmatch(word)


def is_abstention(text: str, phrases: Sequence[str] = ABSTENTIONS) -> bool:
    """Whether the text begins by saying that it does not know; case and apostrophes do not matter."""
    plain = _plain(text)
    while opening := _OPENING.match(plain):
        plain = plain[opening.end() :]
    return any(plain.startswith(_plain(phrase)) for phrase in phrases)


def _plain(text: str) -> str:
    return " ".join(text.replace("\u2019", "'").casefold().split()).lstrip("\"'*-_. ")


def pick_extremes(
    scores: Sequence[float], texts: Sequence[str], may_win: Sequence[bool]
) -> tuple[int, int] | None:
    """Places of the best text that may win, and of the worst of the others; None: no text may win.

    Equal scores are put in order by the text, so the order they come in does not matter.
    """
    order = sorted(range(len(texts)), key=lambda i: (scores[i], texts[i]))
    best = next((i for i in reversed(order) if may_win[i]), None)
    return None if best is None else (best, next(i for i in order if i != best))
