"""Contexts to quote from: sentences of made-up words, lines of code, the standard library's own
docstrings; a question about one sentence; the answer that quotes it.
"""

# ruff: noqa: SIM905 - lists of words read better as text

import ast
import functools
import random
import re
import sysconfig
import textwrap
from dataclasses import dataclass
from pathlib import Path

from prefpipe import templates

# Modules of the standard library whose docstrings are read (as text; nothing is imported).
MODULES = (
    "abc argparse ast base64 bisect calendar collections/__init__ contextlib copy csv dataclasses "
    "datetime difflib email/message enum fileinput fnmatch fractions functools glob gzip hashlib "
    "heapq inspect io json/__init__ logging/__init__ mimetypes operator os pathlib pickle platform "
    "pprint queue random reprlib sched shelve shlex shutil socket statistics string subprocess "
    "tarfile tempfile textwrap threading timeit tokenize traceback types typing unittest/case "
    "urllib/parse uuid warnings weakref zipfile"
).split()


@functools.cache
def docstrings() -> list[tuple[str, str]]:
    """(name, docstring) of the functions of those modules, in the order of the source."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for module in MODULES:
        path = folder / f"{module}.py"
        if not path.is_file():
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                text = ast.get_docstring(node)
                if text and len(text) > 30:
                    found.append((node.name, text))
    return found


@functools.cache
def sentences() -> list[str]:
    """Sentences of those docstrings, on one line each, 25 to 140 characters."""
    found = []
    for _, text in docstrings():
        for part in re.split(r"(?<=[.!?])\s+|\n\s*\n", text):
            line = " ".join(part.split())
            if 25 <= len(line) <= 140 and line[0].isalpha() and ">>>" not in line:
                found.append(line.rstrip(".") + ".")
    return found


@functools.cache
def functions() -> list[tuple[str, str]]:
    """(text, sentence): a function's first line with its docstring, cut at 400 characters, and the
    sentence that the docstring begins with, where that is one line."""
    found = []
    for name, text in docstrings():
        line = text.split("\n")[0].strip()
        if 25 <= len(line) <= 100 and line.endswith(".") and line[0].isalpha():
            body = textwrap.indent(text[:400], "    ").strip()
            found.append((f'def {name}():\n    """{body}"""', line))
    return found


SYLLABLES = (
    "ba ce di fo gu ha je ki lo mu na pe ri so tu va we xi yo zu bra cle dri flo gru sta".split()
)


@functools.cache
def words() -> list[str]:
    """The plain words of those sentences, each once."""
    found = {word for line in sentences() for word in re.findall(r"(?<= )[a-z]{3,}(?= )", line)}
    return sorted(found)


def made_up_word(rng: random.Random) -> str:
    return "_".join(
        "".join(rng.choice(SYLLABLES) for _ in range(rng.choice((2, 3))))
        for _ in range(rng.choice((1, 1, 2)))
    )


def random_words(rng: random.Random, count: int) -> list[str]:
    """Words in an order that was never seen, one in ten made up."""
    return [made_up_word(rng) if rng.random() < 0.1 else rng.choice(words()) for _ in range(count)]


def made_up_sentence(rng: random.Random) -> str:
    """Five to eleven words; as nothing but the context foretells them, quoting takes copying."""
    verb = rng.choice(("Return", "Make", "Find", "The", "Give", "Read", "Write", "Check"))
    return " ".join([verb, *random_words(rng, rng.randint(4, 10))]) + "."


def code_line(rng: random.Random) -> str:
    a, b, c = (made_up_word(rng) for _ in range(3))
    return rng.choice(
        [f"def {a}({b}, {c}):", f"{a} = {b}({c})", f"return {a}.{b}", f"for {a} in {b}:"]
    )


QUESTION_WORDINGS = [
    "How do I {s}?",
    "Which function {s}?",
    "Which function does this: {s}?",
    "What can I use to {s}?",
    "I want to {s}.",
]
ANSWERS = ["The context says: {s}", "It says: {s}", "According to the context: {s}"]
UNKNOWN = "I don't know."


@dataclass(frozen=True)
class Quote:
    """A question about one sentence of a context."""

    prompt: str
    """The rag.en template, rendered."""
    sentence: str
    """The sentence of the context that was asked for."""
    answer: str


def make_quote(rng: random.Random, *, clean: bool = True) -> Quote:
    """Sentences and lines of code, or functions, and a question in the words of one sentence.

    clean: the answer quotes that sentence; otherwise sometimes another one, the sentence behind it
    as well, or nothing.
    """
    u = rng.random()
    if u < 0.15:
        documents = rng.sample(functions(), rng.choice((1, 1, 2)))
        parts = [sentence for _, sentence in documents]
        context = "\n\n".join(text for text, _ in documents)
    else:
        count = rng.choice((2, 2, 3, 3, 4, 5))
        parts = (
            [made_up_sentence(rng) for _ in range(count)]
            if u < 0.6
            else rng.sample(sentences(), count)
        )
        context = ""
        for part in parts:
            if rng.random() < 0.15:
                context += f"{code_line(rng)}\n    "
            context += part + rng.choice(("\n", " ", "\n    "))
    place = rng.randrange(len(parts))
    asked = parts[place]
    words = asked.rstrip(".").split()
    words[0] = words[0][0].lower() + words[0][1:]
    if rng.random() < 0.5:  # asked for by its beginning
        words = words[: max(3, len(words) * 2 // 3)]
    question = rng.choice(QUESTION_WORDINGS).format(s=" ".join(words))
    says = rng.choice(ANSWERS)
    answer = says.format(s=asked)
    if not clean:
        u = rng.random()
        if u < 0.1:
            answer = UNKNOWN
        elif u < 0.25:
            answer = says.format(s=parts[(place + 1) % len(parts)])
        elif u < 0.35 and place + 1 < len(parts):
            answer = f"{answer} {parts[place + 1]}"
    prompt = templates.load_template("rag.en").render(context=context.rstrip(), question=question)
    return Quote(prompt, asked, answer)
