"""Which of eight responses is better, asked in both orders: our shared pass against plain forwards.

    uv run python -m benchmarks.ab_scoring                   # the shapes, on this machine's CPU

ours       prefpipe.compare.ab_model.PairwiseModel.compare: the logits of A and B in one pass, in which the
           context, and a response that stands as A in several comparisons, are computed once
unbatched  the same rows of token ids, one forward per order; of the logits only the last position's
padded     the same rows in batches, padded on the left, 8,192 tokens a batch as in ours (the rows
           are about equally long: little padding)

Shapes: every pair of the eight (28, a round-robin), and a knockout (4, 2 and 1 pairs, a pass each; in
the later ones the keys of the context, and of each response as A, are kept from the ones before). The
sides alternate within one process on the same weights (random, float32), after a run of each that
does not count. Ours includes rendering and tokenizing, the others get token ids. largest_difference is
that of P(first is better) between ours and unbatched.
Not measured: loading. Writes benchmarks/results/ab_scoring.json; ratio is of median wall times,
unbatched / ours, ratio_padded that of the padded batches.
"""

import itertools
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import tokenizers
import tokenizers.models
import tokenizers.pre_tokenizers
import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    logging,
)

from benchmarks import alternate, line_of, machine, make_parser, ratios, write_results
from benchmarks.sampling import EMBEDDED, SMALL, count_tokens
from prefpipe.compare.ab_model import PairwiseModel, Preferred
from prefpipe.compare.ab_prompt import PairwiseFormat
from prefpipe.compare.context import MAX_BATCH_TOKENS
from prefpipe.models import trees

RESPONSES = 8
ALL_PAIRS = [list(itertools.combinations(range(RESPONSES), 2))]
KNOCKOUT = [[(0, 1), (2, 3), (4, 5), (6, 7)], [(0, 2), (4, 6)], [(0, 4)]]
"""As if the first of each pair had won: which one does not change the cost."""


@dataclass(frozen=True)
class Shape:
    name: str
    model: dict[str, Any]
    context_tokens: int
    response_tokens: int
    passes: list[list[tuple[int, int]]]
    """The comparisons of each pass."""
    also_padded: bool = True
    """False where batches gain little or nothing: the knockout 6.6 against 5.6 s, pairs of 200 + 50
    tokens 7.2 against 7.3; pairs of 800 + 150 were not tried."""


SHAPES = [
    Shape("30m_800_150_all_pairs", SMALL, 800, 150, ALL_PAIRS, also_padded=False),
    Shape("30m_800_150_knockout", SMALL, 800, 150, KNOCKOUT, also_padded=False),
    Shape("30m_200_50_all_pairs", SMALL, 200, 50, ALL_PAIRS, also_padded=False),
    Shape("embedded_180_60_all_pairs", EMBEDDED, 180, 60, ALL_PAIRS),
]
TINY = Shape("tiny", EMBEDDED, 20, 6, [[(0, 1), (2, 3)], [(0, 2)]])

PEERS = ("unbatched", "padded")


def make_model(shape: Shape) -> PreTrainedModel:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**shape.model, eos_token_id=0, bos_token_id=None)).eval()


def make_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A word a token; the words of the published format are tokens, too."""
    words = ["</s>", "A", "B", "[CONTEXT]", "[RESPONSE", "A]", "B]", "<turn>", "user", "assistant"]
    words += [f"w{i}" for i in range(vocabulary - len(words))]
    core = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="</s>")
    )
    core.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", pad_token="</s>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %} </s>{% endif %}"
        "{% if m.role == 'user' %} <turn> assistant {% endif %}{% endfor %}"
    )
    return tokenizer


def make_texts(shape: Shape) -> tuple[str, list[str]]:
    """A question and its responses, in words."""
    rng = random.Random(0)
    names = [f"w{i}" for i in range(shape.model["vocab_size"] - 10)]
    question = " ".join(rng.choices(names, k=shape.context_tokens))
    responses = [" ".join(rng.choices(names, k=shape.response_tokens)) for _ in range(RESPONSES)]
    return question, responses


@torch.inference_mode()
def forward(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """The last position's logits (rows, V), padded on the left; one row is not padded."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*[0] * (longest - len(row)), *row] for row in rows], device=model.device)
    lengths = torch.tensor([len(row) for row in rows], device=model.device)
    mask = torch.arange(longest, device=model.device) >= longest - lengths[:, None]
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    options = {} if len(rows) == 1 else {"attention_mask": mask.long(), "position_ids": positions}
    return model(input_ids=ids, logits_to_keep=1, use_cache=False, **options).logits[:, -1].float()


