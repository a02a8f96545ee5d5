"""Texts made to be slow to read, and every parser that meets a text of somebody else.

    python -m tests.slow_texts                                   # each at 10,000 to 1,000,000 bytes
    python -m tests.slow_texts --results benchmarks/results/slow_texts.json

A parser must take time in proportion to the length of a text, and less than a second for a million
bytes. test_hostile_texts.py asks it at a tenth of that.
"""

import argparse
import fnmatch
import gc
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefpipe import judge, near_duplicates, questions, ratings, screen, templates, translations
from prefpipe import thoughts as thoughts_
from prefpipe.compare import ab_prompt
from prefpipe.foreign_json import read_json, with_whole_backslashes
from prefpipe.formats import FORMATS, markup, turns
from prefpipe.formats.opening import HowRead
from prefpipe.languages import detect_language, has_chinese_left, is_foreign, length_in_english
from prefpipe.llm import costs, wire
from prefpipe.llm.error_replies import is_too_long, retry_after
from prefpipe.opinions import is_form, is_refusal, opinions
from prefpipe.rag import abstention, documents, score
from prefpipe.rows import Entry
from prefpipe.shingles import shingles
from prefpipe.verdicts import holds_verdict, json_objects, parse_verdict, read_hinted_reason
from prefpipe.words import nfkc, plain_texts, split_words

LENGTHS = (10_000, 100_000, 1_000_000)
MOST_SECONDS = 1.0
"""For a million bytes."""


