"""Measure the embedded model on fresh exercises: answering, judging, hints, quoting, rating.

    uv run python -m embedded.evaluate              # prints JSON; minutes on 2 cores
    uv run python -m embedded.evaluate --items 200  # quicker, coarser

Exercises come from the generator with a seed of their own, so none was trained on. Nothing here looks
at how the model was trained; a verdict is read strictly from one JSON object.
"""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Qwen2ForCausalLM

from embedded import quotes, world
from prefpipe import chat, verdicts
from prefpipe.rows import Message

FOLDER = Path(__file__).parent
SEED = "evaluate"


class Model:
    """The saved model and plain `generate`, prompts of like length together."""

    def __init__(self, folder: Path):
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def answer(
        self,
        turns: Sequence[str | list[Message]],
        *,
        temperature: float = 0.0,
        max_new_tokens: int = 80,
    ) -> list[str]:
        """One answer a user turn or conversation; temperature 0 is greedy, else top-p 0.95, top-k 50."""
        sampling: dict[str, Any] = (
            {"do_sample": True, "temperature": temperature, "top_p": 0.95, "top_k": 50}
            if temperature
            else {"do_sample": False}
        )
        texts = [
            chat.render(
                self.tokenizer, [Message(role="user", content=t)] if isinstance(t, str) else t
            )
            for t in turns
        ]
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        answers = [""] * len(texts)
        for start in range(0, len(order), 96):
            batch = order[start : start + 96]
            inputs = self.tokenizer(
                [texts[i] for i in batch],
                padding=True,
                add_special_tokens=False,
                return_tensors="pt",
            )
            with torch.inference_mode():
                ids = self.model.generate(  # pyright: ignore[reportAttributeAccessIssue]
                    **inputs, max_new_tokens=max_new_tokens, **sampling
                )
            new = self.tokenizer.batch_decode(
                ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
            )
            for i, text in zip(batch, new, strict=True):
                answers[i] = text.strip()
        return answers


def read_verdict(language: str, text: str) -> int | None:
    """1 or 2 from one JSON object with nothing around it; None is unreadable."""
    try:
        verdict = json.loads(text)[verdicts.ANSWER_KEYS[language][1]]  # pyright: ignore[reportArgumentType]
    except (ValueError, KeyError, TypeError):
        return None
    return verdict if verdict in (1, 2) else None


def share(flags: Sequence[bool]) -> float:
    return round(sum(flags) / max(1, len(flags)), 3)


def swapped(exercise: world.Exercise) -> world.Exercise:
    """The same exercise with its answers in the other order."""
    return world.Exercise(
        **{
            **vars(exercise),
            "answers": exercise.answers[::-1],
            "values": exercise.values[::-1],
            "better": 3 - exercise.better,
        }
    )


def measure_judging(model: Model, exercises: Sequence[world.Exercise]) -> dict[str, Any]:
    texts = model.answer([world.judge_prompt(i) for i in exercises])
    verdicts = [read_verdict(i.language, t) for i, t in zip(exercises, texts, strict=True)]
    other = [swapped(i) for i in exercises]
    texts_2 = model.answer([world.judge_prompt(i) for i in other])
    verdicts_2 = [read_verdict(i.language, t) for i, t in zip(other, texts_2, strict=True)]
    both = [(a, b) for a, b in zip(verdicts, verdicts_2, strict=True) if a and b]
    unequal = [
        (v == (1 if len(i.answers[0]) > len(i.answers[1]) else 2))
        for i, v in zip(exercises, verdicts, strict=True)
        if v and len(i.answers[0]) != len(i.answers[1])
    ]
    result: dict[str, Any] = {
        "n": len(exercises),
        "accuracy": share([v == i.better for v, i in zip(verdicts, exercises, strict=True)]),
        "readable": share([v is not None for v in verdicts]),
        "order_agreement": share([a == 3 - b for a, b in both]),
        "first_position": share([v == 1 for v in verdicts if v]),
        "longer": share(unequal),
        "kinds": {},
    }
    for kind in world.KINDS:
        rows = [
            (i, v, t) for i, v, t in zip(exercises, verdicts, texts, strict=True) if i.kind == kind
        ]
        result["kinds"][kind] = {
            "n": len(rows),
            "accuracy": share([v == i.better for i, v, _ in rows]),
            "careful": share([i.fact in t for i, _, t in rows]),
        }
    for temperature in (1.0, 1.2):
        texts = model.answer([world.judge_prompt(i) for i in exercises], temperature=temperature)
        verdicts = [read_verdict(i.language, t) for i, t in zip(exercises, texts, strict=True)]
        careful = [
            v == i.better for i, v, t in zip(exercises, verdicts, texts, strict=True) if i.fact in t
        ]
        result[f"sampled_{temperature}"] = {
            "accuracy": share([v == i.better for v, i in zip(verdicts, exercises, strict=True)]),
            "readable": share([v is not None for v in verdicts]),
            "careful": round(len(careful) / len(exercises), 3),
            "accuracy_of_careful": share(careful),
        }
    return result