def measure(
    shape: Shape, rounds: int, model: PreTrainedModel | None = None, finish: Any = lambda: None
) -> dict[str, Any]:
    """Seconds a round of each side, and the ratios of their medians."""
    model = make_model(shape) if model is None else model
    tokenizer = make_tokenizer(shape.model["vocab_size"])
    engine = PairwiseModel(model, tokenizer, PairwiseFormat(model.config.max_position_embeddings))
    question, responses = make_texts(shape)
    rows: list[list[list[int]]] = []
    for pairs in shape.passes:
        made = engine.tokenize(question, responses, [o for a, b in pairs for o in ((a, b), (b, a))])
        assert hasattr(made, "rows"), made
        rows.append(made.rows)  # pyright: ignore[reportAttributeAccessIssue]
    labels = list(engine.tokenize.labels)

    def ours() -> list[float]:
        found = []
        cache = engine.new_cache()
        for pairs in shape.passes:
            [compared] = engine.compare([(question, responses, pairs)], cache)
            assert isinstance(compared, list)
            found += [x.p for x in compared if isinstance(x, Preferred)]
        return found

    def first_is_better(logits: torch.Tensor) -> list[float]:
        given, swapped = logits[0::2, labels].softmax(-1), logits[1::2, labels].softmax(-1)
        return ((given[:, 0] + swapped[:, 1]) / 2).tolist()

    def unbatched() -> list[float]:
        logits = [forward(model, [row]) for part in rows for row in part]
        return first_is_better(torch.cat(logits))

    def padded() -> list[float]:
        logits = []
        for part in rows:
            for batch in trees.in_batches(part, MAX_BATCH_TOKENS, lambda row, _: len(row)):
                logits.append(forward(model, batch))
        return first_is_better(torch.cat(logits))

    ours()  # at first use a model is tried out, which are tokens, too
    probabilities: list[list[float]] = []
    tokens = count_tokens(model, lambda: probabilities.append(ours()))
    differences = [abs(a - b) for a, b in zip(probabilities[0], unbatched(), strict=True)]
    sides = {"ours": ours, "unbatched": unbatched}
    if shape.also_padded:
        sides["padded"] = padded
    done = {"ours": lambda: None, "unbatched": lambda: None, "padded": padded}
    measured = alternate(sides, rounds, finish=finish, warm_up=done)
    found = ratios(measured, "ours", ("unbatched",))
    medians = measured["median_seconds"]
    print(line_of(shape.name, measured, found), flush=True)
    whole = sum(len(row) for part in rows for row in part)
    return {
        **asdict(shape),
        **measured,
        **found,
        **({"ratio_padded": medians["padded"] / medians["ours"]} if "padded" in medians else {}),
        "comparisons": sum(map(len, shape.passes)),
        "tokens": {"ours": tokens, "plain": whole},
        "largest_difference": max(differences),
    }


def main() -> None:
    args = make_parser(__doc__).parse_args()
    logging.set_verbosity_error()
    results = [measure(shape, args.rounds) for shape in ([TINY] if args.tiny else SHAPES)]
    write_results(
        "ab_scoring",
        {
            "machine": machine(),
            "threads": torch.get_num_threads(),
            "rounds": args.rounds,
            "shapes": results,
        },
        args.results,
    )


if __name__ == "__main__":
    main()
