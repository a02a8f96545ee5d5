"""Make judge items of a preference data set: a question, two answers in random order, the better one.

Reads   embedded/sample/preferences-*.parquet   Preference rows, or a published format,
                                                which is recognised (--format names one)
Writes  data/pairwise_critic_inference2_get_answer/Sky/train.jsonl       Item rows
        data/pairwise_critic_inference2_get_answer/Sky/validation.jsonl  Item rows
        data/pairwise_critic_inference2_get_answer/Sky/README.md         the card: how the rows were made
        .../preprocess_dataset.rejects.jsonl                             Reject rows: why each was left out

    {"id": "p8", "prompt": "2+2?", "chosen": "4", "rejected": "5", "margin": null, "tie": false, "source": "sums"}
 -> {"id": "p8", "source": "sums", "split": "train", "language": "en", "question": "2+2?", "answer_1": "5", "answer_2": "4", "better": 2, "prompt": "[Question]..."}

    uv run preprocess_dataset.py --input my_preferences.parquet
"""

from pathlib import Path

import config
from prefpipe import files, judge, templates
from prefpipe.formats.opening import NO_IDS
from prefpipe.publish.cards import write_data_card
from prefpipe.rows import Item, Reject
from prefpipe.settings import PreferenceStage
from prefpipe.training.preferences import Placed


class Settings(PreferenceStage, env_prefix="PREPROCESS_"):
    output: Path = config.ITEMS
    """Folder of train.jsonl and validation.jsonl."""
    template: str | None = None
    """A Jinja file to use as the judge's prompt in place of prefpipe/templates/judge.*.jinja."""


def to_item(placed: Placed, ids: files.Places, *, seed: int, template: str | None) -> Item | Reject:
    """The row as an item, or why it is left out. Raises DataError where its id is another row's."""
    row, place = placed.row, placed.place
    if leaking := placed.reject():
        return leaking
    if placed.has_id:
        ids.check(row.id, place, NO_IDS)
    elif first := ids.seen_at(row.id, place):  # its id was made of its content
        return Reject(id=row.id, reason="duplicate_row", detail=f"{place}: equal to {first}")
    return judge.build_item(row, split=placed.split, seed=seed, template=template)


def main(s: Settings) -> None:
    paths = {split: s.output / f"{split}.jsonl" for split in files.SPLITS}
    outputs = dict.fromkeys(paths.values(), Item)
    inputs = [*s.raw_files(), *templates.template_files(s.template, "judge")]
    with s.open_run(inputs=inputs, outputs=outputs, home=s.output, card=write_data_card) as run:
        if run.finished:
            return
        ids = files.Places()
        # train rows first, so that a second run streams them in the order of the input; which side a
        # question is on was settled before, by a pass of its own over the held-out ones
        for placed in s.raw_preferences().read(run, first="train"):
            item = to_item(placed, ids, seed=s.seed, template=s.template)
            run.emit(item, to=paths[placed.split])


if __name__ == "__main__":
    Settings.run(main)
