"""The results as a person reads them: the tables of benchmarks/README.md and the curves as PNG.

    uv run python -m benchmarks.summary      # prints the tables, writes them into README.md, draws

Everything is made of results/*.json; a number that no file holds reads "not measured".
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import RESULTS
from prefpipe.files import write_text

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- made by benchmarks/summary.py -->", "<!-- end -->"

Results = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """A number to reach. value: of the file's JSON, None where that has it not."""

    what: str
    peer: str
    file: str
    value: Callable[[Results], float | None]
    reach: float
    unit: str
    at_least: bool = True

    def cells(self, results: Path) -> list[str]:
        found = self.value(load(results, self.file) or {})
        reach = f"{'≥' if self.at_least else '≤'} {self.reach:g}{self.unit}"
        if found is None:
            return [self.what, self.peer, reach, "not measured", ""]
        is_reached = found >= self.reach if self.at_least else found <= self.reach
        number = f"{found:.2f}" if found < 100 else f"{found:.0f}"
        return [self.what, self.peer, reach, number + self.unit, "yes" if is_reached else "**no**"]


def load(results: Path, file: str) -> Results | None:
    path = results / f"{file}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def of_shape(name: str, key: str) -> Callable[[Results], float | None]:
    """A number of the shape of that name."""
    return lambda found: next(
        (row[key] for row in found.get("shapes", []) if row["name"] == name), None
    )


def at(*path: str) -> Callable[[Results], float | None]:
    """The number behind those keys."""

    def value(found: Any) -> float | None:
        for key in path:
            if not isinstance(found, dict) or key not in found:
                return None
            found = found[key]
        return found

    return value


def worst_row(found: Results) -> float | None:
    """Microseconds a row of the slowest stage."""
    stages = found.get("time", {})
    return max((stage["microseconds_a_row"] for stage in stages.values()), default=None)


def most_memory(found: Results) -> float | None:
    """Megabytes at a million rows, of the largest stage."""
    stages = found.get("memory", {}).get("megabytes", {})
    return max((sizes["1000000"] for sizes in stages.values() if "1000000" in sizes), default=None)


def best_of_gpu(part: str) -> Callable[[Results], float | None]:
    """The ratio of ours with the better of both attentions."""
    return lambda found: max(
        (found[part][kind]["ratio"] for kind in ("sdpa", "flex") if kind in found.get(part, {})),
        default=None,
    )


LINES = [
    Line("DPO step, 800-token prompt, 5 pairs of 150-token completions", "`trl.DPOTrainer`",
         "dpo_step", of_shape("30m_800_150", "ratio"), 3.0, "x"),
    Line("the same on a GPU, 7B, LoRA, bf16 (limit by tokens: 4.1x)", "`trl.DPOTrainer`",
         "gpu", best_of_gpu("dpo"), 3.2, "x"),
    Line("reward-model step, 800 + 2 x 150 (limit by tokens: 1.7x)", "`trl.RewardTrainer`",
         "reward_step", of_shape("30m_800_150", "ratio"), 1.5, "x"),
    Line("8 samples of an 800-token prompt, 64 new tokens", "`generate`, the faster way",
         "sampling", of_shape("30m_800_64", "ratio"), 6.0, "x"),
    Line("the same, 150 new tokens", "`generate`, the faster way",
         "sampling", of_shape("30m_800_150", "ratio"), 4.5, "x"),
    Line("the same: tokens through the model, over P + n T", "-",
         "sampling", of_shape("30m_800_150", "tokens_through_model"), 1.05, "", at_least=False),
    Line("the same, 64 new tokens", "`generate_batch`",
         "generate_batch", of_shape("30m_800_64", "ratio"), 10.0, "x"),
    Line("500 queries x 4 candidates x 256 tokens, Mistral-7B, bf16, one H200", "-",
         "gpu", at("sampling_bf16", "all", "seconds"), 120, " s", at_least=False),
    Line("the same, 4-bit weights", "-",
         "gpu", at("sampling_4bit", "all", "seconds"), 120, " s", at_least=False),
    Line("A/B scoring of 8 responses, all 28 pairs, both orders", "a forward an order",
         "ab_scoring", of_shape("30m_800_150_all_pairs", "ratio"), 2.5, "x"),
    Line("the same, a knockout: 4, 2 and 1 pairs (limit by tokens: 3.7x)", "a forward an order",
         "ab_scoring", of_shape("30m_800_150_knockout", "ratio"), 2.5, "x"),
    Line("client CPU a request, 512 in flight, loopback server", "`AsyncOpenAI`, distilabel, curator",
         "client", at("cpu_ms_a_request"), 1.2, " ms", at_least=False),
    Line("the slowest of the row stages, a row of 4 kB", "-",
         "row_stage", worst_row, 60, " us", at_least=False),
    Line("the largest of them at 1,000,000 rows", "-",
         "row_stage", most_memory, 300, " MB", at_least=False),
    Line("80,000 prompts that share 300 words, preprocess_dataset", "-",
         "row_stage", at("beginning", "seconds"), 60, " s", at_least=False),
    Line("embedded chain, fresh clone, 2 cores, after install", "-",
         "chain", at("minutes"), 10, " min", at_least=False),
]  # fmt: skip

