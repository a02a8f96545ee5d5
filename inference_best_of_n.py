"""Sample several judgments of each item from the judge (repeated sampling).

Reads   data/pairwise_critic_inference2_get_answer/Sky_english/  Item rows (train and validation)
Writes  data/judgments/raw/best_of_n.jsonl                Judgment rows, n for each item that is no tie
        data/judgments/raw/.best_of_n.partial.jsonl       what is done so far; a stopped run goes on

    {"id": "p8", "source": "sums", "split": "train", "language": "en", "question": "2+2?", "answer_1": "5", "answer_2": "4", "better": 2, "prompt": "[Question]..."}
 -> {"id": "p8", "sample": 0, "variant": "best_of_n", "hint": null, "text": "{\\"reason\\": \\"4 is right.\\", \\"better_answer\\": 2}", "finish_reason": "stop", "prompt_tokens": 61, "new_tokens": 17}

    uv run inference_best_of_n.py --n 8 --temperature 1.2
"""

from functools import partial
from pathlib import Path

import config
from prefpipe import llm, verdicts
from prefpipe.llm.replies import Replies
from prefpipe.ranges import Positive, Temperature, TopK, TopP
from prefpipe.rows import Item, Judgment, Reject
from prefpipe.settings import ModelStage, local_folders
from prefpipe.verdicts import fault_of_verdict


class Settings(ModelStage, env_prefix="BEST_OF_N_"):
    input: Path = config.ITEMS_ENGLISH
    """Folder of items, or one file of them."""
    output: Path = config.JUDGMENTS / "best_of_n.jsonl"
    n: Positive = 8
    """Judgments for each item."""
    temperature: Temperature = 1.2
    """0 would be greedy: n equal judgments."""
    top_p: TopP = 0.95
    top_k: TopK = 50


def to_request(item: Item, s: Settings) -> llm.Request:
    schema = verdicts.judgment_schema(item.language)
    return s.request(item.id, item.prompt, samples=tuple(range(s.n)), reply_schema=schema)


def to_judgments(item: Item, replies: Replies, n: int) -> list[Judgment] | Reject:
    """The item's n samples, or why it has none."""
    if item.better is None:
        return Reject(id=item.id, reason="tie")  # no pair is made of a tie
    reply = replies.of(item.id, n)
    if isinstance(reply, Reject):
        return reply
    own = {"id": item.id, "variant": "best_of_n", "hint": None}
    return [Judgment(**own, sample=c.sample, **c.written) for c in reply]


def main(s: Settings, engine: llm.Engine | None = None) -> None:
    inputs = [s.input, *local_folders(s.model)]
    with s.open_run(inputs=inputs, outputs={s.output: Judgment}, unit="items") as run:
        if run.finished:
            return
        # A tie has no right verdict to sample for: it is rejected below, and nothing is asked for it.
        # What is asked and what is written are two passes, since only Replies knows what is missing.
        asked = partial(run.peek, s.input, Item)
        replies = Replies(run, lambda: (to_request(item, s) for item in asked() if item.better))
        replies.ask(lambda: engine or s.open_engine(s.model), "items", fault_of=fault_of_verdict)
        # all n or none: fewer would be another draw for the item than for its neighbours
        for item in run.read(s.input, Item):
            run.emit(to_judgments(item, replies, s.n))


if __name__ == "__main__":
    Settings.run(main)
