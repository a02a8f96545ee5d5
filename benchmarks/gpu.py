"""The local engine, the trainers and A/B scoring on CUDA, with 7B shapes and random weights.

    benchmarks/gpu.sh [folder]         # in one call of at most nine minutes; nothing is downloaded

Parts, each in a process of its own with a time limit, the most wanted first; what a part has measured
when it ends or is stopped is kept:

peak           bf16 matrix products (TFLOP/s) and device copies (GB/s): the limits below are of these
sampling_bf16  500 prompts of 512 tokens, 4 samples of 256 tokens each, Mistral-7B; then 32 of these
               prompts, ours and generate(num_return_sequences=4) in turn
dpo            a step on 5 pairs of one prompt, 800 + 10 x 150, Qwen2-7B, LoRA on all linear layers:
               ours with FlexAttention and with SDPA, TRL in one batch and accumulated
reward         a step on 2 pairs, 800 + 2 x 150 each, otherwise the same
ab_scoring     8 responses, all 28 pairs in both orders, 800 + 2 x 150, Qwen2-7B
sampling_4bit  the 500 prompts again, weights in NF4 (bitsandbytes, double quantisation)
generate_batch transformers' continuous batching on 32 of the prompts, each given 4 times

Weights are random, bf16, made on the device; every text has its full length. seconds_at_limit is what
the work would take if only FLOPs (prefill, training, scoring) or bytes (a decoding step: the weights
once, each prompt's keys and values once, each sample's own) counted, at the measured peaks;
fraction_of_limit is that over the measured time, model_flops_utilisation the model's FLOPs over time
and peak. FLOPs: 2 a weight and token, 4 a pair of query and key and head dimension; backward once
more for the activations (the base is frozen). peak_gib is beyond what lay there before (weights).
--tiny runs the same code in small shapes, on a CPU too, where it measures nothing.
"""

import argparse
import contextlib
import copy
import importlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import RESULTS, alternate, line_of, machine, ratios, write_results
from benchmarks import sampling as cpu_sampling
from prefpipe.llm.local.runner import Runner

MISTRAL = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": False,
}
QWEN = {
    "vocab_size": 152_064,
    "hidden_size": 3584,
    "intermediate_size": 18_944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": False,
}
TINY = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Work:
    """The sizes of all parts."""

    sampler: dict[str, Any]
    judge: dict[str, Any]
    queries: int
    beside: int
    """Prompts that the peers get, too."""
    samples: int
    prompt_tokens: int
    new_tokens: int
    context_tokens: int
    completion_tokens: int
    pairs: int
    rounds: int
    matrix: int
    copied: int
    """Bytes."""


FULL = Work(MISTRAL, QWEN, 500, 32, 4, 512, 256, 800, 150, 5, 5, 8192, 4 << 30)
SMALL = Work(TINY, TINY, 4, 2, 2, 12, 4, 20, 6, 2, 1, 64, 1 << 16)

SECONDS = {
    "peak": 60,
    "sampling_bf16": 180,
    "dpo": 150,
    "reward": 90,
    "ab_scoring": 90,
    "sampling_4bit": 150,
    "generate_batch": 120,
}
"""The most each part may take; less where less is left of all of it."""

Results = dict[str, Any]


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def gib_beyond(run: Callable[[], Any]) -> float:
    """The most device memory that a call takes beyond what is allocated before it."""
    if not torch.cuda.is_available():
        run()
        return 0.0
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    wait()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def make_model(kind: str, shape: dict[str, Any], **options: Any) -> Any:
    """Random weights in bf16, made on the device. kind: a model class of transformers."""
    import transformers

    torch.manual_seed(0)
    model_class: Any = getattr(transformers, kind)
    config = model_class.config_class(
        **shape, attn_implementation="sdpa", eos_token_id=0, bos_token_id=None, **options
    )
    with torch.device(device()):
        return model_class._from_config(config, dtype=torch.bfloat16).eval()


# ---- what the device could do ------------------------------------------------------------------


def linear_weights(shape: dict[str, Any]) -> int:
    """Weights of the layers' matrices, which each token meets once."""
    hidden, heads = shape["hidden_size"], shape["num_attention_heads"]
    size = hidden // heads
    attention = hidden * size * (2 * heads + 2 * shape["num_key_value_heads"])
    return shape["num_hidden_layers"] * (attention + 3 * hidden * shape["intermediate_size"])


