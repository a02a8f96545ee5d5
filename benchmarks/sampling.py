"""n samples of each of four prompts: the local engine against transformers' own generate.

    uv run python -m benchmarks.sampling                        # the shapes, on this machine's CPU
    uv run python -m benchmarks.sampling --curves               # instead: over n, over prompt lengths
    uv run python -m benchmarks.generate_batch                  # against continuous batching

The sides alternate within one process on the same weights (random, float32), all prompts of a shape
at once, after a run of each that does not count: of one prompt, 8 new tokens. generate is used in both
of its ways: with num_return_sequences=n, and n runs of it on the batch (the faster of the two medians
counts; a way that turns out slower is not run again). All texts have the same number of tokens,
temperature 1, top-k 50, top-p 0.95, no end before the last. Ours includes rendering and tokenizing the
prompts and decoding the texts, the others do not.
tokens_through_model is what a hook on the embeddings counts, over P + n T a prompt. The curves' model
has two of the eight layers.
Not measured: loading; texts of unequal lengths (ours gains more: an ended sample costs nothing).
Writes benchmarks/results/sampling.json, or curves_sampling.json; each ratio is of median wall times, generate's / ours.
"""

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import tokenizers
import tokenizers.models
import tokenizers.pre_tokenizers
import torch
from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    logging,
)

from benchmarks import alternate, line_of, machine, make_parser, ratios, write_results
from prefpipe import chat
from prefpipe.llm import Failure, Request
from prefpipe.llm.local.local_engine import LocalEngine
from prefpipe.rows import Message

SMALL = {
    "vocab_size": 8000,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
"""28 million parameters."""

TWO_LAYERS = {**SMALL, "num_hidden_layers": 2}
"""The same width, for the curves: a quarter of the time."""

EMBEDDED = {**SMALL, "vocab_size": 2048, "hidden_size": 128, "intermediate_size": 384}
EMBEDDED |= {"num_hidden_layers": 4, "num_attention_heads": 4}
"""The embedded model's shape."""


WAYS = ("num_return_sequences", "runs_of_generate")

TEXTS_AT_ONCE = 4
"""Of generate_batch on a CPU, where it takes the least time: 4 or 6 at once 32 s, 8 35, 16 45, all 32
54, 2 at once 48 (the first shape; 1,024 to 4,096 tokens a batch make no difference)."""


@dataclass(frozen=True)
class Shape:
    name: str
    model: dict[str, Any]
    prompt_tokens: int
    new_tokens: int
    samples: int
    prompts: int = 4
    ways: tuple[str, ...] = WAYS
    """Of generate. With more new tokens n runs only fall further behind: each runs all the steps."""


SHAPES = [
    Shape("30m_800_64", SMALL, 800, 64, 8),
    Shape("30m_800_150", SMALL, 800, 150, 8, ways=WAYS[:1]),  # at 64 already 1.3 times the other
    Shape("30m_200_50", SMALL, 200, 50, 8),
    Shape("embedded_180_60", EMBEDDED, 180, 60, 8, prompts=16),
]
CURVES = [Shape(f"samples_{n}", TWO_LAYERS, 800, 64, n, prompts=2) for n in (1, 2, 4, 8, 16, 32)]
CURVES += [Shape(f"prompt_{p}", TWO_LAYERS, p, 64, 8, prompts=2) for p in (100, 400, 1600, 3200)]
TINY = replace(SHAPES[-1], name="tiny", prompt_tokens=12, new_tokens=3, samples=2, prompts=2)

SETTINGS = {"temperature": 1.0, "top_k": 50, "top_p": 0.95}


def make_model(shape: Shape) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**shape.model, eos_token_id=0, bos_token_id=None)).eval()


def make_tokenizer(shape: Shape) -> PreTrainedTokenizerFast:
    """A word a token; a rendered prompt has two tokens more than its turn has words."""
    words = ["</s>", "<turn>", *(f"w{i}" for i in range(shape.model["vocab_size"] - 2))]
    core = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="</s>")
    )
    core.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", pad_token="</s>")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}<turn> {{ m.content }} <turn> "
        "{% else %}{{ m.content }} </s>{% endif %}{% endfor %}"
    )
    return tokenizer


def make_requests(shape: Shape) -> list[Request]:
    rng = random.Random(0)
    words = range(shape.model["vocab_size"] - 2)

    def text() -> str:
        return " ".join(f"w{rng.choice(words)}" for _ in range(shape.prompt_tokens - 2))

    return [
        Request(
            id=str(i),
            messages=(Message(role="user", content=text()),),
            samples=tuple(range(shape.samples)),
            max_new_tokens=shape.new_tokens,
            min_new_tokens=shape.new_tokens,
            **SETTINGS,
        )
        for i in range(shape.prompts)
    ]


