"""Ask a judge to rate the numbered texts of each prompt, aspect by aspect: through a model here, a
server, or OpenAI's Batch API.

Reads   data/synthetic/annotation_prompts.jsonl    AnnotationPrompt rows
Writes  data/synthetic/annotations.jsonl           AnnotationAnswer rows, in the same order
        data/synthetic/annotations.rejects.jsonl   Reject rows
        data/batches/annotate_preferences/         with --engine batch: what was submitted, what came back

    {"id": "p8", "aspect": "honesty", "swapped": false, "prompt": "[Instruction]\\n2+2?\\n\\n[Text 1]\\n5\\n\\n[Text 2]\\n4...", "order": [1, 0], "texts": 2}
 -> {"id": "p8", "aspect": "honesty", "swapped": false, "text": "Text 1\\nReason: It is wrong.\\nRating: 1\\n\\nText 2\\nReason: It is right.\\nRating: 5", "finish_reason": "stop", "model": "gpt-4o-mini", "prompt_tokens": 61, "new_tokens": 31}

The steps of --engine batch, each of them safe to stop and to repeat: nothing is ever paid twice.
`run` is all of them: it submits, waits and reads, up to a day.

    uv run annotate_preferences.py
    uv run annotate_preferences.py --engine batch --model gpt-4o-mini --step estimate
    uv run annotate_preferences.py --engine batch --model gpt-4o-mini --max-cost 20 --step submit
    uv run annotate_preferences.py --engine batch --model gpt-4o-mini --step status    (or download)
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import config
from prefpipe import files, llm
from prefpipe.llm.costs import describe_estimate, describe_tokens, estimate
from prefpipe.llm.replies import Replies
from prefpipe.ranges import Positive, Temperature
from prefpipe.rating_prompts import ratings_schema
from prefpipe.ratings import fault_of_ratings
from prefpipe.rows import AnnotationAnswer, AnnotationPrompt, Reject
from prefpipe.settings import ModelStage, NoEffectOnRows, local_folders

if TYPE_CHECKING:
    from prefpipe.llm.batch_api.batch_engine import BatchEngine


class Settings(ModelStage, env_prefix="ANNOTATE_"):
    input: Path = config.ANNOTATION_PROMPTS
    output: Path = config.ANNOTATIONS
    step: NoEffectOnRows[
        Literal["run", "estimate", "submit", "status", "download", "export", "import"]
    ] = "run"
    """run: all of it. estimate: print tokens and money to expect, then stop (server, batch). submit,
    status, download: a single step of the batch engine; export, import: of --engine files."""
    temperature: Temperature = 0.0
    """0 is greedy: the same ratings in each run, as far as the server keeps to that."""
    max_new_tokens: Positive = 512
    """Tokens an annotation may have; one that is longer is cut, and marked so."""


def to_request(prompt: AnnotationPrompt, s: Settings) -> llm.Request:
    return s.request(prompt.key, prompt.prompt, reply_schema=ratings_schema(prompt.texts))


def to_answer(prompt: AnnotationPrompt, replies: Replies, model: str) -> AnnotationAnswer | Reject:
    """What the annotator wrote, or why there is nothing."""
    reply = replies.of(prompt.key)
    if isinstance(reply, Reject):
        return reply
    # the model's name goes into each row: files of two annotators are often put together
    own = {"id": prompt.id, "aspect": prompt.aspect, "swapped": prompt.swapped, "model": model}
    return AnnotationAnswer(**own, **reply[0].written)


@dataclass
class Downloads:
    """The batch engine as one that gives the answers there are, and submits nothing."""

    batches: "BatchEngine"

    def generate(
        self, requests: Iterable[llm.Request]
    ) -> Iterator[list[llm.Completion] | llm.Failure]:
        return self.batches.download(requests)


def main(s: Settings, engine: llm.Engine | None = None) -> None:
    if s.step in ("export", "import"):
        alike = {"export": "submit", "import": "download"}
        s = s.model_copy(update={"engine": "files", "step": alike[s.step]})
    if s.step in ("submit", "status", "download") and s.engine not in ("batch", "files"):
        raise SystemExit(f"--step {s.step} is one of the batch engine's: add --engine batch")
    if s.dry_run and s.step != "run":
        raise SystemExit("--dry-run is of all steps together: leave --step out")
    if s.step == "status":
        return print_status(s)
    if s.step == "estimate":
        return print_estimate(s)
    inputs, outputs = [s.input, *local_folders(s.model)], {s.output: AnnotationAnswer}
    with s.open_run(inputs=inputs, outputs=outputs, unit="annotation prompts") as run:
        if run.finished:
            return
        asked = partial(run.peek, s.input, AnnotationPrompt)
        replies = Replies(run, lambda: (to_request(prompt, s) for prompt in asked()))
        if s.step == "submit":
            left = list(replies.unanswered())  # all rows are read first: a doubled id is an error
            print(s.open_batches(s.model).submit(left))
            raise SystemExit(0)  # not the run's end: there is nothing to write yet
        if s.step == "download":
            engine = Downloads(s.open_batches(s.model))
        replies.ask(
            lambda: engine or s.open_engine(s.model), "annotations", fault_of=fault_of_ratings
        )
        # as the server counted them, beside print_estimate's guess
        used = run.counter("answers")
        for prompt in run.read(s.input, AnnotationPrompt):
            answer = to_answer(prompt, replies, s.model)
            if isinstance(answer, AnnotationAnswer):
                used.update(prompt=answer.prompt_tokens, new=answer.new_tokens)
            run.emit(answer)
        run.summary["tokens"] = {"prompt": used["prompt"], "new": used["new"]}
        took = describe_tokens(s.model, used["prompt"], used["new"], batch=s.engine == "batch")
        print(f"these answers took {took}")


def print_status(s: Settings) -> None:
    batches = [b for b in s.open_batches(s.model).status() if b.status != "absent"]
    for b in batches:
        answered = f"{b.done:,} of {b.requests:,} answered{'  downloaded' if b.downloaded else ''}"
        print(f"{b.batch_id or 'id not read yet'}  {b.status:<11}  {answered}")
    folder = s.batch_options().folder
    under_way = sum(batch.is_under_way for batch in batches)
    print(f"{folder}: {len(batches)} batches submitted, {under_way} not downloaded yet")


def print_estimate(s: Settings) -> None:
    if s.engine == "local":
        raise SystemExit("--step estimate: a model in this process costs nothing; see --engine")
    batch, prompts = s.engine == "batch", files.read_rows(s.input, AnnotationPrompt, s.limit)
    requests = (to_request(prompt, s) for prompt in prompts)
    left = s.open_batches(s.model).estimate(requests) if batch else estimate(requests, s.model)
    print(
        f"requests: {left.requests:,} to send; {left.submitted:,} are submitted or answered already"
    )
    tokens = (left.prompt_tokens, left.new_tokens)
    print(describe_estimate(s.model, *tokens, batch=batch, at_most=True, usd=left.usd))
    print("nothing was sent")


if __name__ == "__main__":
    Settings.run(main)
