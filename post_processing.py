"""Read the verdict out of every judgment, and align the four files by item.

Reads   data/judgments/raw/{best_of_n,guide,guide_reverse,output}.jsonl   Judgment rows
        data/pairwise_critic_inference2_get_answer/Sky_english/           Item rows
Writes  data/judgments/clean/{best_of_n,guide,guide_reverse,output}.jsonl   CleanJudgment rows

    {"id": "p8", "sample": 0, "variant": "guide", "hint": 2, "text": "4 is \\"right\\".", "finish_reason": "stop", "prompt_tokens": 61, "new_tokens": 5}
 -> {"id": "p8", "sample": 0, "variant": "guide", "hint": 2, "text": "4 is \\"right\\".", "finish_reason": "stop", "prompt_tokens": 61, "new_tokens": 5, "index": 0, "judgment": "{\\"reason\\": \\"4 is \\\\\\"right\\\\\\".\\", \\"better_answer\\": 2}", "verdict": 2, "unreadable": null}

A text nobody can read keeps its row, with the reason; it is no verdict of any kind. A hinted text
becomes the judgment with the hinted verdict, built by a JSON encoder. An item that one of the four
files lacks is left out of all of them, by reason. Files are read side by side, in the items' order.

    uv run post_processing.py
"""

from pathlib import Path

import config
from prefpipe import files, verdicts
from prefpipe.rows import CleanJudgment, Item, Judgment, Language, Reject, Variant
from prefpipe.settings import Stage

VARIANTS: tuple[Variant, ...] = ("best_of_n", "guide", "guide_reverse", "output")


class Settings(Stage, env_prefix="POST_PROCESSING_"):
    items: Path = config.ITEMS_ENGLISH
    """Folder of the items that were judged, or one file of them."""
    input: Path = config.JUDGMENTS
    """Folder of the four files."""
    output: Path = config.JUDGMENTS_CLEAN
    """Folder of the four cleaned files."""


def clean(row: Judgment, *, index: int, language: Language) -> CleanJudgment:
    """The row with its verdict, or with why there is none."""
    if row.hint is None:
        verdict = verdicts.parse_verdict(row.text, finish_reason=row.finish_reason)
    else:
        # told the answer beforehand, its text is the reason, and the hint is the verdict
        verdict = verdicts.read_hinted_reason(row.text, row.hint, finish_reason=row.finish_reason)
    if isinstance(verdict, verdicts.Unreadable):
        read = {"judgment": None, "verdict": None, "unreadable": verdict.reason}
    else:
        judgment = verdicts.render_judgment(verdict.reason, verdict.better, language)
        read = {"judgment": judgment, "verdict": verdict.better, "unreadable": None}
    return CleanJudgment.model_validate({**vars(row), "index": index, **read})


def main(s: Settings) -> None:
    sources = {variant: s.input / f"{variant}.jsonl" for variant in VARIANTS}
    paths = {variant: s.output / f"{variant}.jsonl" for variant in VARIANTS}
    outputs, inputs = dict.fromkeys(paths.values(), CleanJudgment), [s.items, *sources.values()]
    with s.open_run(inputs=inputs, outputs=outputs, home=s.output, unit="items") as run:
        if run.finished:
            return
        read = run.counter("read")  # by variant, and why it is unreadable
        # with a limit the judgments of the other items are no leftovers to complain of
        wanted = {item.id for item in run.peek(s.items, Item)} if s.limit else None
        readers = {v: run.aligned(path, Judgment, wanted) for v, path in sources.items()}
        for item in run.read(s.items, Item):
            judgments = {variant: reader.rows_of(item.id) for variant, reader in readers.items()}
            if missing := [variant for variant, rows in judgments.items() if not rows]:
                reason = "tie" if item.better is None else f"no_{missing[0]}"
                run.emit(Reject(id=item.id, reason=reason, detail=f"in {s.input}"))
                continue
            rows = [
                clean(row, index=run.position, language=item.language)
                for variant in VARIANTS
                for row in judgments[variant]
            ]
            read.update((row.variant, row.unreadable) for row in rows)
            run.emit(rows, to=lambda row: paths[row.variant])
        # a judgment of an item that is not there would be lost without a word
        for reader in readers.values():
            reader.check_used_up()
        run.summary["readable"] = {variant: read[variant, None] for variant in VARIANTS}
        unreadable = {f"{variant}: {why}": n for (variant, why), n in read.items() if why}
        run.summary["unreadable"] = files.by_number(unreadable)
        for variant in VARIANTS:
            reasons = files.by_number({w: n for (v, w), n in read.items() if w and v == variant})
            total = read[variant, None] + sum(reasons.values())
            readable = f"{read[variant, None]} of {total} readable"
            print(f"{variant}: {readable}; unreadable: {reasons or 'none'}")


if __name__ == "__main__":
    Settings.run(main)
