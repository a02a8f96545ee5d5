"""Make judge items of a preference data set: a question, two answers in random order, the better one.

Reads   embedded/sample/preferences-*.parquet   a published format (--format), by default Sky(): the
                                                Skywork one; or Preference rows
Writes  data/pairwise_critic_inference2_get_answer/Sky/train.jsonl       Item rows
        data/pairwise_critic_inference2_get_answer/Sky/validation.jsonl  Item rows
        .../preprocess_dataset.rejects.jsonl                             Reject rows: why each was left out

    {"id": "p7", "prompt": "2+2?", "chosen": "4", "rejected": "5", "margin": null, "tie": false, "source": "sums"}
 -> {"id": "p7", "source": "sums", "split": "train", "language": "en", "question": "2+2?", "answer_1": "5", "answer_2": "4", "better": 2, "prompt": "[Question]..."}

    uv run preprocess_dataset.py --input my_preferences.parquet --validation-input ""
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import config
from prefpipe import files, pairing, sources
from prefpipe.prompts import flatten_turns
from prefpipe.rows import Item, Preference, Reject, Split


class Settings(config.Stage, env_prefix="PREPROCESS_"):
    input: str = config.RAW_TRAIN
    """A Parquet, JSONL or CSV file, a folder saved by `datasets`, or a data set's name on the hub."""
    validation_input: str = config.RAW_VALIDATION
    """The same for held-out rows. Empty: a share of the questions of input is held out."""
    validation_share: config.Share = 0.1
    """Share of the questions of input that is held out where there is no validation_input."""
    output: Path = config.ITEMS
    """Folder of train.jsonl and validation.jsonl."""
    format: Literal["sky", "llmbar", "autoj"] = "sky"
    """How a raw row is read; sky is conversational or plain prompt, chosen, rejected."""
    near_duplicate: config.Share = 0.8
    """A train question this similar to a held-out one (Jaccard of its text's windows) is left out."""
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
        held_out = pairing.NearDuplicates(_held_out_questions(s, sides), s.near_duplicate)
        places = files.Places()
        for source, place, record in _records(s):
            run.read_count += 1
            row = sources.read_preference(record, s.format)
            if isinstance(row, ValueError):
                run.bad_row(place, row)
                continue
            is_held_out = (
                source == s.validation_input if s.validation_input else sides[run.read_count - 1]
            )
            split: Split = "validation" if is_held_out else "train"
            if split == "train" and _question(row) in held_out:
                run.emit(Reject(id=row.id, reason="near_duplicate_of_validation", detail=place))
                continue
            if record.get("id"):
                places.check(row.id, place)
            elif first := places.seen_at(row.id, place):  # its id was made of its content
                detail = f"{place}: equal to {first}"
                run.emit(Reject(id=row.id, reason="duplicate_row", detail=detail))
                continue
            item = pairing.build_item(row, split=split, seed=s.seed, template=s.template)
            run.emit(item, to=paths[split])


def _question(row: Preference) -> str:
    return row.prompt if isinstance(row.prompt, str) else flatten_turns(row.prompt)


def _held_out_questions(s: Settings, sides: bytearray) -> Iterator[str]:
    """One pass before the one that writes: of the held-out rows or, where they are a share of the
    input, of all; sides gets 1 for each row that is held out, 0 for each other one.
    """
    for _, _, record in _records(s, s.validation_input or s.input):
        row = sources.read_preference(record, s.format)
        if isinstance(row, Preference) and (s.validation_input or _is_in_share(s, row)):
            sides.append(1)
            yield _question(row)
        else:
            sides.append(0)


def _is_in_share(s: Settings, row: Preference) -> bool:
    share, seed = s.validation_share, s.seed
    return pairing.split_of(_question(row), validation_share=share, seed=seed) == "validation"


def _records(s: Settings, *names: str) -> Iterator[tuple[str, str, Any]]:
    """(input name, place, record) of these inputs; of none, the train rows, then the held-out."""
    for name in names or filter(None, (s.input, s.validation_input)):
        for place, record in sources.read_named(name, s.limit):
            yield name, place, record


if __name__ == "__main__":
    Settings.run(main)
