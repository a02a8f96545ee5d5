"""Translate the Chinese judge items into English through any OpenAI-compatible server.

Reads   data/pairwise_critic_inference2_get_answer/Sky/           Item rows (train and validation)
Writes  data/pairwise_critic_inference2_get_answer/Sky_english/   Item rows, in the same order: of
                                                                  each split the first 5,000
        .../translation.rejects.jsonl                             Reject rows

    {"id": "p8", "source": "sums", "split": "train", "language": "zh", "question": "2加2等于几?", "answer_1": "五", "answer_2": "四", "better": 2, "prompt": "[问题]..."}
 -> {"id": "p8", "source": "sums", "split": "train", "language": "en", "question": "What is 2 plus 2?", "answer_1": "Five", "answer_2": "Four", "better": 2, "prompt": "[Question]..."}

English items pass as they are, at no cost. With neither OPENAI_API_KEY nor a server all items do,
and the closing lines say how many stayed Chinese. Each reply is checked: the three texts, whole, in
English, with the JSON that stood inside them; a reply that fails is asked for again. Every reply that
was paid is kept, one that failed too: a stopped run goes on behind it.

    uv run translation.py --estimate
    OPENAI_API_KEY=... uv run translation.py
    uv run translation.py --base-urls http://127.0.0.1:8000/v1 --model Qwen/Qwen2-7B-Instruct
"""

import functools
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import config
from prefpipe import files, translations
from prefpipe.llm import Request, costs
from prefpipe.llm.tries import Tries
from prefpipe.ranges import Positive
from prefpipe.rows import Item, Message, Reject
from prefpipe.settings import Account, NoEffectOnRows, ServerStage
from prefpipe.templates import load_template, template_files

if TYPE_CHECKING:
    from prefpipe.llm.batch_api.batch_engine import BatchEngine
    from prefpipe.llm.server.server_engine import ServerEngine


class Settings(ServerStage, env_prefix="TRANSLATION_"):
    input: Path = config.ITEMS
    """Folder of train and validation items, or one file of items."""
    output: Path = config.ITEMS_ENGLISH
    """Folder of train.jsonl and validation.jsonl."""
    engine: NoEffectOnRows[Literal["server", "batch", "files"]] = "server"
    """server: requests at once; batch: the OpenAI Batch API, at half the price, within a day; files:
    written to batch_folder for vllm run-batch, and its results read there."""
    model: str = "gpt-4o-mini"
    """The model's name at the server."""
    max_rows: Positive | None = 5000
    """Items of each split that are written, the first ones; the rest is left out. None: all."""
    tries: NoEffectOnRows[Positive] = 3
    """Times an item is asked for at most, where the reply fails a check."""
    reply_format: Literal["json_schema", "json_object", "text"] = "json_schema"
    """What the server is told about the reply's form; text, where it knows no other."""
    max_new_tokens: Positive = 16_384
    """Tokens a translation may have at most: the model's own limit."""
    template: str | None = None
    """A Jinja file to use as the judge's prompt in place of prefpipe/templates/judge.en.jinja."""
    instruction_template: str = "translate"
    """A Jinja file, or a name in prefpipe/templates: what the translator is told."""
    offline: NoEffectOnRows[bool] = False
    """Ask no server, also where a key is set: every item passes as it is."""
    estimate: NoEffectOnRows[bool] = False
    """Print rows, tokens and money to expect, then stop: nothing is sent or written."""
    require: NoEffectOnRows[bool] = False
    """Without a server, stop where there is anything to translate."""

    def asks(self) -> bool:
        """Whether there is anybody to ask; else every item passes as it is."""
        return not self.offline and (
            self.engine == "files" or bool(self.serve or self.base_urls or Account().base_urls())
        )

    def open_translator(self) -> "ServerEngine | BatchEngine":
        form = {"response_format": {"type": "json_object"}}
        return (self.open_server if self.engine == "server" else self.open_batches)(
            self.model,
            structured_output=self.reply_format == "json_schema",
            extra_body=form if self.reply_format == "json_object" else None,
            dispensable=("temperature",),  # each reply is checked, however it was drawn
        )

    def rows_depend_on(self) -> dict[str, Any]:
        return {**super().rows_depend_on(), "translates": self.asks()}


