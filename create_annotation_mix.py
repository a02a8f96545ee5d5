"""Choose the responses that are rated against each other, and render what the annotator is asked.

Reads   data/synthetic/prompts.jsonl                      Prompt rows, the same as generate_responses.py
        data/synthetic/responses/<model>/responses.jsonl  ModelResponse rows
Writes  data/synthetic/mix.jsonl                  AnnotationMix rows: up to k responses, each of another model
        data/synthetic/annotation_prompts.jsonl   AnnotationPrompt rows, one a prompt and aspect
        data/synthetic/create_annotation_mix.rejects.jsonl   Reject rows: what has too few responses

    {"id": "p8", "prompt": "2+2?", "model": "base-t0.5", "text": "4", "finish_reason": "stop", "prompt_tokens": 9, "new_tokens": 2}
 -> {"id": "p8", "prompt": "2+2?", "responses": ["4", "5"], "models": ["base-t0.5", "base-t1.1"], "on_policy": null, "source": "sums"}
 -> {"id": "p8", "aspect": "honesty", "swapped": false, "prompt": "[Instruction]\\n2+2?\\n\\n[Text 1]\\n5 ...", "order": [1, 0], "texts": 2}

Rules, each counted at the end: an empty response, one that was cut at its token limit, and one equal
to another model's do not count; of equal ones a drawn model's stands for all (the on-policy model's,
if it is among them). Of more than k, k are drawn; with fewer than k but min_responses or more, all
are taken; with fewer the prompt is a reject. A model that lacks a prompt takes it from nobody else.
The texts stand in an order drawn from (seed, id, aspect).

    uv run create_annotation_mix.py --k 4 --on-policy-model base-t0.8
"""

import random
import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

import config
from prefpipe import files
from prefpipe.files import DataError
from prefpipe.formats import prompts
from prefpipe.ranges import Regex, Share
from prefpipe.rows import (
    AnnotationMix,
    AnnotationPrompt,
    Message,
    ModelResponse,
    Prompt,
    Reject,
    flatten_turns,
)
from prefpipe.settings import Stage
from prefpipe.templates import TEMPLATES, escape_markers, load_template

Outcome = Literal["in the mix", "not drawn", "equal", "cut", "empty", "missing"]
OUTCOMES: tuple[Outcome, ...] = ("in the mix", "not drawn", "equal", "cut", "empty", "missing")


class Settings(Stage, env_prefix="ANNOTATION_MIX_"):
    input: Path = config.MODEL_RESPONSES
    """Folder of the models' folders."""
    prompts: str = config.PROMPTS
    """What the models were asked: the input of generate_responses.py."""
    output: Path = config.SYNTHETIC
    """Folder of mix.jsonl and annotation_prompts.jsonl."""
    include_model: Regex | None = None
    """Only models in whose name this regular expression is found; None: all."""
    ignore_model: Regex | None = None
    """No models in whose name this regular expression is found; None: all are used."""
    k: Annotated[int, Field(ge=2)] = 4
    """Responses a prompt, each of another model."""
    min_responses: Annotated[int, Field(ge=2)] = 2
    """A prompt with fewer different responses than this is left out."""
    on_policy_model: str | None = None
    """The model that must be on one side of each pair; prompts it did not answer are left out."""
    use_cut: bool = False
    """Use responses that were cut at their token limit, too."""
    aspects: list[str] = ["instruction_following", "honesty", "truthfulness", "helpfulness"]
    """What is rated, each in a request of its own: keys of the criteria."""
    criteria: Path = TEMPLATES / "criteria.toml"
    """A TOML file with a sentence an aspect: what to rate."""
    template: str = "rate.en"
    """The annotator's prompt: a name in prefpipe/templates, or a Jinja file of your own that takes
    instruction, texts and criterion."""
    swapped_share: Share = 0.0
    """Share of the prompts that are asked about twice, the texts in reversed order: whether the
    annotator agrees with itself."""


