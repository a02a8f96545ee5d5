"""Write the functions of the installed Python's standard library as a table: query, code, description.

    uv run python -m embedded.stdlib_documents              # writes data/rag/stdlib.csv; seconds

A row is a public function with a docstring: code is its source, description its docstring, query
what the docstring's first sentence asks. Nothing is imported or downloaded, the sources are only
read. The order is that of the file names and lines, so one Python version gives one table.
"""

import argparse
import ast
import csv
import os
import re
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path

import config

COLUMNS = ("id", "query", "code", "description")
MOST_CHARACTERS = 800
"""A longer function is left out: a document should be about one thing."""
_OTHER_FOLDERS = {"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo"}
_FIRST_SENTENCE = re.compile(r"(.+?[.!?:])(?:\s|$)", re.DOTALL)
_MARKUP = re.compile(r":\w+:(?=`)|[`*]")
# First words of docstrings that tell the function what to do.
_VERBS = """add append apply assert attach break build call change check choose clean clear close combine
    compare compile compute configure connect construct convert copy count create decode define
    delete determine disable discard display divide do dump emit enable encode ensure escape evaluate
    execute expand extract feed fetch fill find flush force format generate get give handle
    initialize insert install invoke issue iterate join list load locate log look make map match merge
    move multiply notify open parse perform pop prepare print process produce push put query raise
    read receive record register release reload remove rename render replace request reset resolve
    return reverse rotate run save search select send serve set shift shut skip sort split start
    stop store strip subtract swap take terminate test transform translate truncate try turn undo
    unescape unlock unpack update use validate verify wait walk wrap write"""
_COMMANDS = frozenset(_VERBS.split())


def read_documents(folder: Path) -> Iterator[tuple[str, str, str, str]]:
    """A row for each function; of several with one name in a module, the first."""
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder)
        if _OTHER_FOLDERS.intersection(name.parts):
            continue
        try:
            source = path.read_text(encoding="utf-8")
            tree = ast.parse(source)
        except (SyntaxError, UnicodeDecodeError):
            continue  # samples of broken code that lib ships
        module = ".".join(name.with_suffix("").parts).removesuffix(".__init__")
        seen = set()
        for qualified, function in _functions(tree, module):
            row = to_row(qualified, function, source)
            if row and qualified not in seen:
                seen.add(qualified)
                yield row


def _functions(
    node: ast.AST, prefix: str
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}.{child.name}", child
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}.{child.name}")
        else:
            yield from _functions(child, prefix)


def to_row(
    qualified: str, function: ast.FunctionDef | ast.AsyncFunctionDef, source: str
) -> tuple[str, str, str, str] | None:
    """The row of a function, as COLUMNS names it; None where it is private, long, or says too little of itself."""
    description = ast.get_docstring(function)
    if not description or any(part.startswith("_") for part in qualified.split(".")):
        return None
    question = to_question(description)
    code = textwrap.dedent(ast.get_source_segment(source, function, padded=True) or "")
    if question is None or len(code) > MOST_CHARACTERS:
        return None
    return qualified, question, code, description


def to_question(description: str) -> str | None:
    """The first sentence as a question; None where it is no sentence of four to thirty words.

    "Return the larger of two." -> "How do I return the larger of two?"
    """
    paragraph = description.split("\n\n")[0]
    first = _FIRST_SENTENCE.match(paragraph + "\n")
    sentence = first[1] if first else paragraph
    words = _MARKUP.sub("", sentence).rstrip(".!?: ").split()
    if not 4 <= len(words) <= 30 or not words[0][0].isalpha():
        return None
    verb = words[0].lower()
    stem = verb.removesuffix("s")
    if verb in _COMMANDS:
        return f"How do I {' '.join([verb, *words[1:]])}?"
    if stem in _COMMANDS or verb.removesuffix("es") in _COMMANDS:
        return f"Which function {' '.join([verb, *words[1:]])}?"
    return f"Which function does this: {' '.join(words)}?"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=config.RAG_TABLE, help="the CSV file")
    output = parser.parse_args().output
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.tmp")
    with open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        count = 0
        for row in read_documents(Path(sysconfig.get_paths()["stdlib"])):
            writer.writerow(row)
            count += 1
    os.replace(temporary, output)
    print(f"{output}: {count} functions of the standard library")


if __name__ == "__main__":
    main()
