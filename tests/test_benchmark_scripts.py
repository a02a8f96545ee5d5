"""The benchmark scripts: each runs in a tiny shape, both sides do the same, the README is their JSON.

No number is asserted on that depends on the machine's speed.
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import (
    RESULTS,
    __main__,
    ab_scoring,
    alternate,
    client,
    dpo_step,
    gpu,
    ratios,
    real_rag,
    retrieval,
    reward_serving,
    reward_step,
    row_stage,
    sampling,
    summary,
)
from prefpipe.ratings import read_ratings
from prefpipe.rows import Item, Judgment, Preference, RagPair
from tests.examples import ROOT, read_jsonl

torch.set_num_threads(1)


# ---- how it is measured ------------------------------------------------------------------------


def test_the_sides_take_turns_and_the_first_round_does_not_count(monkeypatch):
    """A clock that each side moves on by its own seconds: 100 in the first round, then 4 or 1."""
    clock, ran = [0.0], []
    monkeypatch.setattr("benchmarks.time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("benchmarks.time.process_time", lambda: clock[0] / 2)

    def side(name, seconds):
        def run():
            clock[0] += seconds if name in ran else 100.0
            ran.append(name)

        return run

    measured = alternate({"ours": side("ours", 1.0), "peer": side("peer", 4.0)}, 3)
    assert ran == ["ours", "peer"] * 4
    assert measured["seconds"] == {"ours": [1.0] * 3, "peer": [4.0] * 3}
    assert ratios(measured, "ours", ["peer"]) == {"ratio": 4.0, "cpu_ratio": 4.0}
    ran.clear()
    warm_up = {name: lambda name=name: ran.append(f"{name}, short") for name in ("ours", "peer")}
    alternate({name: side(name, 1.0) for name in ("ours", "peer")}, 1, warm_up=warm_up)
    assert ran == ["ours, short", "peer, short", "ours", "peer"]


def test_of_a_peers_ways_the_fastest_counts_and_a_slower_one_is_not_run_again(monkeypatch):
    """a is the slowest when it runs cold, which must not tell against it."""
    clock, ran = [0.0], []
    monkeypatch.setattr("benchmarks.time.perf_counter", lambda: clock[0])

    def side(name, seconds):
        def run():
            clock[0] += seconds if name in ran or name != "a" else 9
            ran.append(name)

        return run

    sides = {name: side(name, s) for name, s in (("ours", 1), ("a", 4), ("b", 4.3), ("c", 5))}
    measured = alternate(sides, 2, ways=("a", "b", "c"))
    assert [ran.count(name) for name in sides] == [3, 3, 3, 2]
    assert measured["dropped"] == {"c": 5}
    assert ratios(measured, "ours", ("a", "b", "c"))["ratio"] == 4


# ---- each script, tiny -------------------------------------------------------------------------


def test_sampling_makes_the_same_number_of_tokens_on_each_side():
    row = sampling.measure(sampling.TINY, 1)
    assert set(row["median_seconds"]) | set(row["dropped"]) == {"ours", *sampling.WAYS}
    # 2 prompts of 12 tokens, 2 samples of 3, the last of which is never read
    assert row["tokens_through_model"] == (2 * 12 + 2 * 2 * 2) / (2 * 12 + 2 * 2 * 3)
    assert sampling.measure(sampling.TINY, 1, ("generate_batch",))["ratio"] > 0
    with pytest.raises(SystemExit, match="made 5 tokens, 12 were asked for"):
        sampling.checked("ours", lambda: 5, 12)()


@pytest.mark.parametrize("script", [dpo_step, reward_step])
def test_a_step_of_ours_has_the_losses_of_trl(script):
    row = script.measure(script.TINY, 2)
    ours, *theirs = row["losses"].values()
    assert len(ours) == 2 and ours[0] != ours[1], "the steps train"
    for losses in theirs:
        assert losses == pytest.approx(ours[: len(losses)], abs=1e-5)
    assert row["ratio"] > 0


def test_the_tokens_that_a_step_reports_are_those_in_its_batches():
    shape = dpo_step.TINY
    from prefpipe.training.collator import PackCollator

    pairs = dpo_step.to_dataset(dpo_step.make_pairs(shape))
    batch = PackCollator(0)([pairs[k] for k in range(len(pairs))])
    tokens = dpo_step.measure(shape, 1)["tokens"]
    assert int(batch["attention_mask"].sum()) == tokens["ours"] == 12 - 1 + 4 * 4
    assert tokens["trl"] == 4 * (12 + 4)


def test_ab_scoring_gives_the_probabilities_of_plain_forwards():
    row = ab_scoring.measure(ab_scoring.TINY, 1)
    assert row["comparisons"] == 3 and row["largest_difference"] < 1e-5
    assert row["tokens"]["ours"] < row["tokens"]["plain"]


def test_a_served_reward_is_that_of_a_plain_forward():
    requests = reward_serving.make_requests(2, 20, 10)
    assert len({*requests}) == 16 and len({prompt for prompt, _ in requests}) == 2
    row = reward_serving.measure(reward_serving.SHAPES[-1], requests, 1)
    assert row["requests"] == 16 and row["largest_difference_of_scores"] < 1e-4
    assert 1 <= row["rows_in_a_batch"] <= 16
    assert set(row["requests_per_second"]) == {"64_in_flight", "one_at_a_time", "transformers"}


def test_left_padding_does_not_move_the_last_logits():
    model = ab_scoring.make_model(ab_scoring.TINY)
    rows = [[5, 6, 7, 8, 9], [7, 8]]
    together = ab_scoring.forward(model, rows)
    for row, logits in zip(rows, together, strict=True):
        with torch.inference_mode():
            alone = model(input_ids=torch.tensor([row])).logits[0, -1]
        torch.testing.assert_close(logits, alone, atol=1e-5, rtol=0)


def test_the_rows_of_row_stage_are_as_long_as_they_say_and_the_stages_read_all_of_them(tmp_path):
    row_stage.write_preferences(tmp_path, 30, 4000)
    lines = (tmp_path / "preferences.jsonl").read_text().splitlines()
    assert all(3900 < len(line) < 4100 for line in lines)
    assert len({str(Preference.model_validate_json(line).prompt) for line in lines}) == 30
    row_stage.write_judgments(tmp_path, 48, 4000)
    items = [Item.model_validate(row) for row in read_jsonl(tmp_path / "items.jsonl")]
    judgments = (tmp_path / "raw/best_of_n.jsonl").read_text().splitlines()
    assert len(items) == 4 and len(judgments) == 32
    assert all(3900 < len(line) < 4100 for line in judgments)
    assert Judgment.model_validate_json(judgments[0]).id == "q0"
    assert row_stage.rows_read(tmp_path, "post_processing") == 48
    cost = row_stage.post_processing(tmp_path)
    counts = json.loads((tmp_path / "clean/post_processing.meta.json").read_text())
    assert counts["counts"]["kept"] == 4 and counts["readable"]["best_of_n"] == 32
    assert 10 < cost.megabytes < 1000 and cost.cpu_seconds > 0


def test_the_ratings_of_row_stage_are_read(tmp_path):
    row_stage.write_ratings(tmp_path, 27, 4000)
    lines = (tmp_path / "annotations.jsonl").read_text().splitlines()
    assert len(lines) == 12 and all(3800 < len(line) < 4100 for line in lines)
    first = json.loads(lines[0])["text"]
    assert read_ratings(first, 4) == [2.0, 3.0, 4.0, 5.0]
    assert row_stage.rows_read(tmp_path, "parse_preferences") == 27
    row_stage.parse_preferences(tmp_path)
    assert len(read_jsonl(tmp_path / "parsed/parsed.jsonl")) == 3


def test_the_peak_is_the_childs_own_and_a_failure_is_told(tmp_path):
    """A child that takes 200 MB more than one that does nothing."""
    scripts = {}
    for name, code in (("none", "x = 1"), ("much", "x = bytearray(200_000_000)"), ("bad", "1 / 0")):
        scripts[name] = tmp_path / f"{name}.py"
        scripts[name].write_text(code)
    none, much = (row_stage.run(tmp_path, scripts[name]).megabytes for name in ("none", "much"))
    assert 190 < much - none < 210
    with pytest.raises(SystemExit, match=r"bad.py failed: (.|\n)*ZeroDivisionError"):
        row_stage.run(tmp_path, scripts["bad"])


def test_time_a_row_is_the_difference_of_two_sizes():
    def costs(small, large):
        return [row_stage.Cost(small, small, 1), row_stage.Cost(large, large / 2, 1)]

    rounds = [costs(1.0, 1.5), costs(1.0, 1.7), costs(2.0, 2.6)]
    found = row_stage._a_row(rounds, [1_000, 11_000])
    assert found["microseconds_a_row"] == pytest.approx(60)
    assert found["start_seconds"] == 1.0


def test_each_client_gets_every_text_back_with_that_many_in_flight(tmp_path):
    """AsyncOpenAI and ours need no other environment; the server says what it was asked."""
    found = client.measure(["prefpipe", "async_openai"], [8], [20], tmp_path)
    for result in found.values():
        assert result["status"] == "measured" and "openai" in result["versions"]
        (run,) = result["runs"]
        assert run["server"]["requests"] == 20
        assert 1 <= run["server"]["peak_in_flight"] <= 8
        assert run["rows_per_second"] == pytest.approx(1000 / run["wall_ms_a_request"])
        assert 0 < run["megabytes_before"] <= run["peak_megabytes"]
        assert run["cpu_ms_a_request"] > 0


def test_a_peer_that_fails_says_why_and_the_others_go_on(tmp_path, monkeypatch):
    def side(name, python, in_flight, requests):
        if name == "curator":
            raise client.PeerFailed("it ended with 1: ImportError: no")
        return {
            "in_flight": in_flight, "requests": requests, "versions": {"openai": "3"},
            "cpu_ms_a_request": {"prefpipe": 1.0, "async_openai": 4.0}[name] * (1 + in_flight),
            "wall_ms_a_request": 2.0 if name == "prefpipe" else 1.5, "rows_per_second": 500.0,
            "peak_megabytes": 50 + requests / 1000, "megabytes_before": 40.0, "server": {},
        }  # fmt: skip

    monkeypatch.setattr(client, "run_side", side)
    monkeypatch.setattr(client, "environment", lambda name, folder: tmp_path)
    results = client.measure(
        ["prefpipe", "async_openai", "curator"], [1, 3], [2000, 20000], tmp_path
    )
    assert [len(result["runs"]) for result in results.values()] == [4, 4, 0]
    assert results["curator"]["status"] == "failed: it ended with 1: ImportError: no"
    assert client.conclusions(results) == {
        "cpu_ms_a_request": 4.0,
        "cpu_ratio": {"async_openai": 4.0},
        "below_each_peer": {"cpu_ms_a_request": True, "wall_ms_a_request": False},
        "memory_growth_megabytes": 18.0,
    }
    monkeypatch.undo()
    monkeypatch.setattr(client.shutil, "which", lambda name: None)
    with pytest.raises(client.PeerFailed, match="uv is not installed"):
        client.environment("curator", tmp_path)


def test_a_client_that_loses_a_text_or_dies_has_no_numbers(tmp_path, monkeypatch):
    sides = tmp_path / "sides.py"
    monkeypatch.setattr(client, "SIDES", sides)
    python = Path(sys.executable)
    sides.write_text("raise RuntimeError('no such server')")
    with pytest.raises(client.PeerFailed, match="ended with 1: RuntimeError: no such server"):
        client.run_side("async_openai", python, 1, 2)
    sides.write_text("import sys; open(sys.argv[3], 'w').write('{\"characters\": 1000}')")
    with pytest.raises(client.PeerFailed, match=r"^1000 characters came back, 2000 were asked for"):
        client.run_side("async_openai", python, 1, 2)


# ---- the GPU's script, on a CPU ----------------------------------------------------------------


@pytest.mark.parametrize("part", gpu.PARTS)
def test_each_part_of_the_gpu_script_runs_in_a_small_shape(part, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    path = tmp_path / f"{part}.json"
    gpu.run_part(part, gpu.SMALL, path)
    found = json.loads(path.read_text())
    if part.startswith("sampling"):
        found = found["all"]
        assert found["tokens_through_model"] <= 1.05
    if part in ("dpo", "reward"):
        assert found["tokens"] in (20 - 1 + 4 * 6, 2 * (20 - 1 + 2 * 7))
        found = found["sdpa"]
        assert found["ratio"] > 0 and not found["out_of_memory"]
    if part not in ("peak", "generate_batch"):
        assert found["fraction_of_limit"] > 0 and found["model_flops"] > 0


def test_the_flops_are_those_that_torch_counts():
    """Of a plain forward pass over 16 tokens, where a query sees i + 1 keys on average."""
    from torch.utils.flop_counter import FlopCounterMode

    model = gpu.make_model("Qwen2ForCausalLM", gpu.TINY)
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(input_ids=torch.arange(16)[None])
    # eager attention computes the masked half, too
    assert counter.get_total_flops() == gpu.flops(gpu.TINY, 16, 16 * 16, 16)
    assert gpu.tree_seen(3, [(3, 2), (3, 1)]) == (1 + 2 + 3) + (4 + 5) + 4


def test_sides_that_share_weights_train_adapters_of_their_own():
    base = gpu.make_model("Qwen2ForCausalLM", gpu.TINY)
    first, second = gpu.sharing(base), gpu.sharing(base, "eager")
    assert first.model.layers[0].mlp.up_proj.weight is base.model.layers[0].mlp.up_proj.weight
    assert first.model.layers[0].mlp is not second.model.layers[0].mlp
    assert (first.config._attn_implementation, second.config._attn_implementation) == (
        "sdpa",
        "eager",
    )


def test_without_cuda_the_gpu_script_says_so(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device here; --tiny"):
        gpu.main()
    script = ROOT / "benchmarks/gpu.sh"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", script], check=True)


def test_a_part_that_fails_keeps_what_it_had_and_the_others_run(tmp_path, monkeypatch):
    def child(command, **options):
        assert command[1:4] == ["-m", "benchmarks.gpu", "--part"]
        path = Path(command[5])
        if path.stem == "peak":
            path.write_text('{"tflops": 5}')
            return subprocess.CompletedProcess(command, 1, stderr="...\nRuntimeError: no")
        return subprocess.CompletedProcess(command, 0, stderr="")

    monkeypatch.setattr(gpu, "machine", dict)
    monkeypatch.setattr(gpu.subprocess, "run", child)
    gpu.run_all(["peak", "dpo"], True, 1, tmp_path)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["peak"]["status"] == "failed: RuntimeError: no" and found["peak"]["tflops"] == 5
    assert found["dpo"]["status"] == "done"


# ---- one command, and the documents ------------------------------------------------------------


def test_one_command_runs_every_script_and_tiny_never_replaces_a_number(tmp_path, monkeypatch):
    for curves, scripts in ((False, __main__.SCRIPTS), (True, __main__.WITH_CURVES)):
        made = __main__.commands(
            __main__.SCRIPTS, curves=curves, rounds=2, tiny=True, results=tmp_path
        )
        assert tuple(made) == scripts
        for script, command in made.items():
            assert (ROOT / "benchmarks" / f"{script}.py").exists()
            assert command[1:3] == ["-m", f"benchmarks.{script}"]
            assert {"--tiny", "--rounds", "--results"} <= set(command)
            assert ("--curves" in command) == curves
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--tiny"])
    with pytest.raises(SystemExit, match="give --results another folder"):
        __main__.main()


def test_the_tables_of_the_readme_are_those_of_the_committed_json():
    text = summary.README.read_text(encoding="utf-8")
    assert summary.put_into(text, summary.render(RESULTS)) == text, (
        "run `uv run python -m benchmarks.summary`"
    )


def test_the_readme_of_the_benchmarks_names_every_script():
    text = summary.README.read_text(encoding="utf-8")
    names = {path.stem for path in (ROOT / "benchmarks").glob("[a-z]*.py")} - {"summary"}
    assert not {name for name in names if f"`{name}`" not in text}


def made_up(tmp_path: Path) -> Path:
    """JSON as the scripts write it, with numbers of our own."""

    def shape(name: str, ratio: float, **other: Any) -> dict[str, Any]:
        return {"name": name, "ratio": ratio, "cpu_ratio": ratio, "median_seconds": {"ours": 2.0},
                **other}  # fmt: skip

    on = {
        "machine": {"cores": 2, "processor": "x", "load_before": 0.1, "libraries": {"torch": "2"}}
    }
    curves = [
        shape(f"pairs_{n}", n, pairs=n, prompt_tokens=800, tokens={"ours": 1, "trl": 2 * n})
        for n in (1, 5, 2)
    ]
    curves += [shape("prompt_100", 1.5, pairs=5, prompt_tokens=100, tokens={"ours": 1, "trl": 2})]
    main = shape("30m_800_150", 2.5, pairs=5, prompt_tokens=800, tokens={"ours": 1, "trl": 4})
    files = {
        "dpo_step": {"date": "2026-01-01", **on, "shapes": [main]},
        "curves_dpo_step": {"date": "2026-01-01", **on, "shapes": curves},
        "row_stage": {
            "date": "2026-01-01", **on,
            "time": {"a": {"microseconds_a_row": 59.0, "cpu_microseconds_a_row": 50.0,
                           "datasets_map": {"rows": {"microseconds_a_row": 70.0},
                                            "batched": {"microseconds_a_row": 65.0}}}},
            "memory": {"megabytes": {"a": {"100000": 90.0, "1000000": 301.0}}},
        },
        "gpu": {"date": "2026-01-01", **on, "device": "H",
                "dpo": {"status": "stopped early", "flex": {"ratio": 3.5}, "sdpa": {
                    "ratio": 3.0, "median_seconds": {"ours": 0.5, "trl_one_batch": 1.5},
                    "peak_gib": {"ours": 10.0, "trl_one_batch": 40.0},
                    "model_flops_utilisation": 0.25}},
                "sampling_bf16": {"status": "done", "all": {"seconds": 119.6}}},
        "autoj_reward": {
            "date": "2026-01-01", **on, "pairs": 1000, "ties": 100, "folds": 5,
            "differences": {f"{way} - trl": {"value": -0.01, "interval": [-0.03, 0.02]}
                            for way in ("ours_drop", "ours_half")},
            **{way: {
                "accuracy": 0.6, "interval": [0.5, 0.7], "ece": 0.05, "longer_is_right": 0.7,
                "mean_abs_margin_of_ties": 0.1, "mean_abs_margin_of_others": 0.2,
            } for way in summary.REAL_PAIRS},
        },
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def test_a_number_is_shown_with_whether_it_was_reached(tmp_path):
    text = summary.render(made_up(tmp_path))
    lines = {line.split(" | ")[0]: line for line in text.split("\n")}
    first = lines["| DPO step, 800-token prompt, 5 pairs of 150-token completions"]
    assert first.endswith("| ≥ 3x | 2.50x | **no** |")
    assert "| ≥ 3.2x | 3.50x | yes |" in text, "the better attention counts"
    assert "| ≤ 120 s | 120 s | yes |" in text
    assert "| ≤ 60 us | 59.00 us | yes |" in text and "| ≤ 300 MB | 301 MB | **no** |" in text
    assert "| a | 59 | 50 | 65 | 90 | 301 |" in text
    assert "not measured" in lines["| reward-model step, 800 + 2 x 150 (limit by tokens: 1.7x)"]
    assert "| dpo_step | 30m_800_150 | 2.000 | 5.000 | 2.50x | 2.50x | 4.00x |" in text
    assert "`trl.DPOTrainer` | 0.500 | 1.500 | 3.00x | 10.0 / 40.0 | 0.25 |" in text
    assert "Not whole: dpo (stopped early)." in text
    assert "pairs_5" not in text, "a point of a curve"
    assert (
        "| ours, ties as halves | 0.600 | 0.500 to 0.700 | -0.010 (-0.030 to 0.020) | "
        "0.050 | 0.10 | 0.20 |" in text
    )
    assert summary.render(tmp_path / "nothing").count("not measured") == len(summary.LINES)


def test_curves_are_in_order_share_their_middle_and_become_a_png(tmp_path):
    shapes = json.loads((made_up(tmp_path) / "curves_dpo_step.json").read_text())["shapes"]
    pairs = summary.curve("dpo_step", shapes, "pairs", "pairs_")
    assert pairs == [(1, 1, 2), (2, 2, 4), (5, 5, 10)]
    prompt = summary.curve("dpo_step", shapes, "prompt_tokens", "prompt_")
    assert prompt == [(100, 1.5, 2), (800, 5, 10)]
    (path,) = summary.draw(tmp_path)
    assert path.name == "curves_dpo_step.png" and path.read_bytes()[:4] == b"\x89PNG"


def test_the_curves_cover_the_stated_ranges():
    samples = {s.samples for s in sampling.CURVES if s.name.startswith("samples_")}
    pairs = {s.pairs for s in dpo_step.CURVES if s.name.startswith("pairs_")}
    assert {1, 8, 32} <= samples and {1, 5, 8} <= pairs
    for curves in (sampling.CURVES, dpo_step.CURVES):
        assert {100, 800, 3200} <= {s.prompt_tokens for s in curves}
        names = [s.name for s in curves]
        assert len(set(names)) == len(names)


def test_a_knockout_has_each_response_but_one_lose_once_and_all_pairs_are_all():
    played = list(itertools.chain(*ab_scoring.KNOCKOUT))
    assert sorted(loser for _, loser in played) == list(range(1, 8))
    assert len(ab_scoring.ALL_PAIRS[0]) == 28


def test_recall_and_reciprocal_rank_by_hand():
    hits = [["a", "b", "c"], ["x", "b", "c"], ["x", "y", "c"], ["x", "y", "z"]]
    assert retrieval.measure(hits, ["a", "b", "c", "d"]) == {
        "recall_at_1": 1 / 4,
        "recall_at_5": 3 / 4,
        "mrr_at_10": round((1 + 1 / 2 + 1 / 3 + 0) / 4, 4),
    }


def rag_pair(id: str) -> RagPair:
    parts: Any = {
        "score": 0.5, "grounding": 0.5, "keyword_coverage": 0.0, "length_penalty": 0.0,
        "is_abstention": False, "judge_score": None,
    }  # fmt: skip
    return RagPair(
        id=id, prompt="[Context]\nIt is so.\n\n[Question]\nIs it?", chosen="good", rejected="bad",
        margin=0.1, question="Is it?", document_ids=["d"], retrieval_scores=[0.5],
        abstention_worth=0.2, is_answerable=True, keywords=[], scorer="heuristic",
        chosen_parts=parts, rejected_parts=parts, chosen_sample=0, rejected_sample=1,
        candidate_seeds=[], candidates=None,
    )  # fmt: skip


def test_a_readers_marks_are_counted_by_which_side_was_chosen():
    rows = [rag_pair(f"q{k}") for k in range(20)]
    a, b = ([p for p in rows if real_rag.chosen_side(p) == side] for side in "AB")
    assert a and b
    assert real_rag.sides(a[0]) == {"A": "good", "B": "bad"}
    assert real_rag.sides(b[0]) == {"A": "bad", "B": "good"}
    marks = {a[0].id: "A", b[0].id: "B", a[1].id: "B", b[1].id: "T"}
    found = real_rag.result(rows, marks)
    assert [found[k] for k in ("pairs", "marked", "agrees", "disagrees", "neither")] == [
        20,
        4,
        2,
        1,
        1,
    ]
    assert found["agreement_of_decided"] == pytest.approx(2 / 3)
    assert found["agreement_of_all"] == 0.5
    assert found["interval_95_of_all"] == pytest.approx([0.15, 0.85], abs=0.001)
    shown = real_rag.blind(rows[:1])
    assert "chosen" not in shown and shown.index("A:") < shown.index("B:")