def flops(shape: dict[str, Any], tokens: int, seen: int, logits: int) -> int:
    """FLOPs of a forward pass. seen: keys that the queries see, summed; logits: positions with logits."""
    return (
        2 * linear_weights(shape) * tokens
        + 4 * shape["num_hidden_layers"] * shape["hidden_size"] * seen
        + 2 * shape["hidden_size"] * shape["vocab_size"] * logits
    )


def bytes_a_position(shape: dict[str, Any]) -> int:
    """Keys and values of one position, bf16."""
    size = shape["hidden_size"] // shape["num_attention_heads"]
    return 2 * 2 * shape["num_hidden_layers"] * shape["num_key_value_heads"] * size


def tree_seen(context: int, branches: list[tuple[int, int]]) -> int:
    """Keys seen in a context and branches behind it; a branch: (tokens in front of it, its own)."""
    own = sum(before * length + length * (length + 1) // 2 for before, length in branches)
    return context * (context + 1) // 2 + own


def limits(work_flops: float, seconds: float, peak: Results) -> Results:
    """Where FLOPs are the limit."""
    at_limit = work_flops / (peak["tflops"] * 1e12)
    return {
        "model_flops": work_flops,
        "seconds_at_limit": at_limit,
        "fraction_of_limit": at_limit / seconds,
        "model_flops_utilisation": at_limit / seconds,
    }


def sampling_limits(
    work: Work, passes: int, weight_bytes: int, seconds: float, peak: Results
) -> Results:
    """passes: forward passes that were made, each of which reads the weights."""
    P, T, texts = work.prompt_tokens, work.new_tokens, work.queries * work.samples
    shape = work.sampler
    prefill = flops(shape, work.queries * P, work.queries * P * (P + 1) // 2, work.queries)
    own = T * (T - 1) // 2
    decode = flops(shape, texts * (T - 1), texts * ((T - 1) * P + own), texts * (T - 1))
    moved = passes * weight_bytes
    moved += bytes_a_position(shape) * (work.queries * P * (T - 1) + texts * own)
    flop_rate, byte_rate = peak["tflops"] * 1e12, peak["gb_per_second"] * 1e9
    at_limit = prefill / flop_rate + max(decode / flop_rate, moved / byte_rate)
    return {
        "model_flops": prefill + decode,
        "bytes_in_decoding": moved,
        "forward_passes": passes,
        "seconds_at_limit": at_limit,
        "fraction_of_limit": at_limit / seconds,
        "model_flops_utilisation": (prefill + decode) / flop_rate / seconds,
    }


def part_peak(work: Work, peak: Results) -> Iterator[Results]:
    n, where = work.matrix, device()
    a, b = (torch.randn(n, n, device=where, dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(work.copied // 2, dtype=torch.bfloat16, device=where).fill_(1)
    target = torch.empty_like(source)
    found = alternate(
        {
            "products": lambda: [a @ b for _ in range(10)],
            "copies": lambda: [target.copy_(source) for _ in range(10)],
        },
        5,
        finish=wait,
    )["median_seconds"]
    yield {
        "tflops": 10 * 2 * n**3 / found["products"] / 1e12,
        "gb_per_second": 10 * 2 * work.copied / found["copies"] / 1e9,  # read and written
        "matrix": n,
        "copied_bytes": work.copied,
        "gib": torch.cuda.get_device_properties(0).total_memory / 2**30
        if torch.cuda.is_available()
        else 0.0,
    }


# ---- sampling ----------------------------------------------------------------------------------


def sampling_shape(work: Work, prompts: int) -> cpu_sampling.Shape:
    return cpu_sampling.Shape(
        "7b", work.sampler, work.prompt_tokens, work.new_tokens, work.samples, prompts
    )


@contextlib.contextmanager
def counting() -> Iterator[list[int]]:
    """Tokens of each forward pass of a sampling run. By the engine's calls: no hook sees a graph."""
    passes: list[int] = []
    engine: Any = Runner
    before = engine.prefill, engine.decode

    def prefill(self: Runner, prompts: Any, first_slot: int) -> Any:
        passes.append(sum(map(len, prompts)))  # these prompts share nothing
        return before[0](self, prompts, first_slot)

    def decode(self: Runner, tokens: Any, *numbers: Any) -> Any:
        passes.append(len(tokens))
        return before[1](self, tokens, *numbers)

    engine.prefill, engine.decode = prefill, decode
    try:
        yield passes
    finally:
        engine.prefill, engine.decode = before


def all_queries(work: Work, model: Any, weight_bytes: int, peak: Results) -> Results:
    """Ours on all of the prompts, once: it takes a minute or so, and a smaller run warmed it up."""
    shape = sampling_shape(work, work.queries)
    cpu_sampling.make_sides(replace(shape, prompts=work.beside, new_tokens=4), model)["ours"]()
    run = cpu_sampling.checked(
        "ours", cpu_sampling.make_sides(shape, model)["ours"], work.queries * work.samples * work.new_tokens
    )  # fmt: skip
    with counting() as passes:
        wait()
        started = time.perf_counter()
        memory = gib_beyond(run)
        seconds = time.perf_counter() - started
    new_tokens = work.queries * work.samples * work.new_tokens
    whole = work.queries * work.prompt_tokens + new_tokens
    print(f"{work.queries} x {work.samples} x {work.new_tokens}: {seconds:.1f} s", flush=True)
    return {
        "queries": work.queries,
        "samples": work.samples,
        "prompt_tokens": work.prompt_tokens,
        "new_tokens": work.new_tokens,
        "seconds": seconds,
        "tokens_per_second": new_tokens / seconds,
        "tokens_through_model": sum(passes) / whole,
        "weight_gib": weight_bytes / 2**30,
        "peak_gib": memory,
        **sampling_limits(work, len(passes), weight_bytes, seconds, peak),
    }


def read_weights(model: Any) -> int:
    """Bytes of the weights that a decoding step reads: all but the input embedding."""
    embedding = model.get_input_embeddings().weight
    return sum(p.numel() * p.itemsize for p in model.parameters() if p is not embedding)


def part_sampling_bf16(work: Work, peak: Results) -> Iterator[Results]:
    model = make_model("MistralForCausalLM", work.sampler, sliding_window=None)
    shape = sampling_shape(work, work.beside)
    functions = cpu_sampling.make_sides(shape, model)
    names = ("ours", "num_return_sequences")
    sides = {
        name: cpu_sampling.checked(
            name, functions[name], shape.prompts * shape.samples * shape.new_tokens
        )
        for name in names
    }
    memory: dict[str, float] = {}
    first = {
        name: lambda name=name, side=side: memory.update({name: gib_beyond(side)})
        for name, side in sides.items()
    }
    measured = alternate(sides, min(3, work.rounds), warm_up=first, finish=wait)
    found = ratios(measured, "ours", names[1:])
    print(line_of("sampling", measured, found), flush=True)
    yield {"beside": {"prompts": work.beside, **measured, **found, "peak_gib": memory}}
    yield {"all": all_queries(work, model, read_weights(model), peak)}


def to_4bit(model: Any) -> None:
    """The layers' matrices as NF4 with double quantisation, computing in bf16, as loading.py has it.

    The weights are quantised where they are, on the device.
    """
    import bitsandbytes.nn

    nn: Any = bitsandbytes.nn
    for module in list(model.get_decoder().modules()):
        for name, child in list(module.named_children()):
            if not isinstance(child, torch.nn.Linear):
                continue
            made = nn.Linear4bit(
                child.in_features,
                child.out_features,
                bias=child.bias is not None,
                compute_dtype=torch.bfloat16,
                compress_statistics=True,
                quant_type="nf4",
                device="meta",
            )
            made.weight = nn.Params4bit(
                child.weight.data,
                requires_grad=False,
                compress_statistics=True,
                quant_type="nf4",
            ).to(child.weight.device)
            if child.bias is not None:
                made.bias = torch.nn.Parameter(child.bias.data, requires_grad=False)
            setattr(module, name, made)


def part_sampling_4bit(work: Work, peak: Results) -> Iterator[Results]:
    model = make_model("MistralForCausalLM", work.sampler, sliding_window=None)
    to_4bit(model)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    yield {"all": all_queries(work, model, read_weights(model), peak)}


def part_generate_batch(work: Work, peak: Results) -> Iterator[Results]:
    model = make_model("MistralForCausalLM", work.sampler, sliding_window=None)
    shape = sampling_shape(work, work.beside)
    functions = cpu_sampling.make_sides(shape, model)
    sides = {name: functions[name] for name in ("ours", "generate_batch")}
    measured = alternate(sides, 1, finish=wait)
    found = ratios(measured, "ours", ("generate_batch",))
    print(line_of("generate_batch", measured, found), flush=True)
    yield {"prompts": work.beside, **measured, **found}


# ---- training ----------------------------------------------------------------------------------


def sharing(base: Any, attention: str = "sdpa") -> Any:
    """A model of its own on the same frozen weights: four sides in the memory of one."""
    same = {id(x): x for x in itertools.chain(base.parameters(), base.buffers())}
    model = copy.deepcopy(base, same)
    model.set_attn_implementation(attention)
    return model


def part_training(
    work: Work, peak: Results, script: Any, kind: str, pairs: int, prompts: int, **options: Any
) -> Iterator[Results]:
    """script: benchmarks.dpo_step or reward_step; pairs: of all prompts together."""
    from peft import LoraConfig

    from benchmarks.dpo_step import noting
    from prefpipe.training.dpo import hash_of_weights

    shape = script.Shape("7b", work.judge, work.context_tokens, work.completion_tokens, pairs)
    task: Any = "SEQ_CLS" if "num_labels" in options else "CAUSAL_LM"
    adapter = LoraConfig(r=16, target_modules="all-linear", task_type=task)
    changes = {"bf16": True, "use_cpu": not torch.cuda.is_available(), "peft_config": adapter}
    base = make_model(kind, work.judge, **options)
    P, C = work.context_tokens, work.completion_tokens
    branch = C + 1 if "num_labels" in options else C
    branches = [(P - 1, branch)] * (2 * pairs // prompts)
    tokens = prompts * (P - 1 + len(branches) * branch)
    logits = 0 if "num_labels" in options else len(branches) * branch
    # forward, and backward for the activations
    work_flops = 2 * flops(work.judge, tokens, prompts * tree_seen(P - 1, branches), logits)
    losses: dict[str, list[float]] = {}
    # TRL's hash of a model takes most of a minute of a part's time, before the first step
    trl_dpo: Any = importlib.import_module("trl.trainer.dpo_trainer")
    trl_dpo.hash_module = hash_of_weights
    with tempfile.TemporaryDirectory() as folder:
        steps = script.make_steps(shape, folder, lambda: sharing(base), **changes)
        sides = noting(steps, losses)
        memory, too_large = {}, []
        for name in list(sides):
            try:
                sides[name]()
                memory[name] = gib_beyond(sides[name])
            except torch.OutOfMemoryError:
                too_large.append(name)
                del sides[name]
        names = ("ours_flex", *script.WAYS)

        def result(measured: Results, ours: str) -> Results:
            ways = [way for way in names[1:] if way in sides]
            found = ratios(measured, ours, ways)
            print(line_of(f"{kind} {ours}", measured, found), flush=True)
            seconds = measured["median_seconds"][ours]
            return {
                **measured,
                **found,
                "out_of_memory": too_large,
                "losses": losses,
                "peak_gib": memory,
                "tokens_per_second": tokens / seconds,
                **limits(work_flops, seconds, peak),
            }

        yield {"pairs": pairs, "prompts": prompts, "tokens": tokens}
        ways = [way for way in script.WAYS if way in sides]
        yield {"sdpa": result(alternate(sides, work.rounds, ways=ways, finish=wait), "ours")}
        if not torch.cuda.is_available():
            return  # FlexAttention has no backward pass on a CPU
        more = script.make_steps(
            shape, folder, lambda: sharing(base, "flex_attention"), ["ours"], **changes
        )
        sides["ours_flex"] = noting({"ours_flex": more["ours"]}, losses)["ours_flex"]
        sides["ours_flex"]()  # compiled
        memory["ours_flex"] = gib_beyond(sides["ours_flex"])
        yield {"flex": result(alternate(sides, work.rounds, ways=ways, finish=wait), "ours_flex")}


def part_dpo(work: Work, peak: Results) -> Iterator[Results]:
    from benchmarks import dpo_step

    return part_training(work, peak, dpo_step, "Qwen2ForCausalLM", work.pairs, 1)


def part_reward(work: Work, peak: Results) -> Iterator[Results]:
    from benchmarks import reward_step

    kind = "Qwen2ForSequenceClassification"
    return part_training(work, peak, reward_step, kind, 2, 2, num_labels=1, pad_token_id=0)


# ---- scoring -----------------------------------------------------------------------------------


def part_ab_scoring(work: Work, peak: Results) -> Iterator[Results]:
    from benchmarks import ab_scoring

    model = make_model("Qwen2ForCausalLM", work.judge)
    shape = ab_scoring.Shape(
        "7b_all_pairs",
        work.judge,
        work.context_tokens,
        work.completion_tokens,
        ab_scoring.ALL_PAIRS,
    )
    measured = ab_scoring.measure(shape, work.rounds, model, wait)
    C, R = work.context_tokens, work.completion_tokens
    first = [(C, R)] * ab_scoring.RESPONSES
    second = [(C + R, R)] * (2 * measured["comparisons"])
    orders = 2 * measured["comparisons"]
    work_flops = flops(
        work.judge, C + R * (len(first) + len(second)), tree_seen(C, first + second), orders
    )
    seconds = measured["median_seconds"]["ours"]
    yield {
        **{name: value for name, value in measured.items() if name != "passes"},
        "orders_per_second": orders / seconds,
        **limits(work_flops, seconds, peak),
    }


PARTS: dict[str, Callable[[Work, Results], Iterator[Results]]] = {
    "peak": part_peak,
    "sampling_bf16": part_sampling_bf16,
    "dpo": part_dpo,
    "reward": part_reward,
    "ab_scoring": part_ab_scoring,
    "sampling_4bit": part_sampling_4bit,
    "generate_batch": part_generate_batch,
}


# ---- one part, and all of them -----------------------------------------------------------------


def run_part(name: str, work: Work, path: Path) -> None:
    """In this process; path: of its results so far, rewritten after each of them."""
    from transformers import logging

    os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)
    peak_path = path.with_name("peak.json")
    peak: Results = {}
    if name != "peak":
        known = peak_path.exists()
        peak = json.loads(peak_path.read_text()) if known else next(part_peak(work, {}))
    results: Results = {}
    for more in PARTS[name](work, peak):
        results |= more
        path.write_text(json.dumps(results))


def run_all(parts: list[str], tiny: bool, minutes: float, folder: Path) -> None:
    """Each part in a child process; <folder>/gpu.json after each of them."""
    ends = time.monotonic() + 60 * minutes
    found: Results = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in parts:
            path = Path(temporary) / f"{name}.json"
            seconds = min(SECONDS[name], ends - time.monotonic())
            command = [sys.executable, "-m", "benchmarks.gpu", "--part", name, str(path)]
            started = time.monotonic()
            if seconds < 10:
                found[name] = {"status": "not begun: no time was left"}
                continue
            try:
                done = subprocess.run(
                    [*command, *(["--tiny"] if tiny else [])],
                    stderr=subprocess.PIPE,
                    text=True,
                    timeout=seconds,
                )
                error = done.stderr.strip().rsplit("\n", 1)[-1] if done.returncode else ""
                if done.returncode:
                    print(done.stderr[-3000:], file=sys.stderr)
                status = f"failed: {error}" if done.returncode else "done"
            except subprocess.TimeoutExpired:
                status = f"stopped after {seconds:.0f} seconds"
            results = json.loads(path.read_text()) if path.exists() else {}
            took = round(time.monotonic() - started, 1)
            found[name] = {"status": status, "part_seconds": took, **results}
            print(f"{name}: {status}, {took} s", flush=True)
            name_of = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
            everything = {"machine": machine(), "device": name_of, "tiny": tiny, **found}
            write_results("gpu", everything, folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of gpu.json")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=8.5, help="for all parts together")
    parser.add_argument("--tiny", action="store_true", help="small shapes, on a CPU too")
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; --tiny shows on a CPU that the script runs")
    if args.part:
        run_part(args.part[0], SMALL if args.tiny else FULL, Path(args.part[1]))
    else:
        run_all(args.parts, args.tiny, args.minutes, args.results)


if __name__ == "__main__":
    main()
