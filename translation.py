"""Translate the Chinese judge items into English through any OpenAI-compatible server.

Reads   data/pairwise_critic_inference2_get_answer/Sky/           Item rows (train and validation)
Writes  data/pairwise_critic_inference2_get_answer/Sky_english/   Item rows, in the same order: of
                                                                  each split the first 5,000
        .../translation.rejects.jsonl                             Reject rows

    {"id": "p8", "source": "sums", "split": "train", "language": "zh", "question": "2加2等于几?", "answer_1": "五", "answer_2": "四", "better": 2, "prompt": "[问题]..."}
 -> {"id": "p8", "source": "sums", "split": "train", "language": "en", "question": "What is 2 plus 2?", "answer_1": "Five", "answer_2": "Four", "better": 2, "prompt": "[Question]..."}

English items pass as they are, at no cost. With neither OPENAI_API_KEY nor a server all items do,
and the closing lines say how many stayed Chinese. Each reply is checked: the three texts, whole, in
English, with the JSON that stood inside them; a reply that fails is asked for again.

    uv run translation.py --estimate
    OPENAI_API_KEY=... uv run translation.py
    uv run translation.py --base-urls http://127.0.0.1:8000/v1 --model Qwen/Qwen2-7B-Instruct
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import config
from prefpipe import files, judge, screen, templates, verdicts
from prefpipe.llm import Completion, Failure, Request
from prefpipe.llm.costs import describe_estimate, describe_tokens, estimate_tokens
from prefpipe.ranges import Positive
from prefpipe.rows import Item, Message, Reject
from prefpipe.settings import Account, NoEffectOnRows, ServerStage

if TYPE_CHECKING:
    from prefpipe.llm.batch_api.batch_engine import BatchEngine
    from prefpipe.llm.server.server_engine import ServerEngine

FIELDS = ("question", "answer_1", "answer_2")

ASKED_AGAIN = frozenset(
    {
        "not_json",
        "wrong_keys",
        "not_text",
        "empty_text",
        "truncated",
        "json_changed",
        "still_chinese",
        "garbled_reply",
        "too_few_choices",
    }
)
"""Reasons that another sample of the same translation may not have."""

_SCHEMA = verdicts.object_schema({name: {"type": "string"} for name in FIELDS})
_JSON_START = re.compile(r'\[\s*\{\s*"|\{\s*"')
_DECODER = json.JSONDecoder()


class Settings(ServerStage, env_prefix="TRANSLATION_"):
    input: Path = config.ITEMS
    """Folder of train and validation items, or one file of items."""
    output: Path = config.ITEMS_ENGLISH
    """Folder of train.jsonl and validation.jsonl."""
    engine: NoEffectOnRows[Literal["server", "batch"]] = "server"
    """server: requests at once; batch: the OpenAI Batch API, at half the price, within a day."""
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
    accept_failures: NoEffectOnRows[bool] = False
    """Write items that the server failed on to the rejects; without it the stage stops before its
    end, and the same command asks for those again."""

    def servers(self) -> list[str]:
        """Base URLs to ask; none: every item passes as it is."""
        return [] if self.offline else self.base_urls or Account().base_urls()

    def rows_depend_on(self) -> dict[str, Any]:
        return {**super().rows_depend_on(), "translates": bool(self.servers())}


def translation_request(item: Item, s: Settings, attempt: int) -> Request:
    """The first attempt is greedy; later ones sample, so as not to get the same text again."""
    source = texts_as_json(item)
    content = templates.load_template(s.instruction_template).render(keys=FIELDS, object=source)
    return Request(
        id=item.id,
        messages=(Message(role="user", content=content),),
        # English rarely takes twice the tokens; a text that runs on without end is cut here.
        max_new_tokens=min(s.max_new_tokens, 256 + 2 * estimate_tokens(source)),
        temperature=0.5 if attempt else 0.0,
        seed=s.seed + attempt,
        reply_schema=_SCHEMA,
    )


def texts_as_json(item: Item) -> str:
    return json.dumps({name: getattr(item, name) for name in FIELDS}, ensure_ascii=False)


def english_item(item: Item, reply: Completion, *, template: str | None = None) -> Item | Reject:
    """The item with the reply's texts, or the first check that the reply fails."""

    def reject(reason: str, detail: str) -> Reject:
        return Reject(id=item.id, reason=reason, detail=detail)

    if reply.finish_reason == "length":
        return reject("truncated", f"the reply was cut after {reply.new_tokens} tokens")
    text = reply.text.strip()
    if text.startswith("```"):
        text = text.partition("\n")[2].rpartition("```")[0]
    try:
        texts = json.loads(text, strict=False)
    except (ValueError, RecursionError) as error:
        return reject("not_json", f"{error}: {text[:100]!r}")
    if not isinstance(texts, dict) or set(texts) != set(FIELDS):
        found = sorted(texts) if isinstance(texts, dict) else type(texts).__name__
        return reject("wrong_keys", f"found {found}, wanted {sorted(FIELDS)}")
    for name in FIELDS:
        source, translated = getattr(item, name), texts[name]
        if not isinstance(translated, str):
            return reject("not_text", f"{name}: found {translated!r}, wanted a text")
        if source.strip() and not translated.strip():
            return reject("empty_text", name)
        if embedded_json(translated) != embedded_json(source):
            return reject("json_changed", f"{name}: the JSON inside has other keys or values")
        if is_mostly_chinese(translated):
            return reject("still_chinese", f"{name}: {translated[:60]!r}")
    prompt = judge.judge_prompt(**texts, language="en", template=template)
    return item.model_copy(update={**texts, "language": "en", "prompt": prompt})


