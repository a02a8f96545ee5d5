"""The page: one HTML file that loads nothing and runs nothing but the script of this package.

Texts of models are data, in three places that do not depend on each other: they stand in the page as
JSON in which no character can end the element that it stands in; page.js puts them onto the page as
text nodes only; and the Content-Security-Policy allows the one script and the one style by their
hashes, and no address at all.
"""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from pydantic_core import to_json

from prefpipe.files.records import typed_rows
from prefpipe.report import two_runs
from prefpipe.report.blocks import Block
from prefpipe.report.flow import ledger_section, rejects_section
from prefpipe.report.found_files import Folder
from prefpipe.report.judge_section import add_verdicts, item_facts, judges_section
from prefpipe.report.made_section import rag_section, synthetic_section
from prefpipe.report.model_section import add_disagreements, models_section, overlap_block
from prefpipe.report.pair_section import (
    Notes,
    PairFile,
    count_pairs,
    pairs_section,
    rows_to_read,
)
from prefpipe.rows import Reject

MARK = "<!-- a page of prefpipe: report.py makes it anew -->"
"""What the page begins with, so that no other file is replaced by one."""
_HERE = Path(__file__).parent


def one_run(folder: Folder, *, seed: int, rows: int) -> Block:
    """All that the page of one folder shows. rows: of each file, at most so many are read one by one."""
    files = count_pairs(folder, seed=seed)
    items = item_facts(folder)
    notes = _notes(folder, files, items)
    sections = [
        ledger_section(folder),
        pairs_section(files, overlap_block(folder)),
        judges_section(folder, items),
        models_section(folder),
        rag_section(folder),
        synthetic_section(folder, seed=seed),
        rejects_section(folder),
    ]
    return _data([folder], sections, rows_to_read(files, notes, most=rows), seed)


def both_runs(folders: Sequence[Folder], *, seed: int) -> Block:
    """All that the page of two folders shows."""
    files = [count_pairs(folder, seed=seed) for folder in folders]
    names = _names(folders)
    return _data(folders, two_runs.sections(folders, names, files), None, seed)


def _names(folders: Sequence[Folder]) -> list[str]:
    """What tells the folders apart: their names, or where these are the same their paths."""
    names = [folder.root.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder.root) for folder in folders]


def _data(
    folders: Sequence[Folder], sections: Sequence[Block | None], reader: Block | None, seed: int
) -> Block:
    return {
        "title": " against ".join(_names(folders)),
        "seed": seed,
        "limit": folders[0].limit,
        "sections": [section for section in sections if section],
        "reader": reader,
    }


def _notes(folder: Folder, files: Sequence[PairFile], items: dict) -> Notes:
    """What other files say of the rows that may be read."""
    ids = {pair.id for file in files for pair in file.sample}
    notes = Notes()
    add_verdicts(folder, ids, items, notes)
    add_disagreements(folder, ids, notes)
    for run in folder.runs:
        if run.rejects.exists() and run.counts["left_out"]:
            for reject in _rejects(run.rejects):
                if reject.id in ids:
                    notes.left_out[reject.id].append(f"{run.stage}: {reject.reason}")
    return notes


def _rejects(path: Path) -> Sequence[Reject]:
    return [row for _, row in typed_rows(path, Reject, None) if isinstance(row, Reject)]


def render(data: Block) -> str:
    """The HTML file."""
    script, style = (_asset(name) for name in ("page.js", "page.css"))
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": policy,
        "style": style,
        "script": script,
        "mark": MARK,
        "data": as_json(data),
    }
    before, *rest = _asset("page.html").split("{{")
    pieces = [before]
    for piece in rest:  # one pass: what was put in is never searched for the next name
        name, _, text = piece.partition("}}")
        pieces += [parts[name.strip()], text]
    return "".join(pieces)


def _asset(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """A source of the policy: this text between its tags, and no other."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def as_json(data: Block) -> str:
    """JSON without a character that HTML reads, or that ends a line in a script."""
    text = to_json(data, inf_nan_mode="null", fallback=float).decode("utf-8", "replace")
    escapes = {c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029\ufeff"}
    return text.translate(str.maketrans(escapes))
