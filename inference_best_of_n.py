"""Sample several judgments of each item from the judge (repeated sampling).

Reads   data/pairwise_critic_inference2_get_answer/Sky/   Item rows (train and validation)
Writes  data/judgments/raw/best_of_n.jsonl                Judgment rows, n for each item that is no tie
        data/judgments/raw/.best_of_n.partial.jsonl       what is done so far; a stopped run goes on

    {"id": "p8", "source": "sums", "split": "train", "language": "en", "question": "2+2?", "answer_1": "5", "answer_2": "4", "better": 2, "prompt": "[Question]..."}
 -> {"id": "p8", "sample": 0, "variant": "best_of_n", "hint": null, "text": "{\\"reason\\": \\"4 is right.\\", \\"better_answer\\": 2}", "finish_reason": "stop", "prompt_tokens": 61, "new_tokens": 17}

    uv run inference_best_of_n.py --n 8 --temperature 1.2
"""

from collections.abc import Iterator
from pathlib import Path

import config
from prefpipe import files, llm, verdicts
from prefpipe.rows import Item, Judgment, Message, Reject, judgment_key


class Settings(config.ModelStage, env_prefix="BEST_OF_N_"):
    input: Path = config.ITEMS_ENGLISH
    """Folder of items, or one file of them."""
    output: Path = config.JUDGMENTS / "best_of_n.jsonl"
    n: config.Positive = 8
    """Judgments for each item."""
    temperature: config.Temperature = 1.2
    """0 would be greedy: n equal judgments."""
    top_p: config.TopP = 0.95
    """The likeliest tokens that have this share of the probability; 1: all."""
    top_k: config.NotNegative = 50
    """The likeliest tokens; 0: all."""


def key(item: Item, sample: int) -> str:
    return judgment_key(item.id, "best_of_n", sample)


def lacking(item: Item, n: int, log: files.RowLog[Judgment]) -> tuple[int, ...]:
    """The samples of the item that no earlier run has drawn. No pair is made of a tie: none."""
    return tuple(k for k in range(n) if item.better and key(item, k) not in log)


def main(s: Settings, engine: llm.Engine | None = None) -> None:
    inputs = [s.input, *config.local_folders(s.model)]
    with files.open_run(s, inputs=inputs, outputs={s.output: Judgment}, unit="items") as run:
        if run.finished:
            return
        log = run.open_log(Judgment)
        left = sum(bool(lacking(item, s.n, log)) for item in run.peek(s.input, Item))

        def requests() -> Iterator[llm.Request]:
            for item in run.peek(s.input, Item):
                if samples := lacking(item, s.n, log):
                    yield llm.Request(
                        id=item.id,
                        messages=(Message(role="user", content=item.prompt),),
                        samples=samples,
                        max_new_tokens=s.max_new_tokens,
                        temperature=s.temperature,
                        top_p=s.top_p,
                        top_k=s.top_k,
                        seed=s.seed,
                        reply_schema=verdicts.judgment_schema(item.language),
                    )

        def to_row(c: llm.Completion) -> Judgment:
            return Judgment(
                id=c.id,
                sample=c.sample,
                variant="best_of_n",
                hint=None,
                text=c.text,
                finish_reason=c.finish_reason,
                prompt_tokens=c.prompt_tokens,
                new_tokens=c.new_tokens,
            )

        failures = {}
        if left:
            engine = engine or s.open_engine(s.model)
            failures = llm.complete(engine, requests(), log, to_row, total=left, what="items")
        for item in run.read(s.input, Item):
            if item.better is None:
                run.emit(Reject(id=item.id, reason="tie"))
            elif failure := failures.get(item.id):
                run.emit(Reject(id=item.id, reason=failure.reason, detail=failure.detail))
            else:
                run.emit([log.get(key(item, k)) for k in range(s.n)])


if __name__ == "__main__":
    Settings.run(main)
