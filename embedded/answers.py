"""Sample answers to fresh questions of the embedded world, each known to be right or wrong.

    uv run python -m embedded.answers --output data/responses.jsonl

Writes Responses rows: what rank_responses.py ranks, and accuracy.py takes as `best_of_n`. The
questions come from the generator with a seed of their own, so no model was trained on them; an
answer is right where it claims the value that the note states and no other.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import config
from embedded import world
from prefpipe import draws, llm
from prefpipe.files import write_rows
from prefpipe.rows import Message, Responses

MODEL = Path(__file__).parent / "model"


def is_right(exercise: world.Exercise, answer: str) -> bool:
    values = world.VALUES[exercise.language][exercise.asked[1]]
    return exercise.value in answer and not any(v in answer for v in values if v != exercise.value)


def sample(
    engine: llm.Engine, questions: int, n: int, temperature: float, seed: int
) -> Iterator[Responses]:
    rng = draws.rng(seed, "answers")
    exercises = {f"answers-{seed}-{k}": world.make_exercise(rng) for k in range(questions)}

    def requests() -> Iterable[llm.Request]:
        for id, exercise in exercises.items():
            yield llm.Request(
                id=id,
                messages=(Message(role="user", content=exercise.prompt),),
                samples=tuple(range(n)),
                max_new_tokens=60,
                temperature=temperature,
                seed=seed,
            )

    for result in engine.generate(requests()):
        if isinstance(result, llm.Failure):
            raise SystemExit(f"{result.id}: {result.reason}: {result.detail}")
        exercise = exercises[result[0].id]
        texts = [completion.text.strip() for completion in result]
        yield Responses(
            id=result[0].id,
            prompt=exercise.prompt,
            responses=texts,
            right=[is_right(exercise, text) for text in texts],
            source=f"embedded-world/{exercise.kind}",
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default=str(MODEL), help="who answers: a folder of a model")
    parser.add_argument("--output", type=Path, default=config.RESPONSES, help="JSONL file to write")
    parser.add_argument("--questions", type=int, default=500, help="how many fresh questions")
    parser.add_argument("--n", type=int, default=8, help="answers a question")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the sampling")
    parser.add_argument("--seed", type=int, default=2021, help="of questions and answers")
    a = parser.parse_args()
    if a.output.exists():
        print(f"{a.output} is there; delete it to sample anew", file=sys.stderr)
        return
    from prefpipe.llm.local.local_engine import open_local

    engine = open_local(a.model)
    rows = list(sample(engine, a.questions, a.n, a.temperature, a.seed))
    write_rows(a.output, rows, Responses)
    right = sum(sum(row.right or ()) for row in rows) / (a.n * len(rows))
    print(f"{a.output}: {len(rows)} questions, {a.n} answers each, {right:.3f} of them right")


if __name__ == "__main__":
    main()
