"""The card of a data set, README.md beside it, as the hub and `datasets.load_dataset` read it.

A card is a text that a person reads and, on top, YAML that machines do: which files are which split
of which config is said there, so that nothing else in the folder is taken for data. It is made once
the ledger is complete, from what the run itself knows. training/record.py makes the cards of models.
"""

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefpipe.files import SPLITS, Run, library_versions, read_records, write_text
from prefpipe.publish.sources import CARD, licences, on_hub, runs_before, shown
from prefpipe.reasons import REASONS
from prefpipe.rows import Preference, RagPair, Row
from prefpipe.templates import load_template

TITLES = {
    "JudgmentPair": "Judgment pairs",
    "RagPair": "Preferences between answers from documents",
    "SyntheticPair": "Preferences by ratings",
    "Item": "Items for a judge",
    "Preference": "Preferences by ranking",
}
"""Row type -> title; templates/data_card.jinja has the words for each."""

MARK = "<!-- prefpipe: the card of "

NAME_LINE = re.compile(r'^name = ".*"  # this folder, or its name on the hub$', re.MULTILINE)

_SIZES = {"n<1K": 10**3, "1K<n<10K": 10**4, "10K<n<100K": 10**5, "100K<n<1M": 10**6,
          "1M<n<10M": 10**7, "10M<n<100M": 10**8}  # fmt: skip
_OF_STEPS = (
    "model", "judge_model", "embedding_model", "engine", "by", "scorer", "n", "num_candidates", "pairs"
)  # fmt: skip
_RANKERS = {"reward": ["reward_model"], "pairwise": ["pairwise_model"], "judge": ["judge"]}
_OF_SAMPLES = ("temperature", "top_p", "top_k", "seed")


def write_data_card(run: Run) -> None:
    """The card of what a run wrote; Run calls it once all rows are in place.

    A README.md that is another's stays as it is; the card then stands beside it, under the output's
    name.
    """
    folder = next(iter(run.outputs)).parent
    configs = _configs(run)
    kind = _main_type(run.outputs).__name__
    files = [file["path"] for config in configs for file in config["data_files"]]
    its_mark = mark([path.name for path in run.outputs])
    text = load_template("data_card").render(
        kind=kind,
        title=TITLES[kind],
        steps=steps_table(run),
        files=_table(("file", "rows"), [(f"`{name}`", run.written[name]) for name in files]),
        ledger=ledger_table(run),
        code=_code(folder, configs),
        limits=_limits(run, kind),
        licence="; ".join(f"{name}: {v}" for name, v in licences(run.facts.settings).items()),
        mark=its_mark,
        **run_facts(run),
    )
    path = folder / CARD
    if path.exists() and its_mark not in path.read_text(encoding="utf-8", errors="replace"):
        path = run.meta_path.with_name(run.meta_path.name.replace(".meta.json", f".{CARD}"))
        print(f"{folder / CARD}: is of something else; the card is {path}", file=sys.stderr)
    write_text(path, f"---\n{_front_matter(run, kind, configs)}\n---\n\n{text}")


def _main_type(outputs: Mapping[Path, type[Row]]) -> type[Row]:
    """What the card is about: of several kinds of rows, the preferences."""
    kinds = list(outputs.values())
    return next((kind for kind in kinds if issubclass(kind, Preference)), kinds[0])


def _front_matter(run: Run, kind: str, configs: list[dict[str, Any]]) -> str:
    from huggingface_hub import DatasetCardData

    rows = sum(run.written[path.name] for path, t in run.outputs.items() if t.__name__ == kind)
    last = run.facts.settings
    everything = [last, *(before["settings"] for before in runs_before(last))]
    known = list(dict.fromkeys(licences(last).values()))
    facts = DatasetCardData(
        license=(known[0] if len(known) == 1 else known) or None,  # pyright: ignore[reportArgumentType]
        pretty_name=TITLES[kind],
        task_categories=["text-classification" if kind == "Item" else "text-generation"],
        tags=["preference", "prefpipe", *([] if kind == "Item" else ["dpo", "trl"])],
        size_categories=[next((name for name, most in _SIZES.items() if rows < most), "100M<n<1B")],
        source_datasets=list(dict.fromkeys(n for s in everything for n in on_hub(s, "dataset")))
        or None,
        configs=configs,
    )
    return facts.to_yaml()


def _configs(run: Run) -> list[dict[str, Any]]:
    """Which file is which split of which config: train and validation together are one config, any
    other file is one of its own; the preferences are what is loaded unasked. A file without a row
    has no columns that could be read, and is left out."""
    names = [path.name for path in run.outputs if run.written[path.name]]
    if {Path(name).stem for name in names} <= set(SPLITS):
        files = [{"split": Path(name).stem, "path": name} for name in names]
        return [{"config_name": "default", "data_files": files}]
    main = _main_type(run.outputs)
    unasked = {path.name for path, kind in run.outputs.items() if kind is main}
    return [
        {
            "config_name": Path(name).stem,
            "data_files": [{"split": "train", "path": name}],
            **({"default": True} if name in unasked else {}),
        }
        for name in sorted(names, key=lambda name: name not in unasked)
    ]