def measure_checking(model: Model, rng: random.Random, count: int) -> dict[str, float]:
    """Whether a right and a wrong answer, shown as its own, are told apart when asked about."""
    said: dict[bool, list[bool]] = {True: [], False: []}
    for right in (True, False):
        exercises = [world.make_exercise(rng) for _ in range(count)]
        asked = []
        for exercise in exercises:
            value = exercise.value if right else exercise.wrong
            check = world.CHECKS[exercise.language][0]
            asked.append(
                [
                    Message(role="user", content=exercise.prompt),
                    Message(
                        role="assistant",
                        content=world.word_answer(rng, exercise.language, *exercise.asked, value),
                    ),
                    Message(role="user", content=check),
                ]
            )
        for exercise, text in zip(exercises, model.answer(asked, max_new_tokens=4), strict=True):
            said[right].append(text == world.CHECKS[exercise.language][1 if right else 2])
    return {"right_is_yes": share(said[True]), "wrong_is_no": share(said[False])}


def measure_choosing(model: Model, exercises: Sequence[world.Exercise]) -> float:
    """Share of right labels in the pairwise models' form."""
    asked = [world.choosing_prompt(exercise) for exercise in exercises]
    texts = model.answer(asked, max_new_tokens=2)
    return share([t == "AB"[i.better - 1] for i, t in zip(exercises, texts, strict=True)])


def measure(model: Model, count: int) -> dict[str, Any]:
    torch.manual_seed(0)
    rng = random.Random(SEED)
    exercises = [world.make_exercise(rng) for _ in range(count)]
    few = exercises[: count // 2]
    result: dict[str, Any] = {"judge": measure_judging(model, exercises)}

    result["answer"] = {}
    for name, temperature in (("greedy", 0.0), ("sampled_1.0", 1.0)):
        texts = model.answer([i.prompt for i in few], temperature=temperature)
        result["answer"][name] = share(
            [i.value in t and i.wrong not in t for i, t in zip(few, texts, strict=True)]
        )
    result["check"] = measure_checking(model, random.Random(f"{SEED}:checks"), count // 2)
    result["choose"] = measure_choosing(model, exercises)
    result["hint"] = {}
    for name, right in (("right", True), ("wrong", False)):
        hints = [i.better if right else 3 - i.better for i in few]
        asked = [world.judge_prompt(i, h) for i, h in zip(few, hints, strict=True)]
        for style, temperature in (("greedy", 0.0), ("sampled_1.0", 1.0)):
            texts = model.answer(asked, temperature=temperature)
            careful = share([i.fact in t for i, t in zip(few, texts, strict=True)])
            result["hint"][f"{name}_{style}_careful"] = careful

    rng = random.Random(f"{SEED}:quotes")
    asked = [quotes.make_quote(rng) for _ in range(count // 3)]
    texts = model.answer([q.prompt for q in asked], max_new_tokens=100)
    result["quote"] = {
        "right_sentence": share([q.sentence in t for q, t in zip(asked, texts, strict=True)]),
        "begins_right": share(
            [q.sentence[: len(q.sentence) // 2] in t for q, t in zip(asked, texts, strict=True)]
        ),
    }

    rng = random.Random(f"{SEED}:ratings")
    rated = [world.make_rating(rng) for _ in range(count // 6)]
    texts = model.answer([r.prompt for r in rated], max_new_tokens=180)
    right, wrong, blocks = [], [], 0
    for task, text in zip(rated, texts, strict=True):
        found = [b.rpartition("Rating: ")[2].strip() for b in text.split("\n\n")]
        blocks += len(found) == len(task.right)
        for is_right, shown in zip(task.right, found, strict=False):
            if shown in ("1", "2", "3", "4", "5"):
                (right if is_right else wrong).append(int(shown))
    result["rating"] = {
        "complete": round(blocks / len(rated), 3),
        "mean_of_right": round(sum(right) / max(1, len(right)), 2),
        "mean_of_wrong": round(sum(wrong) / max(1, len(wrong)), 2),
        "right_above_wrong": share([a > b for a in right for b in wrong]),
    }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=FOLDER / "model", help="folder of the model")
    parser.add_argument(
        "--items", type=int, default=800, help="judge exercises; others in proportion"
    )
    arguments = parser.parse_args()
    print(json.dumps(measure(Model(arguments.model), arguments.items), indent=2))


if __name__ == "__main__":
    main()
