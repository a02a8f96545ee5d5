"""Fresh questions of the embedded world for the synthetic path, and how often its pairs have the right answer.

    uv run python -m embedded.synthetic prompts --output data/synthetic/prompts.jsonl --questions 200
    uv run python -m embedded.synthetic right --preferences data/synthetic/preferences.jsonl

The questions come from the generator with a seed of their own, so no model was trained on them, and
from an id alone the question can be made again: the second command needs no answers in the files.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import config
from embedded import world
from embedded.answers import is_right
from prefpipe import draws
from prefpipe.evaluation.metrics import wilson
from prefpipe.files import read_rows, write_rows
from prefpipe.rows import Prompt, SyntheticPair


def make_exercises(seed: int) -> Iterator[tuple[str, world.Exercise]]:
    """(id, exercise) without end; English ones, since the ratings are."""
    rng = draws.rng(seed, "synthetic")
    number = 0
    while True:
        yield f"synthetic-{seed}-{number}", world.make_exercise(rng, world.ENGLISH)
        number += 1


def exercises_of(ids: set[str]) -> dict[str, world.Exercise]:
    """The exercises of these ids, made again."""
    exercises = {}
    for seed in {id.split("-")[1] for id in ids}:
        left = {id for id in ids if id.split("-")[1] == seed}
        for id, exercise in make_exercises(int(seed)):
            if id in left:
                exercises[id] = exercise
                left.discard(id)
            if not left:
                break
    return exercises


def write_prompts(output: Path, questions: int, seed: int) -> None:
    rows = (
        Prompt(id=id, prompt=exercise.prompt, source=f"embedded-world/{exercise.kind}")
        for (id, exercise), _ in zip(make_exercises(seed), range(questions), strict=False)
    )
    write_rows(output, rows, Prompt)
    print(f"{output}: {questions} questions")


def right_lines(pairs: list[SyntheticPair]) -> list[str]:
    """How often the chosen and how often the rejected side is right, ties left out."""
    decided = [pair for pair in pairs if not pair.tie]
    exercises = exercises_of({pair.id.split(":")[0] for pair in decided})
    lines = [f"{len(decided)} pairs, and {len(pairs) - len(decided)} ties, which are in no share"]
    for side in ("chosen", "rejected"):
        right = sum(is_right(exercises[p.id.split(":")[0]], str(getattr(p, side))) for p in decided)
        lines.append(f"right answers among {side:8}: {wilson(right, len(decided))}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    prompts = commands.add_parser("prompts", help="write fresh questions")
    prompts.add_argument(
        "--output", type=Path, default=Path(config.PROMPTS), help="JSONL file to write"
    )
    prompts.add_argument("--questions", type=int, default=200, help="how many")
    prompts.add_argument("--seed", type=int, default=2021, help="of the questions")
    right = commands.add_parser("right", help="print how often each side is right")
    right.add_argument(
        "--preferences", type=Path, default=config.SYNTHETIC_PREFERENCES, help="what to look at"
    )
    a = parser.parse_args()
    if a.command == "right":
        print("\n".join(right_lines(list(read_rows(a.preferences, SyntheticPair)))))
    elif a.output.exists():
        print(f"{a.output} is there; delete it to make others", file=sys.stderr)
    else:
        write_prompts(a.output, a.questions, a.seed)


if __name__ == "__main__":
    main()
