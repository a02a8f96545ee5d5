"""What a training leaves beside the weights: its curve, the model card, the numbers of .meta.json."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prefpipe.files import Run, write_text
from prefpipe.judge import judge_prompt
from prefpipe.publish import cards
from prefpipe.rows import Message
from prefpipe.templates import load_template

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Values = Mapping[str, Any]
CSV = "loss_curve.csv"
"""The curve's file in a model's folder."""
FIRST = ("step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm")
"""Columns in this order, the others behind them by name."""

_NO_CURVE = ("runtime", "per_second", "train_loss", "total_flos", "model_preparation_time")


class Kind(NamedTuple):
    """What is drawn and shown of a kind of model; templates/card.jinja has the words of its card."""

    curve: str
    """The title of its curve, to be filled with the model's name."""
    panels: Mapping[str, str]
    """What is drawn of its training: panel -> the log's number, drawn beside its eval_ one."""
    tag: str
    """TRL's name of the training."""
    task: str
    """The hub's name of what the model does."""
    numbers: Sequence[str] = ()
    """Those of its results that the card shows; none: all."""


KINDS = {
    "dpo": Kind(
        curve="DPO of {}",
        panels={
            "loss": "loss",
            "reward margin": "rewards/margins",
            "reward accuracy": "rewards/accuracies",
        },
        tag="dpo",
        task="text-generation",
    ),
    "reward": Kind(
        curve="reward model on {}",
        panels={"loss": "loss", "accuracy": "accuracy", "margin": "margin"},
        tag="reward-trainer",
        task="text-classification",
        numbers=["accuracy", "ece", "temperature", "ece_scaled", "mean_margin", "longer_is_right"],
    ),
    "pairwise": Kind(
        curve="pairwise model on {}",
        panels={"loss": "loss", "accuracy of the label": "mean_token_accuracy"},
        tag="sft",
        task="text-generation",
        numbers=["accuracy", "agreement", "ece", "temperature", "ece_scaled", "longer_is_right"],
    ),
}


def _pair_example() -> str:
    from prefpipe.compare.ab_prompt import render_context, render_pair

    return render_pair(render_context([Message(role="user", content="2+2?")]), "4", "5")


_EXAMPLES: Mapping[str, Callable[[], str]] = {
    "dpo": lambda: judge_prompt("2+2?", "4", "5", language="en"),
    "pairwise": _pair_example,
    "reward": lambda: "",
}
"""What a card's code shows a model of that kind."""


def record(
    run: Run,
    trainer: Any,
    kind: str,
    settings: Values,
    counts: Values,
    results: Values,
    difference: float,
) -> None:
    """Write loss_curve.csv, loss_curve.png and README.md; add to run.summary.

    kind: a key of KINDS. settings: those of a TrainingStage. counts: of pairs. difference: of the
    reloaded model's scores.
    """
    folder, state = Path(settings["output"]), trainer.state
    words = KINDS[kind]
    title = words.curve.format(Path(settings["model"]).name)
    run.written[CSV] = write_curve(folder, state.log_history, words.panels, title)
    data = {"pairs": cards.shown(settings["input"]), **counts, "left out": run.reasons() or "none"}
    about = cards.run_facts(run) | {
        "steps": cards.steps_table(run),
        "ledger": cards.ledger_table(run),
    }
    is_causal = bool(getattr(trainer.processing_class, "chat_template", None))
    shown = {n: results[n] for n in words.numbers or results}
    write_card(folder, kind, data, shown, settings, about, is_causal=is_causal)
    run.summary |= {
        "pairs": dict(counts),
        "steps": state.global_step,
        "best_step": state.best_global_step,
        **({"accuracy": results["accuracy"]} if words.numbers else {"results": results}),
        "reload_difference": difference,
    }


