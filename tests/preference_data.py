"""Preference rows and a tiny base model for the tests of the preference models. Nothing is downloaded."""

import json
import random
from pathlib import Path
from typing import Any

from prefpipe.rows import JudgmentPair
from tests.training_models import qwen2, tokenizer


def save_base(folder: Path) -> Path:
    """A random causal model with its tokenizer, as a folder."""
    tok = tokenizer()
    qwen2(vocabulary=len(tok), initializer_range=0.05).save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder


def row(id: str, **changes: Any) -> dict[str, Any]:
    made = {"id": id, "prompt": f"Say {id}.", "chosen": f"{id} yes", "rejected": f"{id} no, never"}
    return {**made, **changes}


def rows(count: int, name: str = "t", seed: int = 0) -> list[dict[str, Any]]:
    """Pairs whose better response holds a +, the worse one a -; a few pairs a prompt."""
    rng = random.Random(f"{name}:{seed}")

    def word(n: int) -> str:
        return "".join(rng.choices("abcdefgh", k=n))

    made = []
    while len(made) < count:
        prompt = f"{name} {word(24)}?"
        for _ in range(rng.randrange(1, 4)):
            words = [word(rng.randrange(2, 6)) for _ in range(2)]
            made.append(
                row(
                    f"{name}{len(made)}",
                    prompt=prompt,
                    chosen=words[0] + "+",
                    rejected=words[1] + "-",
                )
            )
    return made[:count]


def write_jsonl(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def judgment_pair(item: str, number: int, split: str, rng: random.Random) -> JudgmentPair:
    def turn(role: str, text: str) -> dict[str, str]:
        return {"role": role, "content": text}

    why = "".join(rng.choices("abcdef ", k=rng.randrange(4, 12)))
    return JudgmentPair.model_validate(
        {
            "id": f"{item}:best_of_n:{number}",
            "item_id": item,
            "split": split,
            "pair_type": "best_of_n",
            "better": 2,
            "prompt": [turn("user", f"Which is better for {item}?")],
            "chosen": [turn("assistant", f'{{"reason": "{why}", "better_answer": 2}}')],
            "rejected": [turn("assistant", f'{{"reason": "{why}!", "better_answer": 1}}')],
            "chosen_sample": 0,
            "rejected_sample": 1,
        }
    )
