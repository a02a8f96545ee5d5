"""Ask the judge for three more texts about each item: told the right answer, told the wrong one, not told.

Reads   data/pairwise_critic_inference2_get_answer/Sky/   Item rows (train and validation)
Writes  data/judgments/raw/guide.jsonl           Judgment rows: why the better answer is better
        data/judgments/raw/guide_reverse.jsonl   Judgment rows: why the worse answer is better
        data/judgments/raw/output.jsonl          Judgment rows: judged without a hint, greedily

    {"id": "p8", "source": "sums", "split": "train", "language": "en", "question": "2+2?", "answer_1": "5", "answer_2": "4", "better": 2, "prompt": "[Question]..."}
 -> {"id": "p8", "sample": 0, "variant": "guide", "hint": 2, "text": "4 is right.", "finish_reason": "stop", "prompt_tokens": 61, "new_tokens": 5}

The hint is in the prompt of `guide` and `guide_reverse` and nowhere else: what is trained on is the
prompt of the item. A tie has no right answer to hint at and is left out here, by reason.

    uv run inference_all.py
"""

from collections.abc import Iterator
from pathlib import Path

import config
from prefpipe import files, llm, verdicts
from prefpipe.prompts import judge_prompt
from prefpipe.rows import Item, Judgment, Message, Reject, Variant, judgment_key

VARIANTS: tuple[Variant, ...] = ("guide", "guide_reverse", "output")


class Settings(config.ModelStage, env_prefix="INFERENCE_ALL_"):
    input: Path = config.ITEMS_ENGLISH
    """Folder of items, or one file of them."""
    output: Path = config.JUDGMENTS
    """Folder of the three files."""
    temperature: config.Temperature = 0.0
    """Of all three; 0 is greedy."""
    top_p: config.TopP = 1.0
    """The likeliest tokens that have this share of the probability; 1: all."""
    top_k: config.NotNegative = 0
    """The likeliest tokens; 0: all."""
    guide_template: str | None = None
    """A Jinja file to use as the hinted prompt in place of prefpipe/templates/guide.*.jinja."""


def hint_of(item: Item, variant: Variant) -> int | None:
    """The answer that the variant's prompt calls better."""
    if item.better is None or variant == "output":
        return None
    return item.better if variant == "guide" else 3 - item.better


def prompt_of(item: Item, variant: Variant, template: str | None = None) -> str:
    """The item's own prompt, or the same question and answers under a hint."""
    hint = hint_of(item, variant)
    if hint is None:
        return item.prompt
    return judge_prompt(
        item.question,
        item.answer_1,
        item.answer_2,
        language=item.language,
        hint=hint,
        template=template,
    )


def main(s: Settings, engine: llm.Engine | None = None) -> None:
    outputs = {s.output / f"{variant}.jsonl": Judgment for variant in VARIANTS}
    inputs = [
        s.input,
        *config.local_folders(s.model),
        *([Path(s.guide_template)] if s.guide_template else []),
    ]
    with files.open_run(s, inputs=inputs, outputs=outputs, home=s.output, unit="items") as run:
        if run.finished:
            return
        log = run.open_log(Judgment)

        def lacking() -> Iterator[tuple[Item, Variant]]:
            for item in run.peek(s.input, Item):
                for variant in VARIANTS if item.better else ():
                    if key(item, variant) not in log:
                        yield item, variant

        def requests() -> Iterator[llm.Request]:
            for item, variant in lacking():
                prompt = prompt_of(item, variant, s.guide_template)
                yield llm.Request(
                    id=request_id(item, variant),
                    messages=(Message(role="user", content=prompt),),
                    max_new_tokens=s.max_new_tokens,
                    temperature=s.temperature,
                    top_p=s.top_p,
                    top_k=s.top_k,
                    seed=s.seed,
                    # A hinted reply is a reason, with or without an object around it.
                    reply_schema=verdicts.judgment_schema(item.language)
                    if variant == "output"
                    else None,
                )

        failures = {}
        if left := sum(1 for _ in lacking()):
            engine = engine or s.open_engine(s.model)
            failures = llm.complete(engine, requests(), log, to_row, total=left)
        for item in run.read(s.input, Item):
            if item.better is None:
                run.emit(Reject(id=item.id, reason="tie"))
            elif failed := [f for v in VARIANTS if (f := failures.get(request_id(item, v)))]:
                run.emit(Reject(id=item.id, reason=failed[0].reason, detail=failed[0].detail))
            else:
                run.keep(*((s.output / f"{v}.jsonl", log.get(key(item, v))) for v in VARIANTS))


def key(item: Item, variant: Variant) -> str:
    return judgment_key(item.id, variant, 0)


def request_id(item: Item, variant: Variant) -> str:
    """All that a judgment's row needs besides the text."""
    return f"{item.id}\t{variant}\t{hint_of(item, variant) or ''}"


def to_row(c: llm.Completion) -> Judgment:
    id, variant, hint = c.id.rsplit("\t", 2)
    return Judgment.model_validate(
        {
            "id": id,
            "sample": 0,
            "variant": variant,
            "hint": int(hint) if hint else None,
            "text": c.text,
            "finish_reason": c.finish_reason,
            "prompt_tokens": c.prompt_tokens,
            "new_tokens": c.new_tokens,
        }
    )


if __name__ == "__main__":
    Settings.run(main)