def _or_error(read: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            return read(text)
        except (ValueError, RecursionError):
            return None

    return parse


def _markup(text: str) -> Any:
    name = markup.markup_of(text)
    return name and markup.split_turns(text, name, "x")


def _entry(text: str) -> Entry:
    return Entry(id="a", query="", code=text, description="what it does", keywords=[])


def _pair(text: str) -> Any:
    reader = HowRead().reader(FORMATS["trl-implicit"])
    return reader.read({"chosen": f"{text} yes", "rejected": f"{text} no"})


SERVED = wire.ServedModel([], "m")
PARSERS: dict[str, Callable[[str], Any]] = {
    "verdict": parse_verdict,
    "verdict, hinted": lambda text: read_hinted_reason(text, 1, finish_reason="stop"),
    "verdict, held": lambda text: holds_verdict(text, 1),
    "JSON objects": json_objects,
    "ratings": lambda text: ratings.read_ratings(text, 4),
    "opinions": opinions,
    "opinions, loosely": lambda text: opinions(text, loosely=True),
    "form": is_form,
    "refusal": is_refusal,
    "thoughts": thoughts_.without_thoughts,
    "foreign JSON": _or_error(read_json),
    "backslashes": with_whole_backslashes,
    "embedded JSON": translations.embedded_json,
    "language": lambda text: (detect_language(text), has_chinese_left(text), is_foreign(text, "a b c"), length_in_english(text)),
    "question": questions.question_key,
    "words": split_words,
    "plain texts": lambda text: plain_texts([text]),
    "NFKC": nfkc,
    "shingles": shingles,
    "near-duplicates": lambda text: near_duplicates.EarlierDocuments(0.9).find(documents.to_documents(_entry(text))[0]),
    "question of a prompt": judge.question_of,
    "markers": templates.escape_markers,
    "A or B": ab_prompt.escape,
    "markup": _or_error(_markup),
    "nested turns": _or_error(lambda text: turns.holds_turns(text) and turns.read_turns(text, "x")),
    "common beginning": _or_error(_pair),
    "abstention": abstention.is_abstention,
    "keywords": lambda text: score.extract_keywords(text[:999], text, 8),
    "names": score.split_names,
    "coverage": lambda text: score.keyword_coverage(text, [text[:50]] * 8),
    "documents": lambda text: documents.to_documents(_entry(text), 1000, 500),
    "document": lambda text: documents.to_text(_entry(text)),
    "tokens": costs.estimate_tokens,
    "screen": screen.visible,
    "sentence": screen.short_sentence,
    "printable": SERVED.printable,
    "a server's error": is_too_long,
    "retry-after": lambda text: retry_after({"retry-after": text}),
}  # fmt: skip


def _many(piece: str) -> Callable[[int], str]:
    size = len(piece.encode())  # a million bytes: of a sign that stands for eighteen letters, less
    return lambda n: piece * max(1, n // size)


def _between(before: str, piece: str, behind: str) -> Callable[[int], str]:
    return lambda n: before + _many(piece)(n) + behind


TEXTS: dict[str, Callable[[int], str]] = {
    **{f"many {piece!r}": _many(piece) for piece in (
        "{", '{"', '{"a":', '{"a":1} ', "{ ", "[", "[ ", "[{", '[{"a":', '[{"a":1,"b":', '{"a":[{"b":1},', '{"a":x', '{"a"\n',
        "｛＂", "｛＂a＂：1｝", "```", "```a ", "<think>", "</think>", "x<think>", "x</think>", "<think>a", "<|channel|>", "\\", "\\\\n", "\\u", "\\ud800", '\\"',
        " ", "\n", "\t", "\u2003", "\u00a0", "\0", "\u200b", "a", "a ", "A", "aB", "a_", "中", "中a", "１", "\ufdfa", "\u0301", "a\u0301\u0323",
        "-", "- ", "*", "_", "#", "`", ".", ". ", ",", "!", "?", "(", ")", "'", '"', "“", "[Answer 1]\n", "\\[\n", "[CONTEXT", "<turn> ",
        "Text 1\n", "Rating: 4\n", "text ", "Rating", "score ", "scale of ", "1 - 5 ", "answer 1 ", "better ", "Answer 1 is better. ", "is better than ",
        "but ", "but, ", "sorry ", "sorry,", "I cannot ", "based on the context ", "not ", "because ", "Human: ", "\n\nHuman: ", "\n\nAssistant:",
        "### Human:", "<|im_start|>user\n", "<|im_start|>", "[INST] ", "USER: ", "<<SYS>> ", "<s>", "{'role': 'user', 'content': 'x'}, ", "array([", "} {", "e1", "1e", "0.",
        "http://a ", "sk-", "&#x41;", "%41", "def f(x):\n", "w1 w2 ", "tokens ", "maximum context length ",
    )},
    "spaces behind Text": _between("Text", " ", "x"), "spaces and # behind Text": _between("Text", " #", "x"),
    "spaces behind output for": _between("output for", " ", "x"), "stars behind Rating": _between("Rating", "*", "x"),
    "brackets behind Rating": _between("Rating", "(", ""), "spaces behind a value": _between("Text 1\nRating: 4", " ", "x"),
    "dashes behind a value": _between("Text 1\nRating: 4", "-", "5"), "digits as a value": _between("Text 1\nRating: ", "4", ""),
    "dots behind a value": _between("Text 1\nRating: 4", ". ", "5"), "a return behind dashes": _between("Rating: 4", "-", "\r5"),
    "spaces behind n": _between("Text 1\nRating: n", " ", "x"), "words behind of": _between("Text 1\nRating: 4 out of", " a", "5"),
    "a reason without end": _between('{"reason": "', "a", ""), "escapes in a reason": _between('{"reason": "', '\\"', '", "better_answer": 1}'),
    "an answer of digits": _between('{"better_answer": ', "1", "}"), "an exponent of digits": _between('{"better_answer": 1e', "9", "}"),
    "lists in an answer": _between('{"better_answer": ', "[", ""), "halves of characters": _between('{"reason": "', "\\ud800", '", "better_answer": 1}'),
    "many keys": lambda n: "{" + ",".join(f'"k{k}":1' for k in range(n // 9)) + "}",
    "many words": lambda n: " ".join(f"w{k:x}" for k in range(n // 7)),
    "many numbers": lambda n: '[{"a":[' + _many("1,")(n), "accents": _between("a", "\u0301\u0323", "b"),
    "half-width marks": _between("a", "\uff9e\u0301", "b"), "backslashes before a bracket": _between("", "\\", "[CONTEXT"),
    **{f"spaces behind {mark!r}": _between(mark, " ", "x") for mark in (
        "Human: a", "### Human: a", "<|im_start|>user\na", "<s>[INST] <<SYS>>", "<|user|> a", "USER: a", "prompter: a",
        "<start_of_turn>user\na", "<|begin_of_text|><|start_header_id|>user<|end_header_id|>a", "[{'role': 'user'",
    )},
    "one word, then spaces": _between("x", " ", "x"), "turns that do not end": _between("[{'role': 'user', 'content': '", "a ", ""),
    "nested Python lists": _between("[", "[", ""), "a signed sum": _between("1", " + 1", " = 2"), "a fence of spaces": _between("```a", " ", "x"),
    "thoughts, then braces": _between("<think>", "{", "</think>x"), "braces, then a verdict": _between("", "{", '{"reason": "r", "better_answer": 1}'),
}  # fmt: skip
"""Name -> the text of about so many bytes."""


class TooSlow(Exception):
    """A parser that was stopped."""


def seconds(parse: Callable[[str], Any], text: str, most: float) -> float:
    """CPU time of the parser on the text; inf: stopped at so many seconds."""

    def stop(*_: object) -> None:
        raise TooSlow

    signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, most)
    began = time.process_time()
    try:
        parse(text)
    except TooSlow:
        return float("inf")
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parsers", nargs="+", choices=PARSERS, default=list(PARSERS))
    parser.add_argument("--texts", default="*", help="those whose name fits this glob")
    parser.add_argument("--results", type=Path, help="JSON to write")
    a = parser.parse_args()
    chosen = {name: make for name, make in TEXTS.items() if fnmatch.fnmatchcase(name, a.texts)}
    slow: list[str] = []
    slowest: dict[str, Any] = {}
    for name in a.parsers:  # so that each has found what it imports
        PARSERS[name]("warm")
    gc.freeze()  # as a stage does: else a collection looks at all that was imported
    for name in a.parsers:
        worst = (0.0, "")
        for text, make in chosen.items():
            for length in LENGTHS:
                taken = seconds(PARSERS[name], make(length), 5)
                if taken > MOST_SECONDS:  # once more: others may have been at work
                    taken = min(taken, seconds(PARSERS[name], make(length), 5))
                if taken > MOST_SECONDS:
                    slow.append(f"{name}, {text}: {length:,} bytes {taken:.2f} s")
                    print(slow[-1], flush=True)
                    break
                if length == LENGTHS[-1]:
                    worst = max(worst, (taken, text))
        slowest[name] = {"text": worst[1], "seconds": round(worst[0], 3)}
        print(f"{name}: {worst[0]:.2f} s at most, for {worst[1]}", flush=True)
    if a.results:
        from tests.campaign import facts

        found = {"parsers": len(a.parsers), "texts": len(chosen), "bytes": LENGTHS[-1]}
        made = {**facts(), **found, "slowest": slowest, "slow": slow}
        a.results.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    print(f"{len(a.parsers)} parsers, {len(chosen)} texts, {len(slow)} slow")
    raise SystemExit(bool(slow))


if __name__ == "__main__":
    main()