def write_card(
    folder: Path,
    kind: str,
    data: Values,
    results: Values,
    settings: Values,
    about: Values,
    *,
    is_causal: bool = True,
) -> None:
    """README.md of a model's folder, as the hub reads it.

    data: name -> count or text; results: name -> number, printed with four digits. about: run_facts,
    steps and ledger of the run. is_causal: it reads its chat template, not two texts.
    """
    base = cards.shown(settings["model"])
    text = load_template("card").render(
        kind=kind,
        name=Path(base).name,
        method=settings["method"],
        checkpoint=settings["checkpoint"],
        data=_list({"base model": base, **data}),
        results=_list({name: f"{value:.4g}" for name, value in results.items()}),
        name_line=cards.name_line(folder),
        example=json.dumps(_EXAMPLES[kind](), ensure_ascii=False),
        is_causal=is_causal,
        licence=_list(cards.licences(settings), "; "),
        mark=cards.mark(["the model"]),
        **about,
    )
    write_text(
        folder / "README.md", f"---\n{_front_matter(kind, results, settings)}\n---\n\n{text}"
    )


def _front_matter(kind: str, results: Values, settings: Values) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    base, task = cards.shown(settings["model"]), KINDS[kind].task
    is_adapter = settings["method"] == "lora" and not settings["merge_adapter"]
    library = {"lora": "peft" if is_adapter else "transformers", "probe": "prefpipe"}
    is_on_hub = not Path(settings["model"]).exists() or base != settings["model"]
    data = cards.on_hub({"input": settings.get("input", "")}, "dataset")
    licence = cards.licences({"model": settings["model"]})
    results = {name: value for name, value in results.items() if isinstance(value, int | float)}
    facts = ModelCardData(
        base_model=base if is_on_hub else None,  # the hub knows no folder of ours
        library_name=library.get(settings["method"], "transformers"),
        pipeline_tag=task,
        tags=["linear-probe", "prefpipe"]
        if settings["method"] == "probe"
        else ["trl", KINDS[kind].tag, "prefpipe"],
        datasets=data or None,
        license=next(iter(licence.values()), None),
        model_name=Path(base).name if results else None,
        eval_results=[
            EvalResult(
                task_type=task,
                dataset_type=data[0] if data else "held-out",
                dataset_name="held-out pairs",
                metric_type=name,
                metric_value=round(value, 6),
            )
            for name, value in results.items()
            if math.isfinite(value)
        ]
        or None,
    )
    return facts.to_yaml()


def _list(values: Values, between: str = "\n") -> str:
    start = "- " if between == "\n" else ""
    return between.join(f"{start}{name}: {value}" for name, value in values.items())


def curve_rows(log_history: Iterable[Values]) -> list[dict[str, Any]]:
    """One row a step, an evaluation in the row of the step it follows; times are left out.

    log_history: `trainer.state.log_history`. So two runs with equal numbers give equal rows.
    """
    rows: dict[int, dict[str, Any]] = {}
    for entry in log_history:
        values = {k: v for k, v in entry.items() if not k.endswith(_NO_CURVE)}
        if values.keys() - {"step", "epoch"}:
            rows.setdefault(entry["step"], {}).update(values)
    return [rows[step] for step in sorted(rows)]


def write_csv(path: Path, log_history: Iterable[Values]) -> list[dict[str, Any]]:
    """The curve_rows, written as CSV; a value that a row lacks is an empty cell."""
    rows = curve_rows(log_history)
    names = {name for row in rows for name in row}
    columns = [name for name in FIRST if name in names] + sorted(names - {*FIRST})
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
    return rows


def write_curve(
    folder: Path, log_history: Iterable[Values], panels: Mapping[str, str], title: str
) -> int:
    """loss_curve.csv and loss_curve.png; the number of rows. panels: see Kind; eval_* are dots."""
    from matplotlib.figure import Figure

    rows = write_csv(folder / CSV, log_history)
    figure = Figure(figsize=(4.5 * len(panels), 3.5), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (panel, name) in zip(axes, panels.items(), strict=True):
        for curve, label, line in (
            (name, f"{name}, train", "-"),
            (f"eval_{name}", f"{name}, validation", "o-"),
        ):
            if points := [(row["step"], row[curve]) for row in rows if curve in row]:
                axis.plot(*zip(*points, strict=True), line, label=label)
        axis.set(title=panel, xlabel="step")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    figure.suptitle(title)
    save_figure(figure, folder / "loss_curve.png")
    return len(rows)


def save_figure(figure: "Figure", path: Path) -> None:
    """As PNG, whole or not at all."""
    temporary = path.with_name(f".{path.stem}.tmp.png")
    figure.savefig(temporary, dpi=120)
    temporary.replace(path)