def make_sides(shape: Shape, model: Any) -> dict[str, Callable[[], int]]:
    """What each side does in a round; returns the number of new tokens. model: a causal LM."""
    tokenizer, requests = make_tokenizer(shape), make_requests(shape)
    engine = LocalEngine(model, tokenizer)
    rows = [chat.prompt_ids(tokenizer, r.messages) for r in requests]
    ids = torch.tensor(rows, device=model.device)
    assert ids.shape == (shape.prompts, shape.prompt_tokens)
    options = {
        "attention_mask": torch.ones_like(ids),
        "do_sample": True,
        "max_new_tokens": shape.new_tokens,
        "min_new_tokens": shape.new_tokens,
        "pad_token_id": 0,
        **SETTINGS,
    }

    def ours() -> int:
        results = engine.generate(requests)
        return sum(c.new_tokens for r in results if not isinstance(r, Failure) for c in r)

    def num_return_sequences() -> int:
        out = model.generate(ids, num_return_sequences=shape.samples, **options)
        return out[:, shape.prompt_tokens :].numel()

    def runs_of_generate() -> int:
        outs = [model.generate(ids, **options) for _ in range(shape.samples)]
        return sum(out[:, shape.prompt_tokens :].numel() for out in outs)

    batching = ContinuousBatchingConfig()
    if model.device.type == "cpu":
        # left to itself it takes for its cache and masks what memory is free, and touches all of it
        tokens = TEXTS_AT_ONCE * (shape.prompt_tokens + shape.new_tokens)
        blocks = tokens // batching.page_size + TEXTS_AT_ONCE + 1
        batching = ContinuousBatchingConfig(num_blocks=blocks, max_batch_tokens=2048)

    def generate_batch() -> int:
        config = GenerationConfig(
            max_new_tokens=shape.new_tokens,
            do_sample=True,
            eos_token_id=-1,
            pad_token_id=0,
            **SETTINGS,
        )
        outs = model.generate_batch(
            [row for row in rows for _ in range(shape.samples)],
            generation_config=config,
            continuous_batching_config=batching,
        )
        return sum(len(out.generated_tokens) for out in outs.values())

    functions = [ours, num_return_sequences, runs_of_generate, generate_batch]
    return {function.__name__: function for function in functions}


def checked(name: str, run: Callable[[], int], tokens: int) -> Callable[[], None]:
    """The side, ended with a sentence where it made another number of tokens."""

    def side() -> None:
        if (made := run()) != tokens:
            raise SystemExit(f"{name} made {made} tokens, {tokens} were asked for")

    return side


def count_tokens(model: PreTrainedModel, run: Callable[[], Any]) -> int:
    """Tokens that go through the model in a run."""
    calls: list[int] = []
    hook = model.get_input_embeddings().register_forward_hook(
        lambda module, args, output: calls.append(args[0].numel())
    )
    run()
    hook.remove()
    return sum(calls)


def measure(shape: Shape, rounds: int, peers: tuple[str, ...] = ()) -> dict[str, Any]:
    """Seconds a round of ours and of the peers (none: the shape's ways), the ratio of their medians."""
    peers = peers or shape.ways
    model = make_model(shape)
    functions = make_sides(shape, model)
    new_tokens = shape.prompts * shape.samples * shape.new_tokens
    tokens = count_tokens(model, functions["ours"])
    sides = {name: checked(name, functions[name], new_tokens) for name in ("ours", *peers)}
    short = make_sides(replace(shape, prompts=1, new_tokens=min(8, shape.new_tokens)), model)
    measured = alternate(sides, rounds, ways=peers, warm_up=short)
    found = ratios(measured, "ours", peers)
    print(line_of(shape.name, measured, found), flush=True)
    return {
        **asdict(shape),
        **measured,
        **found,
        "tokens_per_second": new_tokens / measured["median_seconds"]["ours"],
        "tokens_through_model": tokens / (shape.prompts * shape.prompt_tokens + new_tokens),
    }


def same_texts_in_bfloat16(shape: Shape) -> float:
    """Share of texts that are the same in two batchings, with weights in bfloat16."""
    model, tokenizer, requests = make_model(shape), make_tokenizer(shape), make_requests(shape)
    model = model.bfloat16()

    def texts(max_samples: int) -> list[str]:
        results = LocalEngine(model, tokenizer, max_samples=max_samples).generate(requests)
        return [c.text for r in results if not isinstance(r, Failure) for c in r]

    one, other = texts(512), texts(8)
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


def rounds_of(shape: Shape, rounds: int) -> int:
    """Three for a point of a curve: there are many of them."""
    return min(rounds, 3) if shape in CURVES else rounds


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--curves", action="store_true", help="over n and prompt lengths, instead")
    parser.add_argument("--only", nargs="*", help="names of shapes")
    args = parser.parse_args()
    logging.set_verbosity_error()
    chosen = CURVES if args.curves else SHAPES
    if args.only:
        chosen = [shape for shape in [*SHAPES, *CURVES] if shape.name in args.only]
    if args.tiny:
        chosen = [TINY]
    results = [measure(shape, rounds_of(shape, args.rounds)) for shape in chosen]
    texts = TINY if args.tiny else SHAPES[-1]
    write_results(
        "curves_sampling" if args.curves else "sampling",
        {
            "machine": machine(),
            "threads": torch.get_num_threads(),
            "rounds": args.rounds,
            "shapes": results,
            "same_texts_in_bfloat16": same_texts_in_bfloat16(texts),
        },
        args.results,
    )


if __name__ == "__main__":
    main()
