"""Pairs: where the better answer stands, which judgments are set against each other.

Everything here is a pure function of its rows and of (seed, id): the order of the rows, a limit or
a resumed run change nothing.
"""

import hashlib
import random
from collections.abc import Sequence

from prefpipe.files import DataError
from prefpipe.prompts import detect_language, flatten_turns, judge_prompt
from prefpipe.rows import (
    CleanJudgment,
    Item,
    JudgmentPair,
    Message,
    PairType,
    Preference,
    Reject,
    Split,
)

# ---- a preference as a question with two answers ---------------------------------------------


def build_item(
    row: Preference, *, split: Split, seed: int, template: str | None = None
) -> Item | Reject:
    """The better answer stands first or second by a coin drawn from (seed, row.id).

    A tie stays a tie (better None) and is placed by the same coin. Left out: an empty question or
    answer, and answers that are equal but for white space.
    """
    question = flatten_turns(row.prompt)
    chosen, rejected = _answer(row.chosen), _answer(row.rejected)
    if not question.strip():
        return Reject(id=row.id, reason="empty_question")
    if not chosen.strip() or not rejected.strip():
        return Reject(id=row.id, reason="empty_answer")
    if _is_equal_but_for_space(chosen, rejected):
        return Reject(id=row.id, reason="identical_answers")
    coin = hashlib.blake2b(f"{seed}:{row.id}".encode(), digest_size=1).digest()[0] & 1
    better = 1 if coin else 2
    answer_1, answer_2 = (chosen, rejected) if better == 1 else (rejected, chosen)
    language = detect_language(question)
    return Item(
        id=row.id,
        source=row.source or "unknown",
        split=split,
        language=language,
        question=question,
        answer_1=answer_1,
        answer_2=answer_2,
        better=None if row.tie else better,
        prompt=judge_prompt(question, answer_1, answer_2, language=language, template=template),
    )


def _answer(response: str | list[Message]) -> str:
    return response if isinstance(response, str) else response[-1]["content"]


def _is_equal_but_for_space(first: str, second: str) -> bool:
    if first.split(maxsplit=8)[:8] != second.split(maxsplit=8)[:8]:  # most texts differ early
        return False
    return first.split() == second.split()


def swap(item: Item, *, template: str | None = None) -> Item:
    """The same item with its answers the other way round, and the verdict with them.

    template: the one its prompt was made with. DataError where that gives another prompt.
    """

    def prompt(answer_1: str, answer_2: str) -> str:
        language = item.language
        return judge_prompt(item.question, answer_1, answer_2, language=language, template=template)

    if prompt(item.answer_1, item.answer_2) != item.prompt:
        raise DataError(
            f"item {item.id!r}: its prompt is not the template's; give --template as it was given "
            "to preprocess_dataset.py"
        )
    return item.model_copy(
        update={
            "answer_1": item.answer_2,
            "answer_2": item.answer_1,
            "better": None if item.better is None else 3 - item.better,
            "prompt": prompt(item.answer_2, item.answer_1),
        }
    )


# ---- judgments against each other ------------------------------------------------------------


def build_judgment_pairs(
    item: Item,
    judgments: Sequence[CleanJudgment],
    *,
    max_best_of_n: int,
    max_unreadable: int,
    max_hint: int,
    seed: int,
) -> list[JudgmentPair] | Reject:
    """Pairs of one item's judgments: a right verdict (chosen) against a wrong or unreadable one.

    best_of_n             right against wrong among the samples without a hint
    best_of_n_unreadable  right against a sample nobody can read, which is only ever rejected
    hint                  the text for the right hint against the one for the wrong hint; where one
                          of them is unreadable, a sample without a hint stands in for it

    Which samples meet is drawn from (seed, id); within a type no text is used twice on the same
    side. Source: Con-J, Ye et al., ICLR 2025, section 3.
    """
    if item.better is None:
        return Reject(id=item.id, reason="tie")
    if not judgments:
        return Reject(id=item.id, reason="no_judgments")
    rng = random.Random(f"{seed}:{item.id}")
    free = [j for j in judgments if j.hint is None]
    right = _shuffled([j for j in free if j.verdict == item.better], rng)
    wrong = _shuffled([j for j in free if j.verdict == 3 - item.better], rng)
    unreadable = _shuffled([j for j in free if j.verdict is None and j.text.strip()], rng)
    told = [j for j in judgments if j.variant in ("guide", "guide_reverse") and j.verdict]
    told_right = [j for j in told if j.verdict == item.better]
    told_wrong = [j for j in told if j.verdict == 3 - item.better]

    plans: list[tuple[PairType, list[CleanJudgment], list[CleanJudgment], int]] = [
        ("best_of_n", right, wrong, max_best_of_n),
        ("best_of_n_unreadable", right[::-1], unreadable, max_unreadable),
    ]
    if told_right or told_wrong:
        plans.append(("hint", told_right or right[-1:], told_wrong or wrong[-1:], max_hint))
    pairs: list[JudgmentPair] = []
    seen: set[tuple[str, str]] = set()
    for pair_type, chosen, rejected, most in plans:
        made = 0
        for good, bad in zip(chosen, rejected, strict=False):
            texts = (good.judgment or "", bad.judgment or bad.text)
            if made == most or texts in seen:
                continue
            seen.add(texts)
            pairs.append(_pair(item, pair_type, made, good, bad, texts))
            made += 1
    if pairs:
        return pairs
    if not any(j.verdict for j in judgments):
        return Reject(id=item.id, reason="all_unreadable")
    if not (right or told_right):
        return Reject(id=item.id, reason="no_right_judgment")
    if not (wrong or unreadable or told_wrong):
        return Reject(id=item.id, reason="no_wrong_judgment")
    return Reject(id=item.id, reason="no_pair_of_a_wanted_type")


def _pair(
    item: Item,
    pair_type: PairType,
    number: int,
    chosen: CleanJudgment,
    rejected: CleanJudgment,
    texts: tuple[str, str],
) -> JudgmentPair:
    assert item.better is not None
    return JudgmentPair(
        id=f"{item.id}:{pair_type}:{number}",
        item_id=item.id,
        split=item.split,
        pair_type=pair_type,
        better=item.better,
        prompt=[Message(role="user", content=item.prompt)],
        chosen=[Message(role="assistant", content=texts[0])],
        rejected=[Message(role="assistant", content=texts[1])],
        chosen_sample=chosen.sample,
        rejected_sample=rejected.sample,
    )


def _shuffled(judgments: list[CleanJudgment], rng: random.Random) -> list[CleanJudgment]:
    """In an order of the item's own, distinct texts only: equal samples add nothing to a pair."""
    unique = list({j.judgment or j.text: j for j in judgments}.values())
    rng.shuffle(unique)
    return unique