def to_request(item: Item, s: Settings, attempt: int) -> Request:
    """The first attempt is greedy; later ones sample, so as not to get the same text again."""
    source = translations.texts_as_json(item)
    instruction = load_template(s.instruction_template)
    content = instruction.render(keys=translations.FIELDS, object=source)
    return Request(
        id=item.id,
        messages=(Message(role="user", content=content),),
        # English rarely takes twice the tokens; a text that runs on without end is cut here.
        max_new_tokens=min(s.max_new_tokens, 256 + 2 * costs.estimate_tokens(source)),
        temperature=0.5 if attempt else 0.0,
        seed=s.seed + attempt,
        reply_schema=translations.SCHEMA,
    )


def ends_of_splits(s: Settings) -> dict[str, float]:
    """Split -> how many rows of the input stand before the one behind its max_rows-th item."""
    seen, ends = Counter[str](), dict[str, float]()
    rows = files.typed_rows(s.input, Item, s.limit) if s.max_rows else ()
    for number, (_, row) in enumerate(rows, start=1):
        if isinstance(row, Item):
            seen[row.split] += 1
            if seen[row.split] == s.max_rows:
                ends[row.split] = number
    return ends


def main(s: Settings) -> None:
    if s.estimate:
        print_estimate(s)
        return
    outputs = {s.output / f"{split}.jsonl": Item for split in files.SPLITS}
    inputs = [s.input, *template_files(s.template or "judge.en", "judge")]
    inputs += template_files(s.instruction_template, "translate")
    with s.open_run(inputs=inputs, outputs=outputs, home=s.output) as run:
        if run.finished:
            return

        # counted over all rows, whichever of them are this shard's
        ends = ends_of_splits(s) if run.shards.reads else {}

        def is_wanted(item: Item) -> bool:
            return run.position < ends.get(item.split, math.inf)

        def to_translate() -> Iterator[Item]:
            items = run.peek(s.input, Item)
            return (item for item in items if item.language == "zh" and is_wanted(item))

        tries = Tries(
            run,
            to_translate,
            lambda item, number: to_request(item, s, number),
            lambda item, reply: translations.english_item(item, reply, template=s.template),
            translations.ASKED_AGAIN,
        )
        engine = functools.cache(s.open_translator)
        if s.asks():
            tries.ask(engine, s.tries)
        paid = engine() if engine.cache_info().currsize else None
        # every item is written, translated or not: a judge may read Chinese
        counts = run.counter("items")
        for item in run.read(s.input, Item):
            if not is_wanted(item):
                result = Reject(id=item.id, reason="beyond_max_rows")
            elif item.language == "en":
                result, counts["english"] = item, counts["english"] + 1
            elif (result := tries.of(item)) is None:
                result, counts["untranslated"] = item, counts["untranslated"] + 1
            elif isinstance(result, Item):
                counts["translated"] += 1
            run.emit(result, to=s.output / f"{item.split}.jsonl")
        # inside the run, so that nothing is put in place
        if s.require and counts["untranslated"]:
            raise SystemExit(
                f"translation: {counts['untranslated']} Chinese items and no server to translate "
                "them: set OPENAI_API_KEY or OPENAI_BASE_URL (in .env), or leave --require out"
            )
        usage = vars(paid.usage) if paid else {}
        run.summary["translation"] = {**counts, "usage_of_last_run": usage}
        why = " (no server: set OPENAI_API_KEY or OPENAI_BASE_URL to translate them)"
        print(
            f"{counts['translated']} items translated, {counts['english']} were English, "
            f"{counts['untranslated']} stayed Chinese{why if counts['untranslated'] else ''}"
            f"{f'; used {paid.spent()}' if paid else ''}"  # by this run, not by a stopped one before
        )


def print_estimate(s: Settings) -> None:
    counts, ends = Counter[str](), ends_of_splits(s)
    for number, item in enumerate(files.read_rows(s.input, Item, s.limit)):
        is_wanted = number < ends.get(item.split, math.inf)
        counts[item.language if is_wanted else "left_out"] += 1
        if is_wanted and item.language == "zh":
            request = to_request(item, s, 0)
            counts["prompt"] += costs.estimate_prompt_tokens(request.messages)
            counts["new"] += costs.estimate_tokens(translations.texts_as_json(item))
    print(
        f"rows: {counts['zh']:,} to translate; {counts['en']:,} are English already, "
        f"{counts['left_out']:,} are beyond max_rows"
    )
    tokens, batch = (counts["prompt"], counts["new"]), s.engine == "batch"
    print(costs.describe_estimate(s.model, *tokens, batch=batch, at_most=False))
    print("each translation is counted as long as its source; nothing was sent")


if __name__ == "__main__":
    Settings.run(main)