SCRIPTS = ("sampling", "generate_batch", "dpo_step", "reward_step", "ab_scoring")


def table(rows: list[list[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def reach_table(results: Path) -> str:
    head = ["what", "peer in the same run", "reach", "measured", "reached"]
    return table([head, *(line.cells(results) for line in LINES)])


def shapes_table(results: Path) -> str:
    """The shapes of the CPU scripts, so that a reader sees where the gain ends."""
    rows = [
        ["script", "shape", "ours, s", "peer, s", "wall time", "CPU time", "tokens, peer / ours"]
    ]
    for script in SCRIPTS:
        for shape in (load(results, script) or {}).get("shapes", []):
            ours = shape["median_seconds"]["ours"]
            rows.append([
                script, shape["name"], f"{ours:.3f}", f"{ours * shape['ratio']:.3f}",
                f"{shape['ratio']:.2f}x", f"{shape['cpu_ratio']:.2f}x",
                f"{token_ratio(script, shape):.2f}x",
            ])  # fmt: skip
    return table(rows) if len(rows) > 1 else "Not measured.\n"


def token_ratio(script: str, shape: Results) -> float:
    """The tokens that a peer sends through the model, over ours: about where the gain must end."""
    if script in ("sampling", "generate_batch"):
        prompt, new, n = shape["prompt_tokens"], shape["new_tokens"], shape["samples"]
        return n * (prompt + new) / (shape["tokens_through_model"] * (prompt + n * new))
    ours, *peer = shape["tokens"].values()
    return peer[0] / ours


def equal_texts(results: Path) -> str:
    share = (load(results, "sampling") or {}).get("same_texts_in_bfloat16")
    if share is None:
        return ""
    return (
        f"Texts that are the same in two batchings: float32 all (a test), bfloat16 {share:.0%}.\n"
    )


def row_stage_table(results: Path) -> str:
    found = load(results, "row_stage")
    if found is None:
        return "Not measured.\n"
    sizes = list(next(iter(found["memory"]["megabytes"].values())))
    head = ["stage", "us a row of 4 kB", "CPU us", "`datasets.map`, us"]
    rows = [[*head, *(f"MB at {int(size):,} rows" for size in sizes)]]
    for stage, time in found["time"].items():
        peer = min(side["microseconds_a_row"] for side in time["datasets_map"].values())
        numbers = [time["microseconds_a_row"], time["cpu_microseconds_a_row"], peer]
        memory = [f"{found['memory']['megabytes'][stage][size]:.0f}" for size in sizes]
        rows.append([stage, *(f"{number:.0f}" for number in numbers), *memory])
    return table(rows)


REAL_PAIRS = {
    "ours_drop": "ours, ties dropped",
    "ours_half": "ours, ties as halves",
    "trl": "`trl.RewardTrainer`, ties dropped",
    "trl_in_our_order": "the same, in our order of the pairs",
}


def real_pairs_table(results: Path) -> str:
    """Auto-J, with the MiniLM encoder."""
    found = load(results, "autoj_reward")
    if found is None:
        return "Not measured.\n"
    head = ["trained by", "accuracy", "95 %", "less TRL's", "ECE", "margin of ties", "of others"]
    rows = [head]
    for way, name in REAL_PAIRS.items():
        row = found[way]
        less = found["differences"].get(f"{way} - trl")
        margins = (row["mean_abs_margin_of_ties"], row["mean_abs_margin_of_others"])
        rows.append([
            name, f"{row['accuracy']:.3f}", _range(row["interval"]),
            f"{less['value']:+.3f} ({_range(less['interval'])})" if less else "",
            f"{row['ece']:.3f}", *(f"{margin:.2f}" for margin in margins),
        ])  # fmt: skip
    longer = found["ours_drop"]["longer_is_right"]
    return (
        f"{found['pairs']:,} pairs in {found['folds']} folds, {found['ties']} of them ties; the longer "
        f"response is the better one in {longer:.3f}.\n\n{table(rows)}"
    )


def _range(interval: list[float]) -> str:
    return " to ".join(f"{value:.3f}" for value in interval)


GPU = [
    ("32 prompts of 512 tokens, 4 samples of 256 each, 7B", "`generate`", "sampling_bf16", "beside", "num_return_sequences"),
    ("DPO step, 5 pairs of one prompt, 800 + 10 x 150, 7B, LoRA", "`trl.DPOTrainer`", "dpo", "sdpa", "trl_one_batch"),
    ("reward step, 2 pairs, 800 + 2 x 150 each, 7B, LoRA", "`trl.RewardTrainer`", "reward", "sdpa", "trl_one_batch"),
]  # fmt: skip
"""What, its peer, the part of gpu.json, what of it, and the peer's name there."""


def gpu_table(results: Path) -> str:
    found = load(results, "gpu") or {}
    rows = [
        [
            "on a GPU",
            "peer",
            "ours, s",
            "peer, s",
            "ratio",
            "GiB beyond weights, ours / peer",
            "of the peak",
        ]
    ]
    for what, peer, part, key, name in GPU:
        one = found.get(part, {}).get(key, {})
        if name not in one.get("median_seconds", {}):
            continue
        seconds, gib = one["median_seconds"], one["peak_gib"]
        share = one.get("model_flops_utilisation")
        rows.append(
            [what, peer, f"{seconds['ours']:.3f}", f"{seconds[name]:.3f}", f"{one['ratio']:.2f}x",
             f"{gib['ours']:.1f} / {gib[name]:.1f}", "" if share is None else f"{share:.2f}"]
        )  # fmt: skip
    if len(rows) == 1:
        return "Not measured.\n"
    parts = {name: one.get("status", "") for name, one in found.items() if isinstance(one, dict)}
    missing = [f"{name} ({words})" for name, words in parts.items() if words not in ("", "done")]
    return table(rows) + (f"\nNot whole: {'; '.join(missing)}.\n" if missing else "")


def conditions(results: Path) -> str:
    """Where and with what each file was measured."""
    lines = []
    for script in (*SCRIPTS, *(f"curves_{s}" for s in CURVES), "row_stage", "autoj_reward", "gpu"):
        found = load(results, script)
        if found is None:
            continue
        on = found["machine"]
        versions = on["libraries"]
        where = found.get("device") or f"{on['cores']} cores, {on['processor']}"
        lines.append(
            f"- {script}: {found['date']}, {where}; torch {versions.get('torch')}, transformers "
            f"{versions.get('transformers')}, trl {versions.get('trl')}, datasets "
            f"{versions.get('datasets')}; load before {on['load_before']}\n"
        )
    return "".join(lines)


def render(results: Path = RESULTS) -> str:
    """What stands between the marks in README.md."""
    return "\n".join(
        [
            "### What is to be reached\n",
            reach_table(results),
            "### Each shape\n",
            "\n".join(filter(None, (shapes_table(results), equal_texts(results)))),
            "### 7B shapes on a GPU\n",
            gpu_table(results),
            "### Row stages\n",
            row_stage_table(results),
            "### Real pairs: Auto-J, the MiniLM encoder, 5-fold by prompt\n",
            real_pairs_table(results),
            "### Measured on\n",
            conditions(results) or "Not measured.\n",
        ]
    )


def put_into(text: str, rendered: str) -> str:
    """The text with what stands between the marks replaced."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{rendered}\n{END}{after}"


# ---- curves ------------------------------------------------------------------------------------

CURVES = {
    "sampling": [("samples", "samples_"), ("prompt_tokens", "prompt_")],
    "dpo_step": [("pairs", "pairs_"), ("prompt_tokens", "prompt_")],
}
"""Script -> (what changes, how the names of its shapes begin)."""
SHARED = {"sampling": "samples_8", "dpo_step": "pairs_5"}
"""The shape that stands in both curves of its script."""
LABELS = {
    "samples": "samples of a prompt",
    "pairs": "pairs of a prompt",
    "prompt_tokens": "tokens of the prompt",
}


def curve(script: str, shapes: list[Results], key: str, begins: str) -> list[tuple[float, ...]]:
    """(x, ratio of wall times, ratio of tokens), in order of x."""
    chosen = [s for s in shapes if s["name"].startswith(begins) or s["name"] == SHARED[script]]
    return sorted((s[key], s["ratio"], token_ratio(script, s)) for s in chosen)


def draw(results: Path) -> list[Path]:
    """results/curves_<script>.png of each curves_<script>.json."""
    from matplotlib.figure import Figure

    made = []
    for script, panels in CURVES.items():
        shapes = (load(results, f"curves_{script}") or {}).get("shapes", [])
        curves = [(key, curve(script, shapes, key, begins)) for key, begins in panels]
        if min(len(points) for _, points in curves) < 2:
            continue
        figure = Figure(figsize=(9, 3.5), layout="constrained")
        for axis, (key, points) in zip(figure.subplots(1, 2), curves, strict=True):
            x, ratio, tokens = zip(*points, strict=True)
            axis.plot(x, ratio, "o-", label="wall time")
            axis.plot(x, tokens, "--", label="tokens through the model")
            axis.axhline(1, color="grey", linewidth=0.8)
            axis.set_xscale("log", base=2)
            axis.set_xticks(x, [f"{value:g}" for value in x])
            axis.minorticks_off()
            axis.set_ylim(bottom=0)
            axis.set_xlabel(LABELS[key])
            axis.set_ylabel("peer / ours")
            axis.grid(alpha=0.3)
            axis.legend()
        figure.suptitle({"sampling": "generate / ours", "dpo_step": "TRL / ours"}[script])
        made.append(results / f"curves_{script}.png")
        figure.savefig(made[-1], dpi=120)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON")
    results = parser.parse_args().results
    print(render(results))
    for path in draw(results):
        print(f"{path.name} drawn")
    if results == RESULTS:
        write_text(README, put_into(README.read_text(encoding="utf-8"), render(results)))


if __name__ == "__main__":
    main()
