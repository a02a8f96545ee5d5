"""Make judge items of a preference data set: a question, two answers in random order, the better one.

Reads   embedded/sample/preferences-*.parquet   a published format (--format), by default Sky(): the
                                                Skywork one; or Preference rows
Writes  data/pairwise_critic_inference2_get_answer/Sky/train.jsonl       Item rows
        data/pairwise_critic_inference2_get_answer/Sky/validation.jsonl  Item rows
        .../preprocess_dataset.rejects.jsonl                             Reject rows: why each was left out

    {"id": "p8", "prompt": "2+2?", "chosen": "4", "rejected": "5", "margin": null, "tie": false, "source": "sums"}
 -> {"id": "p8", "source": "sums", "split": "train", "language": "en", "question": "2+2?", "answer_1": "5", "answer_2": "4", "better": 2, "prompt": "[Question]..."}

    uv run preprocess_dataset.py --input my_preferences.parquet --validation-input ""
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import config
from prefpipe import files, judge, questions
from prefpipe.formats import reading
from prefpipe.near_duplicates import NearDuplicates
from prefpipe.ranges import Share
from prefpipe.rows import Item, Preference, Reject, Split, flatten_turns
from prefpipe.settings import Stage


class Settings(Stage, env_prefix="PREPROCESS_"):
    input: str = config.RAW_TRAIN
    """A Parquet, JSONL or CSV file, a folder saved by `datasets`, or a data set's name on the hub."""
    validation_input: str = config.RAW_VALIDATION
    """The same for held-out rows. Empty: a share of the questions of input is held out."""
    validation_share: Share = 0.1
    """Share of the questions of input that is held out where there is no validation_input."""
    output: Path = config.ITEMS
    """Folder of train.jsonl and validation.jsonl."""
    format: Literal["sky", "llmbar", "autoj"] = "sky"
    """How a raw row is read; sky is conversational or plain prompt, chosen, rejected."""
    near_duplicate: Share = 0.8
    """A train question this similar to a held-out one (Jaccard of five-word shingles) is left out."""
    template: str | None = None
    """A Jinja file to use as the judge's prompt in place of prefpipe/templates/judge.*.jinja."""


def main(s: Settings) -> None:
    outputs = {s.output / f"{split}.jsonl": Item for split in files.SPLITS}
    local = [Path(name) for name in (s.input, s.validation_input) if name and Path(name).exists()]
    if s.template:
        local.append(Path(s.template))
    with files.open_run(s, inputs=local, outputs=outputs, home=s.output) as run:
        if run.finished:
            return
        paths = {split: s.output / f"{split}.jsonl" for split in files.SPLITS}
        sides = bytearray()
        held_out = NearDuplicates(_held_out_questions(s, sides), s.near_duplicate)
        places = files.Places()
        for block in questions.in_blocks(_split_rows(s, sides)):
            asked = [
                flatten_turns(row.prompt)
                for _, row, _, split in block
                if split == "train" and isinstance(row, Preference)
            ]
            near = iter(held_out.find(asked))
            for place, row, has_id, split in block:
                run.read_count += 1
                if isinstance(row, ValueError):
                    run.bad_row(place, row)
                    continue
                if split == "train" and next(near):
                    reason = "near_duplicate_of_validation"
                    run.emit(Reject(id=row.id, reason=reason, detail=place))
                    continue
                if has_id:
                    places.check(row.id, place)
                elif first := places.seen_at(row.id, place):  # its id was made of its content
                    detail = f"{place}: equal to {first}"
                    run.emit(Reject(id=row.id, reason="duplicate_row", detail=detail))
                    continue
                item = judge.build_item(row, split=split, seed=s.seed, template=s.template)
                run.emit(item, to=paths[split])


def _held_out_questions(s: Settings, sides: bytearray) -> Iterator[str]:
    """One pass before the one that writes: of the held-out rows or, where they are a share of the
    input, of all; sides gets 1 for each row of that input that is held out, 0 for each other one.
    """
    share, seed = s.validation_share, s.seed
    for block in questions.in_blocks(_records(s, s.validation_input or s.input)):
        records = [record for _, _, record in block]
        asked = [_question_of(record, s.format) for record in records]
        if s.validation_input:
            on_side: list[Split] = ["validation"] * len(asked)
        else:
            on_side = questions.splits(asked, validation_share=share, seed=seed)
        held_out = [
            split == "validation"
            and isinstance(reading.read_preference(record, s.format), Preference)
            for record, split in zip(records, on_side, strict=True)
        ]
        sides.extend(held_out)
        yield from itertools.compress(asked, held_out)


def _question_of(record: Any, form: str) -> str:
    """Of a prompt that is text, without a look at the rest of the record; empty where it is no row."""
    if isinstance(record, dict) and isinstance(prompt := record.get("prompt"), str):
        return prompt
    row = reading.read_preference(record, form)
    return flatten_turns(row.prompt) if isinstance(row, Preference) else ""


def _split_rows(
    s: Settings, sides: bytearray
) -> Iterator[tuple[str, Preference | ValueError, bool, Split]]:
    """(place, row, whether it came with an id, its side) of each record."""
    for number, (source, place, record) in enumerate(_records(s)):
        row = reading.read_preference(record, s.format)
        is_held_out = source == s.validation_input if s.validation_input else sides[number]
        has_id = isinstance(row, Preference) and bool(record.get("id"))
        yield place, row, has_id, "validation" if is_held_out else "train"


def _records(s: Settings, *names: str) -> Iterator[tuple[str, str, Any]]:
    """(input name, place, record) of these inputs; of none, the train rows, then the held-out."""
    for name in names or filter(None, (s.input, s.validation_input)):
        for place, record in reading.read_named(name, s.limit):
            yield name, place, record


if __name__ == "__main__":
    Settings.run(main)
