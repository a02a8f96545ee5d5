"""One page for a run, to look at before reading: every stage's rows, numbers and texts.

Reads   data/ (or the folder named): the rows, reports and .meta.json that stages left there, such as
                              RagPair rows and their Reject rows
Writes  data/report.html      one file; it loads nothing and needs no server: open it in a browser

    {"id": "d9", "prompt": "who is it", "chosen": "I don't know.", "rejected": "It says: add.", "margin": 0.81, "tie": false, "source": "rag"}
    {"id": "d8", "reason": "no_winner"}

What is there is shown: a Preference row as a pair to read, a reject under its reason, a model's curves.
Counts are over all rows; what is read one by one, and what compares texts, is over a sample, and the
page says of how many. Two folders are shown side by side: settings, numbers, rows that flipped. On the
page, marks of your own (1, 2, 0) download as the file that accuracy.py --labels reads.

    uv run report.py
    uv run report.py runs/a runs/b --output compared.html
"""

import json
from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg

import config
from prefpipe import files
from prefpipe.ranges import Positive
from prefpipe.report import page
from prefpipe.report.found_files import Folder
from prefpipe.screen import visible
from prefpipe.settings import WholeStage


class Settings(WholeStage, env_prefix="REPORT_"):
    folders: CliPositionalArg[list[Path]] = Field(default=[config.DATA], min_length=1, max_length=2)
    """The folder of a run; or of two runs, the earlier one first."""
    output: Path | None = None
    """The page. None: report.html in the folder; of two runs compared.html in the second."""
    rows: Positive = 1000
    """Rows of each file, at most, that are read one by one; what fits into 3 MB of text."""


def main(s: Settings) -> None:
    folders = [Folder(path, s.limit, s.strict) for path in s.folders]
    for folder in folders:
        check(folder)
    name = "report.html" if len(folders) == 1 else "compared.html"
    output = s.output or folders[-1].root / name
    refuse_another_file(output, overwrite=s.overwrite)
    if len(folders) == 1:
        data = page.one_run(folders[0], seed=s.seed, rows=s.rows)
    else:
        data = page.both_runs(folders, seed=s.seed)
    html = page.render(data)
    if s.dry_run:
        print("report: dry run; nothing is written. It would write")
    else:
        files.write_text(output, html)
    if s.as_json:
        print(
            json.dumps(
                {
                    "stage": "report",
                    "page": str(output),
                    "sections": [x["id"] for x in data["sections"]],
                }
            )
        )
        return
    shown = ", ".join(section["title"].lower() for section in data["sections"])
    print(f"{output}: {len(html.encode()) / 1e6:.1f} MB; {shown}. Open it in a browser.")
    for file in [file for folder in folders for file in folder.row_files if file.bad_count]:
        said = f"{file.bad_count} rows of {file.name} could not be read; first: {file.bad[0]}"
        print(visible(said)[:300])


def check(folder: Folder) -> None:
    """SystemExit where no stage left anything in the folder."""
    if not folder.root.is_dir():
        raise SystemExit(
            f"report: {folder.root}: no such folder; run ./pipeline.sh, or name a run's"
        )
    if not folder.runs and not folder.row_files:
        raise SystemExit(
            f"report: {folder.root}: no .meta.json and no rows of a stage in it; name a run's folder"
        )


def refuse_another_file(output: Path, *, overwrite: bool) -> None:
    """SystemExit where the output is there and is no page of ours."""
    if overwrite or not output.exists():
        return
    if output.is_dir() or page.MARK.encode() not in output.read_bytes()[:500]:
        raise SystemExit(
            f"report: {output}: is no page of prefpipe; choose another --output, or --overwrite"
        )


if __name__ == "__main__":
    Settings.run(main)