def main(s: Settings) -> None:
    criteria = read_criteria(s.criteria, s.aspects)
    paths = files.matching(s.prompts)
    found = {path.parent.name: path for path in sorted(s.input.glob("*/responses.jsonl"))}
    if not found:
        raise DataError(f"{s.input}: no <model>/responses.jsonl in it; run generate_responses.py")
    names = prompts.select_names(found, s.include_model, s.ignore_model)
    if s.on_policy_model is not None and s.on_policy_model not in names:
        raise SystemExit(
            f"on_policy_model: found {s.on_policy_model!r}, wanted one of {', '.join(names)}"
        )
    if len(names) < s.min_responses:
        raise SystemExit(
            f"{s.input}: {len(names)} models ({', '.join(names)}) never give {s.min_responses} "
            "responses to a prompt; ask more models, or lower --min-responses (not below 2)"
        )
    mix_path, asked_path = s.output / "mix.jsonl", s.output / "annotation_prompts.jsonl"
    inputs = [*paths, *(found[name] for name in names), s.criteria]
    if Path(s.template).is_file():
        inputs.append(Path(s.template))
    outputs = {mix_path: AnnotationMix, asked_path: AnnotationPrompt}
    with files.open_run(s, inputs=inputs, outputs=outputs, home=s.output, unit="prompts") as run:
        if run.finished:
            return
        answers = {name: files.Aligned(found[name], ModelResponse) for name in names}
        outcomes: Counter[tuple[str, Outcome]] = Counter()
        sizes: Counter[int] = Counter()
        for place, row in prompts.read_prompts(paths, s.limit):
            run.read_count += 1
            if isinstance(row, ValueError):
                run.bad_row(place, row)
                continue
            if isinstance(row, Reject):
                run.emit(row)
                continue
            responses = {name: response_of(answers[name], found[name], row) for name in names}
            mix, became = build_mix(row, responses, s)
            outcomes.update(became.items())
            if isinstance(mix, Reject):
                run.emit(mix)
                continue
            sizes[len(mix.responses)] += 1
            asked = annotation_prompts(mix, criteria, s)
            run.keep((mix_path, mix), *((asked_path, request) for request in asked))
        if s.limit is None:
            for model_answers in answers.values():
                model_answers.check_used_up()
        run.summary |= {
            "responses_a_prompt": dict(sorted(sizes.items())),
            "models": {n: {o: outcomes[n, o] for o in OUTCOMES} for n in names},
        }
    print("\n".join(summary_lines(names, outcomes, sizes)))


def read_criteria(path: Path, aspects: Sequence[str]) -> dict[str, str]:
    """Aspect -> its sentence, for these aspects. SystemExit where the file lacks one of them."""
    try:
        known = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise SystemExit(f"{path}: {error}") from None
    if not aspects or len(set(aspects)) < len(aspects):
        raise SystemExit(f"aspects: found {', '.join(aspects) or 'none'}; name each one once")
    if wrong := [aspect for aspect in aspects if not re.fullmatch(r"[\w.-]+", aspect)]:
        raise SystemExit(f"aspects: found {wrong[0]!r}, wanted letters, digits and . _ - only")
    if wrong := [aspect for aspect in aspects if not isinstance(known.get(aspect), str)]:
        raise SystemExit(
            f"{path}: no sentence for the aspect {', '.join(wrong)}; it has {', '.join(known)}"
        )
    return {aspect: known[aspect] for aspect in aspects}


def response_of(
    answers: files.Aligned[ModelResponse], path: Path, row: Prompt
) -> ModelResponse | None:
    """The model's response to the prompt; None: it has none."""
    rows = answers.rows_of(row.id)
    if len(rows) > 1:
        raise DataError(f"{path}: id {row.id!r} stands there {len(rows)} times; wanted once")
    if rows and rows[0].prompt != row.prompt:
        raise DataError(
            f"{path}: id {row.id!r} answers another prompt than the one that has this id now; run "
            "generate_responses.py --overwrite"
        )
    return rows[0] if rows else None


