"""A judge's judgments of one item, set against each other: a right one against a wrong one."""

import random
from collections.abc import Sequence

from prefpipe import draws
from prefpipe.rows import CleanJudgment, Item, JudgmentPair, Message, PairType, Reject
from prefpipe.verdicts import Unreadable, holds_verdict, parse_verdict


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
    rng = draws.rng(seed, item.id)
    free = [j for j in judgments if j.hint is None]
    right = _shuffled([j for j in free if j.verdict == item.better], rng)
    wrong = _shuffled([j for j in free if j.verdict == 3 - item.better], rng)
    # A cut text may hold a whole verdict: set against a right one it would teach the wrong thing.
    unread = [j for j in free if j.verdict is None and j.text.strip()]
    unreadable = _shuffled(
        [
            j
            for j in unread
            if isinstance(parse_verdict(j.text), Unreadable)
            and not holds_verdict(j.text, item.better)
        ],
        rng,
    )
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
        count = 0
        for good, bad in zip(chosen, rejected, strict=False):
            texts = (good.judgment or "", bad.judgment or bad.text)
            if count == most or texts in seen:
                continue
            seen.add(texts)
            pairs.append(
                JudgmentPair(
                    id=f"{item.id}:{pair_type}:{count}",
                    item_id=item.id,
                    split=item.split,
                    pair_type=pair_type,
                    better=item.better,
                    prompt=[Message(role="user", content=item.prompt)],
                    chosen=[Message(role="assistant", content=texts[0])],
                    rejected=[Message(role="assistant", content=texts[1])],
                    chosen_sample=good.sample,
                    rejected_sample=bad.sample,
                )
            )
            count += 1
    if pairs:
        return pairs
    if not any(j.verdict for j in judgments):
        return Reject(id=item.id, reason="all_unreadable")
    if not (right or told_right):
        return Reject(id=item.id, reason="no_right_judgment")
    if not (wrong or unreadable or told_wrong):
        return Reject(id=item.id, reason="no_wrong_judgment")
    return Reject(id=item.id, reason="no_pair_of_a_wanted_type")


def _shuffled(judgments: list[CleanJudgment], rng: random.Random) -> list[CleanJudgment]:
    """In an order of the item's own, distinct texts only: equal samples add nothing to a pair."""
    unique = list({j.judgment or j.text: j for j in judgments}.values())
    rng.shuffle(unique)
    return unique