def _code(folder: Path, configs: list[dict[str, Any]]) -> str:
    split = configs[0]["data_files"][0]["split"]
    return "\n".join(
        [
            "from datasets import load_dataset",
            "",
            name_line(folder),
            "data = load_dataset(name)",
            "print(data)",
            f'print(data["{split}"][0])',
        ]
    )


_MIXED = (
    "some rows are text and some are turns: TRL wants one form, and `datasets` reads a text that is "
    'JSON, such as "4", as its value'
)


def _mixes(path: Path) -> bool:
    """Whether there are rows of text and rows of turns in a file: its columns have two types."""
    seen: set[bool] = set()
    for _, record in read_records(path):
        seen.add(isinstance(record["prompt"], str))
        if len(seen) == 2:
            return True
    return False


def _limits(run: Run, kind: str) -> list[str]:
    ties = kind in ("RagPair", "SyntheticPair", "Preference")
    may = [
        path for path, t in run.outputs.items() if issubclass(t, Preference) and t is not RagPair
    ]
    texts = [path for path in may if _mixes(path)]
    for path in texts:
        print(f"{path}: {_MIXED}; give prompts of one form", file=sys.stderr)
    return [
        *([f"{_MIXED[0].upper()}{_MIXED[1:]}."] if texts else []),
        *(["TRL's own trainers know no ties: filter `tie` before them."] if ties else []),
        *(
            [f"Only the first {run.facts.limit} rows of each input were read."]
            if run.facts.limit
            else []
        ),
        "No person looked at the rows, unless whoever publishes them says so.",
    ]


# ---- what the cards of data sets and of models share


def mark(names: Iterable[str]) -> str:
    """A line that nobody sees, by which a card is known as one of ours, and of which files."""
    return f"{MARK}{', '.join(names)} -->"


def name_line(folder: Path, name: str | None = None) -> str:
    """The line of a card's code that says what is loaded: the folder, or once pushed, its name."""
    return f'name = "{name or shown(folder)}"  # this folder, or its name on the hub'


def run_facts(run: Run) -> dict[str, str]:
    """seed, versions and settings as text. No secret: they are those that .meta.json has."""
    every = run.facts.settings
    own = {n: every[n] for n in run.facts.depends_on if every.get(n) not in (None, [], "", "auto")}
    return {
        "seed": str(every.get("seed", "none")),
        "versions": ", ".join(f"{name} {version}" for name, version in library_versions().items()),
        "settings": json.dumps(shown(own), indent=2, ensure_ascii=False),
    }


def ledger_table(run: Run) -> str:
    """read = kept + left out, and what each reason means."""
    out = run.counts()["left_out"]
    line = f"{run.read_count} read = {run.kept_count} kept + {sum(run.left_out.values())} left out."
    if not out:
        return line
    rows = [(f"`{reason}`", count, REASONS[reason]) for reason, count in out.items()]
    return f"{line}\n\n{_table(('reason', 'rows', 'meaning'), rows)}"


def steps_table(run: Run) -> str:
    """A line a run, the first one first: what it read, kept and left out, and whom it asked."""
    own = {
        "stage": run.stage,
        "counts": run.counts(),
        "settings": run.facts.settings,
        "fingerprint": run.mark,
    }
    steps = [*runs_before(run.facts.settings), own]
    rows = [(f"`{step['stage']}`", *_counts(step), _asked(step)) for step in steps]
    inputs = ", ".join(f"`{name}`" for name in _beginnings(steps))
    words = f"It begins with {inputs}.\n\n" if inputs else ""
    return words + _table(("step", "read", "kept", "left out", "settings"), rows)


def _counts(step: Mapping[str, Any]) -> tuple[object, object, str]:
    counts = step.get("counts") or {}
    out = counts.get("left_out") or {}
    why = ", ".join(f"{count} {reason}" for reason, count in out.items())
    return counts.get("read", ""), counts.get("kept", ""), why or "none"


def _asked(step: Mapping[str, Any]) -> str:
    """Which models a step asked, and how they were sampled."""
    settings = step["settings"]
    if (step.get("fingerprint") or {}).get("setting translates") == "false":
        return "asked nobody"
    samples = _OF_SAMPLES if settings.get("temperature") else ("seed",)
    values = {name: settings.get(name) for name in (*_OF_STEPS, *samples)}
    if values["by"]:
        values |= {name: settings.get(name) for name in _RANKERS.get(values["by"], ())}
    if isinstance(models := settings.get("models"), list):
        values["models"] = ", ".join(str(m["name"]) for m in models if isinstance(m, dict))
    return ", ".join(
        f"{name} {shown(value)}" for name, value in values.items() if value is not None
    )


def _beginnings(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """The inputs that no step before wrote: a person's or the hub's."""
    written = {str(step["settings"].get("output")) for step in steps}
    names = (step["settings"].get(key) for step in steps for key in ("input", "validation_input"))
    return [
        str(shown(name))
        for name in dict.fromkeys(str(name) for name in names if name)
        if name not in written and not any(Path(name).is_relative_to(w) for w in written)
    ]


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", "\\|").split())
