"""How a judge's prompt asks for its object: an object to copy, or its keys in words.

    uv run --group real python -m benchmarks.judge_wording

SmolLM2-135M-Instruct judges --items pairs of LLMBar and as many of Auto-J (people's verdicts, of
../shared/data or PREFPIPE_REAL_DATA) in both orders, greedily, free and held to the schema of a
judgment; then the embedded model the same number of its own world's. Each under:

  object   the sentence that prefpipe had until November 2026, with the object {"reason": "why", ...}
  words    prefpipe/templates/judge.*.jinja

Counted of the replies: readable, unreadable by why, with a placeholder for a reason (that of the object
which was shown, or under three words), right ones of the readable where there is
a winner, and of the pairs whose two replies are readable, how many agree. The embedded model was
trained on the words.
Writes benchmarks/results/judge_wording.json.
"""

import argparse
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import logging

from benchmarks import RESULTS, machine, write_results
from benchmarks.real_models import real_data
from embedded import world
from prefpipe import chat, judge, verdicts
from prefpipe.formats.opening import HowRead, OpenFile
from prefpipe.llm import Failure, Request
from prefpipe.llm.local.local_engine import LocalEngine
from prefpipe.models.loading import load_both
from prefpipe.rows import Item, Language, Message, Preference
from prefpipe.templates import TEMPLATES

REAL, EMBEDDED = "SmolLM2-135M-Instruct", "embedded/model"
FILES = ("llmbar.jsonl", "autoj_pairwise.jsonl")
MAX_PROMPT_TOKENS, NEW_TOKENS = 1024, 160
FORMER: dict[Language, str] = {
    "en": (
        "Which answer is better? Compare both, then reply with one JSON object and nothing else: "
        '{"reason": "why", "better_answer": 1 or 2}'
    ),
    "zh": ('哪个回答更好?请先比较,再只用一个JSON对象回复:{"原因": "理由", "更好的回答": 1或2}'),
}
PLACEHOLDERS = ("why", "reason", "理由", "原因")


def write_former(folder: Path) -> dict[Language, str]:
    """The former templates, by language: this version's, with the former last paragraph."""
    written: dict[Language, str] = {}
    for language, sentence in FORMER.items():
        text = (TEMPLATES / f"judge.{language}.jinja").read_text(encoding="utf-8")
        head, _, _ = text.rstrip("\n").rpartition("\n\n")
        path = folder / f"former.{language}.jinja"
        path.write_text(f"{head}\n\n{sentence}", encoding="utf-8")
        written[language] = str(path)
    return written


def real_items(name: str, tokenizer: Any, count: int) -> list[Item]:
    file = OpenFile(str(real_data(name)), HowRead(), None)
    found: list[Item] = []
    for _, record in file.records():
        rows = file.pairs(record)
        for row in rows if isinstance(rows, list) else []:
            item = judge.build_item(row, split="validation", seed=0)
            if isinstance(item, Item) and item.better and len(found) < count:
                messages = (Message(role="user", content=item.prompt),)
                if len(chat.prompt_ids(tokenizer, messages)) <= MAX_PROMPT_TOKENS:
                    found.append(item)
    return found


def embedded_items(count: int) -> list[Item]:
    rng = random.Random("judge_wording")
    rows = (
        Preference(id=str(k), prompt=e.prompt, chosen=e.answers[e.better - 1], rejected=e.answers[2 - e.better])
        for k, e in enumerate(world.make_exercise(rng) for _ in range(2 * count))
    )  # fmt: skip
    items = (judge.build_item(row, split="validation", seed=0) for row in rows)
    return list(islice((item for item in items if isinstance(item, Item)), count))


def is_placeholder(reason: str) -> bool:
    words = reason.strip(" .<>[]").lower()
    return words in PLACEHOLDERS or (words.isascii() and len(words.split()) < 3)


def judged(
    engine: LocalEngine, items: Sequence[Item], templates: dict[Language, str] | None
) -> dict[str, Any]:
    """What the replies are worth, counted."""
    shown = {
        f"{item.id}-{k}": (item, one)
        for item in items
        for k, one in enumerate(
            judge.both_orders(
                (f"{item.id}-0", f"{item.id}-1"), item.question, item.answer_1, item.answer_2,
                language=item.language, template=templates[item.language] if templates else None,
            )
        )
    }  # fmt: skip
    requests = [
        Request(
            one.id,
            ({"role": "user", "content": one.prompt},),
            max_new_tokens=NEW_TOKENS,
            reply_schema=one.reply_schema,
        )
        for _, one in shown.values()
    ]
    begin = time.perf_counter()
    replies = dict(zip(shown, engine.generate(requests), strict=True))
    seconds = time.perf_counter() - begin
    faults: Counter[str] = Counter()
    verdict_of: dict[str, int] = {}
    placeholders = 0
    for name, reply in replies.items():
        if isinstance(reply, Failure):
            raise SystemExit(f"{name}: {reply}")
        found = judge.verdict(reply, shown[name][1])
        objects = verdicts.json_objects(reply[0].text)
        pairs = [] if isinstance(objects, verdicts.Unreadable) else [p for o in objects for p in o]
        keys = {keys[0] for keys in verdicts.ANSWER_KEYS.values()}
        placeholders += any(k in keys and is_placeholder(str(v)) for k, v in pairs)
        if isinstance(found, verdicts.Unreadable):
            faults[found.reason] += 1
        elif isinstance(found, int):
            verdict_of[name] = found
    right = sum(verdict_of[name] == shown[name][0].better for name in verdict_of)
    both = [i.id for i in items if f"{i.id}-0" in verdict_of and f"{i.id}-1" in verdict_of]
    agree = sum(verdict_of[f"{i}-0"] == verdict_of[f"{i}-1"] for i in both)
    return {
        "replies": len(shown),
        "readable": len(verdict_of) / len(shown),
        "placeholders": placeholders / len(shown),
        "unreadable": dict(faults.most_common()),
        "accuracy": right / len(verdict_of) if verdict_of else None,
        "orders_both_readable": len(both),
        "orders_agree": agree / len(both) if both else None,
        "seconds": seconds,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=100, help="pairs of each source")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON")
    args = parser.parse_args()
    logging.set_verbosity_error()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        former = write_former(Path(folder))
        for name in (REAL, EMBEDDED):
            model, tokenizer = load_both(name)
            items = (
                embedded_items(args.items)
                if name == EMBEDDED
                else [item for file in FILES for item in real_items(file, tokenizer, args.items)]
            )
            for wording, templates in {"object": former, "words": None}.items():
                for schema in (False, True):
                    engine = LocalEngine(model, tokenizer, structured_output=schema)
                    key = f"{name}, {wording}, {'held to the schema' if schema else 'free'}"
                    found[key] = judged(engine, items, templates)
                    print(key, found[key], flush=True)
    facts = {"items": args.items, "sources": list(FILES), "new_tokens": NEW_TOKENS}
    write_results("judge_wording", {"machine": machine(), **facts, "found": found}, args.results)


if __name__ == "__main__":
    main()
