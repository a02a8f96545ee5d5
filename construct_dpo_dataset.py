"""Set each item's judgments against each other: pairs of a right and a wrong one, for DPO.

Reads   data/judgments/clean/{best_of_n,guide,guide_reverse}.jsonl   CleanJudgment rows
        data/pairwise_critic_inference2_get_answer/Sky_english/      Item rows
Writes  data/dpo/train.parquet        JudgmentPair rows
        data/dpo/validation.parquet   JudgmentPair rows; of held-out questions only
        data/dpo/README.md            the card: how the rows were made

    {"id": "p8", "source": "sums", "split": "train", "language": "en", "question": "2+2?", "answer_1": "5", "answer_2": "4", "better": 2, "prompt": "[Question]..."}
 -> {"id": "p8:best_of_n:0", "item_id": "p8", "split": "train", "pair_type": "best_of_n", "better": 2, "prompt": [{"role": "user", "content": "[Question]..."}], "chosen": [{"role": "assistant", "content": "{\\"reason\\": \\"4 is right.\\", \\"better_answer\\": 2}"}], "rejected": [{"role": "assistant", "content": "{\\"reason\\": \\"5 is more.\\", \\"better_answer\\": 1}"}], "chosen_sample": 0, "rejected_sample": 5}

    uv run construct_dpo_dataset.py --max-best-of-n 3 --max-hint 1
"""

from pathlib import Path

import config
from prefpipe import files, judgment_pairs
from prefpipe.files import DataError
from prefpipe.publish.cards import write_data_card
from prefpipe.ranges import NotNegative
from prefpipe.rows import CleanJudgment, Item, JudgmentPair, Variant
from prefpipe.settings import Stage

# The greedy `output` is no pair's member: it is the same for every n and shows the base judge.
VARIANTS: tuple[Variant, ...] = ("best_of_n", "guide", "guide_reverse")


class Settings(Stage, env_prefix="CONSTRUCT_"):
    items: Path = config.ITEMS_ENGLISH
    """Folder of the items that were judged, or one file of them."""
    input: Path = config.JUDGMENTS_CLEAN
    """Folder of the cleaned judgments."""
    output: Path = config.DPO_DATASET
    """Folder of train.parquet and validation.parquet."""
    max_best_of_n: NotNegative = 3
    """Pairs of two samples an item may give."""
    max_unreadable: NotNegative = 1
    """Pairs of a right sample and one that nobody can read an item may give."""
    max_hint: NotNegative = 1
    """Pairs of two hinted judgments an item may give."""


def main(s: Settings) -> None:
    sources = [s.input / f"{variant}.jsonl" for variant in VARIANTS]
    outputs = {s.output / f"{split}.parquet": JudgmentPair for split in files.SPLITS}
    inputs = [s.items, *sources]
    with s.open_run(
        inputs=inputs, outputs=outputs, home=s.output, unit="items", card=write_data_card
    ) as run:
        if run.finished:
            return
        types = run.counter("pair_types")
        # with a limit the judgments of the other items are no leftovers to complain of
        wanted = {item.id for item in run.peek(s.items, Item)} if s.limit else None
        readers = [run.aligned(path, CleanJudgment, wanted) for path in sources]
        for item in run.read(s.items, Item):
            result = judgment_pairs.build_judgment_pairs(
                item,
                [row for reader in readers for row in reader.rows_of(item.id)],
                max_best_of_n=s.max_best_of_n,
                max_unreadable=s.max_unreadable,
                max_hint=s.max_hint,
                seed=s.seed,
            )
            run.emit(result, to=s.output / f"{item.split}.parquet")
            if isinstance(result, list):
                types.update(f"{pair.split} {pair.pair_type}" for pair in result)
        # a judgment of an item that is not there would be lost without a word
        for reader in readers:
            reader.check_used_up()
        # an empty file would be an error of the training an hour later; of a shard it is none
        if not run.written["train.parquet"] and not run.facts.shard.is_part:
            raise DataError(
                f"{s.input}: no train pair could be made of {run.read_count} items "
                f"({dict(run.left_out)}); sample more, or warmer, judgments"
            )
        run.summary["pair_types"] = dict(sorted(types.items()))
        print("pairs: " + ", ".join(f"{n} {name}" for name, n in sorted(types.items())))


if __name__ == "__main__":
    Settings.run(main)
