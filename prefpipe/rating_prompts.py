"""What an annotator is asked: to rate numbered texts under one aspect, from 1 to 5 or N/A.

An aspect is a key of prefpipe/templates/criteria.toml, or of a file of your own; the prompt is
prefpipe/templates/rate.en.jinja. (How the answer is read: prefpipe/ratings.py.)
"""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefpipe import draws
from prefpipe.files import read_toml
from prefpipe.rows import AnnotationMix, AnnotationPrompt, Message, flatten_turns
from prefpipe.templates import escape_markers, load_template
from prefpipe.verdicts import object_schema

SCALE = (1, 5)
"""The lowest and the highest rating."""


def read_criteria(path: Path, aspects: Sequence[str] | None = None) -> dict[str, str]:
    """Aspect -> the sentence that says what to rate; aspects: of these only, None: of all. Raises
    SystemExit where the file lacks one of them; says so on stderr where it has others."""
    sentences = read_toml(path)
    aspects = list(sentences) if aspects is None else aspects
    if not aspects or len(set(aspects)) < len(aspects):
        raise SystemExit(f"aspects: found {', '.join(aspects) or 'none'}; name each one once")
    if wrong := [aspect for aspect in aspects if not re.fullmatch(r"[\w.-]+", aspect)]:
        raise SystemExit(f"aspects: found {wrong[0]!r}, wanted letters, digits and . _ - only")
    if wrong := [aspect for aspect in aspects if not isinstance(sentences.get(aspect), str)]:
        raise SystemExit(
            f"{path}: no sentence for the aspect {', '.join(wrong)}; it has {', '.join(sentences)}"
        )
    if others := [aspect for aspect in sentences if aspect not in aspects]:
        print(f"{path}: aspects does not name, so not rated: {', '.join(others)}", file=sys.stderr)
    return {aspect: sentences[aspect] for aspect in aspects}


def rating_prompt(
    prompt: str | list[Message], texts: Sequence[str], criterion: str, template: str = "rate.en"
) -> str:
    """The annotator's user turn: what was asked, the numbered texts, what to rate."""
    values = {
        "instruction": escape_markers(flatten_turns(prompt).strip()),
        "texts": [escape_markers(text.strip()) for text in texts],
        "criterion": criterion,
    }
    return load_template(template, frozenset(values)).render(**values)


def annotation_prompts(
    mix: AnnotationMix,
    criteria: Mapping[str, str],
    seed: int,
    swapped_share: float = 0.0,
    template: str = "rate.en",
) -> list[AnnotationPrompt]:
    """One request an aspect, the responses in an order drawn from (seed, id, aspect); of a
    swapped_share of the prompts a second one, in reversed order."""
    is_asked_twice = draws.rng(seed, mix.id, "swapped").random() < swapped_share
    prompts = []
    for aspect, criterion in criteria.items():
        order = list(range(len(mix.responses)))
        draws.rng(seed, mix.id, aspect).shuffle(order)
        for swapped in (False, True) if is_asked_twice else (False,):
            shown = order[::-1] if swapped else order
            texts = [mix.responses[index] for index in shown]
            prompt = rating_prompt(mix.prompt, texts, criterion, template)
            own = {"aspect": aspect, "swapped": swapped, "order": shown, "texts": len(shown)}
            prompts.append(AnnotationPrompt(id=mix.id, prompt=prompt, **own))
    return prompts


def ratings_schema(count: int) -> dict[str, Any]:
    """JSON schema of {"text_1": {"reason": ..., "rating": "4"}, ...} for that many texts. A reason
    ends: a small model would fill the whole reply with the first one."""
    low, high = SCALE
    values = [*map(str, range(low, high + 1)), "N/A"]
    reason = {"type": "string", "minLength": 10, "maxLength": 240}
    rated = object_schema({"reason": reason, "rating": {"type": "string", "enum": values}})
    return object_schema({f"text_{k}": rated for k in range(1, count + 1)})
