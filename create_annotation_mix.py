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

from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import config
from prefpipe import draws, files
from prefpipe.files import DataError
from prefpipe.formats import prompts
from prefpipe.formats.opening import say
from prefpipe.ranges import AtLeastTwo, Regex, Share
from prefpipe.rating_prompts import annotation_prompts, read_criteria
from prefpipe.rows import AnnotationMix, AnnotationPrompt, ModelResponse, Prompt, Reject
from prefpipe.screen import show_table
from prefpipe.settings import NoEffectOnRows, PromptColumns
from prefpipe.templates import TEMPLATES, template_files

Outcome = Literal["in the mix", "not drawn", "equal", "cut", "empty", "missing"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


class Settings(PromptColumns, env_prefix="ANNOTATION_MIX_"):
    input: Path = config.MODEL_RESPONSES
    """Folder of the models' folders."""
    prompts: str = config.PROMPTS
    """What the models were asked: the input of generate_responses.py."""
    output: NoEffectOnRows[Path | None] = None
    """Folder of mix.jsonl and annotation_prompts.jsonl; None: where config.py names them
    (ANNOTATION_MIX, ANNOTATION_PROMPTS)."""
    include_model: Regex | None = None
    """Only models in whose name this regular expression is found; None: all."""
    ignore_model: Regex | None = None
    """No models in whose name this regular expression is found; None: all are used."""
    k: AtLeastTwo = 4
    """Responses a prompt, each of another model."""
    min_responses: AtLeastTwo = 2
    """A prompt with fewer different responses than this is left out."""
    on_policy_model: str | None = None
    """The model that must be on one side of each pair; prompts it did not answer are left out."""
    use_cut: bool = False
    """Use responses that were cut at their token limit, too."""
    aspects: list[str] | None = None
    """What is rated, each in a request of its own: keys of the criteria. None: all of them."""
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
    paths = files.each_of(s.prompts)
    responses = find_responses(s)
    mix_path = s.output / "mix.jsonl" if s.output else config.ANNOTATION_MIX
    asked_path = s.output / "annotation_prompts.jsonl" if s.output else config.ANNOTATION_PROMPTS
    inputs = [
        *files.here(paths),
        *responses.values(),
        s.criteria,
        *template_files(s.template, "rate"),
    ]
    outputs, home = {mix_path: AnnotationMix, asked_path: AnnotationPrompt}, mix_path.parent
    with s.open_run(inputs=inputs, outputs=outputs, home=home, unit="prompts") as run:
        if run.finished:
            return
        # merged by id in one pass, whatever the order of each model's file
        answers = {name: run.aligned(path, ModelResponse) for name, path in responses.items()}
        outcomes, sizes = run.counter("outcomes"), run.counter("sizes")
        read = prompts.read_prompts(paths, s.limit, s.how_read(prompts=True), partial(say, run))
        for row in prompts.accepted(run, read):
            given = {name: response_of(answers[name], responses[name], row) for name in responses}
            mix, became = build_mix(row, given, s)
            outcomes.update(became.items())
            if isinstance(mix, Reject):
                run.emit(mix)
                continue
            sizes[len(mix.responses)] += 1
            asked = annotation_prompts(mix, criteria, s.seed, s.swapped_share, s.template)
            run.keep((mix_path, mix), *((asked_path, request) for request in asked))
        if s.limit is None:
            for model_answers in answers.values():
                model_answers.check_used_up()
        run.summary |= {
            "responses_a_prompt": dict(sorted(sizes.items())),
            "models": {name: {o: outcomes[name, o] for o in OUTCOMES} for name in responses},
        }
    rows = [[name, *(str(outcomes[name, o]) for o in OUTCOMES)] for name in responses]
    show_table(["", *OUTCOMES], rows)
    shown = ", ".join(f"{n} with {size}" for size, n in sorted(sizes.items(), reverse=True))
    print(f"prompts by their number of responses: {shown}")


def find_responses(s: Settings) -> dict[str, Path]:
    """Model -> its responses. SystemExit where those that are there never give a mix."""
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
    return {name: found[name] for name in names}


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
    names = sorted(responses)
    draws.rng(s.seed, row.id, "models").shuffle(names)
    names.sort(key=lambda name: name != s.on_policy_model)  # stable: it comes first, if it is there
    became: dict[str, Outcome] = {}
    drawn: dict[str, str] = {}  # stripped text -> model
    for name in names:
        response = responses[name]
        if response is None:
            became[name] = "missing"
        elif not (text := response.text.strip()):
            became[name] = "empty"
        elif response.finish_reason == "length" and not s.use_cut:
            became[name] = "cut"
        elif text in drawn:
            became[name] = "equal"
        elif len(drawn) == s.k:
            became[name] = "not drawn"
        else:
            became[name], drawn[text] = "in the mix", name
    models = sorted(drawn.values())
    on_policy = None if s.on_policy_model is None else became[s.on_policy_model]
    if on_policy not in (None, "in the mix"):
        reason, detail = "no_on_policy_response", f"its response is {on_policy}"
    elif len(models) < s.min_responses:
        counts = Counter(became.values())
        parts = (f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome])
        reason, detail = "too_few_responses", ", ".join(parts)
    else:
        mix = AnnotationMix(
            id=row.id,
            prompt=row.prompt,
            responses=[r.text for r in map(responses.get, models) if r],
            models=models,
            on_policy=models.index(s.on_policy_model) if s.on_policy_model is not None else None,
            source=row.source,
        )
        return mix, became
    became = {n: "not drawn" if o == "in the mix" else o for n, o in became.items()}
    return Reject(id=row.id, reason=reason, detail=detail), became


if __name__ == "__main__":
    Settings.run(main)
