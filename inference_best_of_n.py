"""Sample several judgments of each item from the judge (repeated sampling).

Reads   data/pairwise_critic_inference2_get_answer/Sky/   Item rows (train and validation)
Writes  data/judgments/raw/best_of_n.jsonl                Judgment rows, n for each item, in its order
        data/judgments/raw/.best_of_n.partial.jsonl       what is done so far; a stopped run goes on

    {"id": "p7", "source": "sums", "split": "train", "language": "en", "question": "2+2?", "answer_1": "5", "answer_2": "4", "better": 2, "prompt": "[Question]..."}
 -> {"id": "p7", "sample": 0, "variant": "best_of_n", "hint": null, "text": "{\\"reason\\": \\"4 is right.\\", \\"better_answer\\": 2}", "finish_reason": "stop", "prompt_tokens": 61, "new_tokens": 17}

    uv run inference_best_of_n.py --n 8 --temperature 1.2
"""

from collections.abc import Iterator
from pathlib import Path

import config
from prefpipe import files, llm
from prefpipe.rows import Item, Judgment, Message, Reject


class Settings(config.ModelStage, env_prefix="BEST_OF_N_"):
    input: Path = config.ITEMS_ENGLISH
    """Folder of items, or one file of them."""
    output: Path = config.JUDGMENTS / "best_of_n.jsonl"
    n: config.Positive = 8
    """Judgments for each item."""
    temperature: float = 1.2
    """0 would be greedy: n equal judgments."""
    top_p: config.Share = 0.95
    top_k: int = 50
    """0: all tokens."""


def key(item: Item, sample: int) -> str:
    return f"{item.id}\tbest_of_n\t{sample}"


def lacking(item: Item, n: int, log: files.RowLog[Judgment]) -> tuple[int, ...]:
    """The samples of the item that no earlier run has drawn."""
    return tuple(k for k in range(n) if key(item, k) not in log)


def main(s: Settings, engine: llm.Engine | None = None) -> None:
    inputs = [s.input, *config.local_folders(s.model)]
    with files.open_run(s, inputs=inputs, outputs={s.output: Judgment}, unit="items") as run:
        if run.finished:
            return
        log = run.open_log(Judgment)
        items = sum(1 for _ in run.peek(s.input, Item))

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

        failures = llm.complete(
            engine or s.open_engine(s.model), requests(), log, to_row, total=items, what="items"
        )
        for item in run.read(s.input, Item):
            if failure := failures.get(item.id):
                run.emit(Reject(id=item.id, reason=failure.reason, detail=failure.detail))
            else:
                run.emit([log.get(key(item, k)) for k in range(s.n)])


if __name__ == "__main__":
    Settings.run(main)
