"""Write the sample of raw preferences: the very format of the Skywork preference data.

    uv run python -m embedded.make_sample      # writes embedded/sample; a second

A row: `chosen` and `rejected` (lists of {role, content}; the turns before the last are the same in
both), `source`. Questions are disjoint between the two files.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from embedded import world
from prefpipe.rows import Message

FOLDER = Path(__file__).parent / "sample"
SEED = 20
TRAIN, VALIDATION = 2400, 1000
MULTI_TURN_SHARE = 0.03


class RawPreference(TypedDict):
    chosen: list[Message]
    rejected: list[Message]
    source: str


def make_row(rng: random.Random) -> tuple[str, RawPreference]:
    """The question that makes the row unique, and the row."""
    exercise = world.make_exercise(rng)
    turns: list[Message] = [{"role": "user", "content": exercise.prompt}]
    source = f"embedded-world/{exercise.kind}"
    if rng.random() < MULTI_TURN_SHARE and exercise.language == "en":
        turns = [
            {"role": "user", "content": "Please read this note.\n" + exercise.note},
            {"role": "assistant", "content": "Thank you, I have read it."},
            {"role": "user", "content": exercise.question},
        ]
    answers: list[list[Message]] = [
        [*turns, {"role": "assistant", "content": exercise.answers[index]}]
        for index in (exercise.better - 1, 2 - exercise.better)
    ]
    return exercise.prompt, {"chosen": answers[0], "rejected": answers[1], "source": source}


def make_rows(seed: int) -> Iterator[RawPreference]:
    """Endless rows, no question twice."""
    rng = random.Random(f"{seed}:sample")
    seen = set()
    while True:
        question, row = make_row(rng)
        if question not in seen:
            seen.add(question)
            yield row


def write(rows: list[RawPreference], path: Path) -> None:
    turns = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    schema = pa.schema([("chosen", turns), ("rejected", turns), ("source", pa.string())])
    pq.write_table(pa.Table.from_pylist(rows, schema), path, compression="zstd")


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    rows = make_rows(SEED)
    for name, count in (("train", TRAIN), ("validation", VALIDATION)):
        path = FOLDER / f"preferences-{name}.parquet"
        write([next(rows) for _ in range(count)], path)
        print(f"{path.name}: {count} rows, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