def build_mix(
    row: Prompt, responses: Mapping[str, ModelResponse | None], s: Settings
) -> tuple[AnnotationMix | Reject, dict[str, Outcome]]:
    """The prompt's mix, and what became of each model's response. Drawn from (seed, id) alone."""
    became: dict[str, Outcome] = {}
    names = sorted(responses)
    random.Random(f"{s.seed}:{row.id}:models").shuffle(names)
    names.sort(key=lambda name: name != s.on_policy_model)  # stable: it comes first, if it is there
    drawn: dict[str, ModelResponse] = {}
    seen: set[str] = set()
    for name in names:
        response = responses[name]
        text = response.text.strip() if response else ""
        if response is None:
            became[name] = "missing"
        elif not text:
            became[name] = "empty"
        elif response.finish_reason == "length" and not s.use_cut:
            became[name] = "cut"
        elif text in seen:
            became[name] = "equal"
        elif len(drawn) == s.k:
            became[name] = "not drawn"
        else:
            became[name] = "in the mix"
            seen.add(text)
            drawn[name] = response
    models = sorted(drawn)
    reason = detail = ""
    if s.on_policy_model is not None and s.on_policy_model not in drawn:
        reason, detail = "no_on_policy_response", f"its response is {became[s.on_policy_model]}"
    elif len(drawn) < s.min_responses:
        counts = Counter(became.values())
        parts = (f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome])
        reason, detail = "too_few_responses", ", ".join(parts)
    if reason:
        became = {n: "not drawn" if o == "in the mix" else o for n, o in became.items()}
        return Reject(id=row.id, reason=reason, detail=detail), became
    mix = AnnotationMix(
        id=row.id,
        prompt=row.prompt,
        responses=[drawn[name].text for name in models],
        models=models,
        on_policy=models.index(s.on_policy_model) if s.on_policy_model is not None else None,
        source=row.source,
    )
    return mix, became


def annotation_prompts(
    mix: AnnotationMix, criteria: Mapping[str, str], s: Settings
) -> list[AnnotationPrompt]:
    """One request an aspect; two, the second in reversed order, of a swapped_share of the prompts."""
    is_asked_twice = random.Random(f"{s.seed}:{mix.id}:swapped").random() < s.swapped_share
    made = []
    for aspect, criterion in criteria.items():
        order = list(range(len(mix.responses)))
        random.Random(f"{s.seed}:{mix.id}:{aspect}").shuffle(order)
        for swapped in (False, True) if is_asked_twice else (False,):
            shown = order[::-1] if swapped else order
            made.append(
                AnnotationPrompt(
                    id=mix.id,
                    aspect=aspect,
                    swapped=swapped,
                    prompt=rating_prompt(
                        mix.prompt, [mix.responses[k] for k in shown], criterion, s.template
                    ),
                    order=shown,
                    texts=len(shown),
                )
            )
    return made


def rating_prompt(
    prompt: str | list[Message], texts: Sequence[str], criterion: str, template: str = "rate.en"
) -> str:
    """The annotator's user turn: what was asked, the numbered texts, what to rate."""
    asked = prompt if isinstance(prompt, str) else flatten_turns(prompt)
    values = {
        "instruction": escape_markers(asked.strip()),
        "texts": [escape_markers(text.strip()) for text in texts],
        "criterion": criterion,
    }
    return load_template(template, frozenset(values)).render(**values)


def summary_lines(
    names: Sequence[str], outcomes: Counter[tuple[str, Outcome]], sizes: Counter[int]
) -> list[str]:
    width = max(len(name) for name in names)
    lines = [f"{'':{width}}  " + "  ".join(f"{outcome:>10}" for outcome in OUTCOMES)]
    for name in names:
        counts = "  ".join(f"{outcomes[name, outcome]:>10}" for outcome in OUTCOMES)
        lines.append(f"{name:{width}}  {counts}")
    parts = ", ".join(f"{n} with {size}" for size, n in sorted(sizes.items(), reverse=True))
    return [*lines, f"prompts by their number of responses: {parts}"]


if __name__ == "__main__":
    Settings.run(main)