def embedded_json(text: str) -> list[Any]:
    """The JSON objects (and lists of them) inside a text, in order, with `...` for each string.

    Keys, nesting, lengths, numbers, true, false and null are what a translation must keep.
    """
    found, at = [], 0
    while start := _JSON_START.search(text, at):
        try:
            value, at = _DECODER.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            at = start.start() + 1
        else:
            found.append(_without_strings(value))
    return found


def _without_strings(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_strings(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return list(map(_without_strings, value))
    return ... if isinstance(value, str) else value


def is_mostly_chinese(text: str) -> bool:
    """More than half of the letters are CJK ideographs."""
    cjk = sum("\u3400" <= c <= "\u9fff" for c in text)
    return 2 * cjk > sum(map(str.isalpha, text))


def first_rows(items: Iterable[Item], max_rows: int | None) -> Iterator[tuple[Item, bool]]:
    """Each item, and whether it is among the first max_rows of its split."""
    seen: Counter[str] = Counter()
    for item in items:
        seen[item.split] += 1
        yield item, max_rows is None or seen[item.split] <= max_rows


def main(s: Settings) -> None:
    if s.estimate:
        print_estimate(s)
        return
    outputs = {s.output / f"{split}.jsonl": Item for split in files.SPLITS}
    templates = [Path(t) for t in (s.template, s.instruction_template) if t and Path(t).is_file()]
    with files.open_run(s, inputs=[s.input, *templates], outputs=outputs, home=s.output) as run:
        if run.finished:
            return
        log = run.open_log(Item)
        failures: dict[str, Reject] = {}
        usage: dict[str, Any] = {}
        total = sum(item.id not in log for item in _chinese(s, run))
        if total and s.servers():
            open_engine = s.open_server if s.engine == "server" else s.open_batches
            engine = open_engine(
                s.model,
                structured_output=s.reply_format == "json_schema",
                extra_body={"response_format": {"type": "json_object"}}
                if s.reply_format == "json_object"
                else None,
            )
            for attempt in range(s.tries):
                ask_once(s, run, log, engine, failures, attempt, total)
                if not (total := sum(r.reason in ASKED_AGAIN for r in failures.values())):
                    break
            check_failures(s, failures)
            usage = vars(engine.usage)
        counts: Counter[str] = Counter()
        for item, wanted in first_rows(run.read(s.input, Item), s.max_rows):
            if not wanted:
                result = Reject(id=item.id, reason="beyond_max_rows")
            elif item.language == "en":
                result, counts["english"] = item, counts["english"] + 1
            elif item.id in log:
                result, counts["translated"] = log.get(item.id), counts["translated"] + 1
            elif item.id in failures:
                result = failures[item.id]
            else:
                result, counts["untranslated"] = item, counts["untranslated"] + 1
            run.emit(result, to=s.output / f"{item.split}.jsonl")
        if s.require and counts["untranslated"]:
            raise SystemExit(
                f"translation: {counts['untranslated']} Chinese items and no server to translate "
                "them: set OPENAI_API_KEY or OPENAI_BASE_URL (in .env), or leave --require out"
            )
        run.summary["translation"] = {**counts, "usage_of_last_run": usage}
        print(describe(s, counts, usage))


def ask_once(
    s: Settings,
    run: files.Run,
    log: files.RowLog[Item],
    engine: "ServerEngine | BatchEngine",
    failures: dict[str, Reject],
    attempt: int,
    total: int,
) -> None:
    """Ask for each item that is neither in the log nor failed for good; fills log and failures."""
    under_way: dict[str, Item] = {}

    def requests() -> Iterator[Request]:
        for item in _chinese(s, run):
            failure = failures.get(item.id)
            again = failure.reason in ASKED_AGAIN if failure else attempt == 0
            if again and item.id not in log:
                under_way[item.id] = item
                yield translation_request(item, s, attempt)

    what = "translating" if attempt == 0 else f"asking again ({attempt})"
    results = screen.progress(engine.generate(requests()), total, what)
    for result in results:
        if isinstance(result, Failure):
            under_way.pop(result.id)
            failures[result.id] = Reject(id=result.id, reason=result.reason, detail=result.detail)
            continue
        item = under_way.pop(result[0].id)
        english = english_item(item, result[0], template=s.template)
        if isinstance(english, Reject):
            failures[item.id] = english
        else:
            log.add(english)
            failures.pop(item.id, None)
        results.note(engine.spent())


def _chinese(s: Settings, run: files.Run) -> Iterator[Item]:
    for item, wanted in first_rows(run.peek(s.input, Item), s.max_rows):
        if wanted and item.language == "zh":
            yield item


def check_failures(s: Settings, failures: dict[str, Reject]) -> None:
    """Stop before the end where the server, not the item, is to blame: it may answer later."""
    from prefpipe.llm import SERVER_FAILURES

    reasons = Counter(r.reason for r in failures.values() if r.reason in SERVER_FAILURES)
    if reasons and not s.accept_failures:
        first = next(r for r in failures.values() if r.reason in SERVER_FAILURES)
        raise SystemExit(
            f"translation: no reply for {reasons.total()} items ({dict(reasons)}; {first.id}: "
            f"{first.detail}). The rest is kept: the same command asks for these again; "
            "--accept-failures leaves them out"
        )


def describe(s: Settings, counts: Counter[str], usage: dict[str, Any]) -> str:
    """What became of the items, and what this run (not an earlier, stopped one) has used."""
    line = (
        f"{counts['translated']} items translated, {counts['english']} were English, "
        f"{counts['untranslated']} stayed Chinese"
    )
    if counts["untranslated"]:
        line += " (no server: set OPENAI_API_KEY or OPENAI_BASE_URL to translate them)"
    if usage:
        tokens = (usage["prompt_tokens"], usage["new_tokens"])
        line += f"; used {describe_tokens(s.model, *tokens, batch=s.engine == 'batch')}"
    return line


def print_estimate(s: Settings) -> None:
    counts: Counter[str] = Counter()
    items = files.read_rows(s.input, Item, s.limit)
    for item, wanted in first_rows(items, s.max_rows):
        if not wanted:
            counts["left_out"] += 1
        elif item.language == "en":
            counts["english"] += 1
        else:
            counts["chinese"] += 1
            (message,) = translation_request(item, s, 0).messages
            counts["prompt_tokens"] += estimate_tokens(message["content"])
            counts["new_tokens"] += estimate_tokens(texts_as_json(item))
    print(
        f"rows: {counts['chinese']:,} to translate; {counts['english']:,} are English already, "
        f"{counts['left_out']:,} are beyond max_rows; "
        "a translation is counted as long as its source"
    )
    tokens = (counts["prompt_tokens"], counts["new_tokens"])
    print(describe_estimate(s.model, *tokens, batch=s.engine == "batch", at_most=False))
    print("nothing was sent")


if __name__ == "__main__":
    Settings.run(main)
