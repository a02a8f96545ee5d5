"""Pairwise preference models: what they read, and the probability they give.

The format is that of RLHFlow's pair-preference models (Dong et al. 2024; SLiC, Zhao et al. 2023):
one user turn with the conversation and two responses, answered with one token, A or B.

    [CONTEXT] <turn> user ... <turn> assistant ... [RESPONSE A] ... [RESPONSE B] ...

Training, scoring and ranking get their token ids from PairwiseTokenizer, with the same limit. The
context is cut from its left where it must be, a response never.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from prefpipe import chat
from prefpipe.chat import encode
from prefpipe.compare.reward_model import Unscorable, cut_left
from prefpipe.files import DataError, write_json
from prefpipe.models import trees
from prefpipe.models.loading import bare_model, load_model, load_tokenizer, max_positions
from prefpipe.models.memory import free_bytes, in_halves, position_bytes
from prefpipe.models.prefix_cache import PrefixCache, common_tokens
from prefpipe.rows import Message

FORMAT_FILE = "pairwise_format.json"
LABELS = ("A", "B")
MAX_BATCH_TOKENS = 8192

_MARKER = re.compile(r"\\*(?:\[CONTEXT\]|\[RESPONSE [AB]\]|<turn> (?:user|assistant))")


@dataclass(frozen=True, slots=True)
class PairwiseFormat:
    """What must be the same in training and in use; kept beside the model as FORMAT_FILE."""

    max_length: int
    """Most tokens of the whole turn, the chat template's own included."""
    temperature: float = 1.0
    """Logits are divided by it before the softmax over A and B; fitted on the held-out pairs."""

    def save(self, folder: Path) -> None:
        write_json(folder / FORMAT_FILE, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> "PairwiseFormat | None":
        path = folder / FORMAT_FILE
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def escape(text: str) -> str:
    r"""Put a backslash before each marker of the format, so that no response can pose as two.

    A marker that already has backslashes gets one more: different texts stay different.
    """
    return _MARKER.sub(r"\\\g<0>", text)


def render_context(turns: Sequence[Message]) -> str:
    """The conversation as the published format writes it: its roles are user and assistant.

    A system turn, which the format does not know, stands before the first user's words.
    """
    parts = []
    system = ""
    for turn in turns:
        if turn["role"] == "system":
            system += f"{turn['content']}\n\n"
            continue
        role = "assistant" if turn["role"] == "assistant" else "user"
        parts.append(f"\n<turn> {role}\n {escape(system + turn['content'])}")
        system = ""
    # the line ends are those of transformers' rendering of the published template
    return "\n" + "".join(parts) + "\n"


def render_pair(context: str, response_a: str, response_b: str) -> str:
    """The user turn."""
    return f"{_head(context)} {escape(response_a)} [RESPONSE B] {escape(response_b)} \n"


def _head(context: str) -> str:
    return f"[CONTEXT] {context} [RESPONSE A]"


@dataclass(frozen=True, slots=True)
class Tokenized:
    rows: list[list[int]]
    shared: int
    """Tokens that all rows begin with, up to where the first response begins."""
    tokens_cut: int
    """Of the context, from its left."""


class PairwiseTokenizer:
    """A prompt and two responses to token ids, up to where the label token is predicted.

    Raises DataError where a label is not one token of its own, or does not follow the rendered text
    as that token.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self.labels = label_ids(tokenizer)

    def __call__(
        self,
        prompt: str | list[Message],
        responses: Sequence[str],
        pairs: Sequence[tuple[int, int]],
    ) -> "Tokenized | Unscorable":
        """Each pair (index of response A, index of B) as a row; the context is cut alike for all."""
        turns = [Message(role="user", content=prompt)] if isinstance(prompt, str) else list(prompt)
        if not any(turn["content"].strip() for turn in turns):
            return Unscorable("empty_prompt", "the prompt is empty")
        context = render_context(turns)
        rows = self._rows(context, responses, pairs)
        whole = longest = max(map(len, rows))
        while longest > self.max_length:
            context = cut_left(self.tokenizer, context, longest - self.max_length)
            if context.startswith("["):  # its backslash was cut
                context = escape(context[:20]) + context[20:]
            if not context.strip():
                return Unscorable(
                    "responses_too_long",
                    f"both responses leave no room for the context in {self.max_length} tokens",
                )
            rows = self._rows(context, responses, pairs)
            longest = max(map(len, rows))
        # what all pairs of this context begin with: the turn up to the first response
        head = self._ids(_head(context))
        shared = min(common_tokens(head, row) for row in rows)
        return Tokenized(rows, min(shared, *(len(row) - 1 for row in rows)), whole - longest)

    def _rows(
        self, context: str, responses: Sequence[str], pairs: Sequence[tuple[int, int]]
    ) -> list[list[int]]:
        return [self._ids(render_pair(context, responses[a], responses[b])) for a, b in pairs]

    def _ids(self, text: str) -> list[int]:
        return chat.prompt_ids(self.tokenizer, [Message(role="user", content=text)])


def label_ids(tokenizer: Tokenizer) -> tuple[int, int]:
    """The tokens A and B as they follow the rendered turn."""
    found = []
    for label in LABELS:
        ids = encode(tokenizer, label)
        if len(ids) != 1:
            tokens = tokenizer.convert_ids_to_tokens(ids)
            raise DataError(
                f"{tokenizer.name_or_path}: the label {label!r} must be one token, and is {tokens}; "
                "take a model whose tokenizer has it as one"
            )
        found.append(ids[0])
    if found[0] == found[1]:
        raise DataError(f"{tokenizer.name_or_path}: A and B are the same token, {found[0]}")
    chat.render(tokenizer, [Message(role="user", content="x")])  # the answer follows, or raises
    return found[0], found[1]


# ---- models --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Preferred:
    """One comparison, asked in both orders."""

    p: float
    """P(first response is better), the mean of both orders."""
    p_given: float
    """With the first response as A."""
    p_swapped: float
    """With the first response as B; equal to p_given for a model without position bias."""
    outside: float
    """Probability that is neither on A nor on B, the mean of both orders."""


class PairwiseModel:
    """Compares responses to a prompt; what comparisons share is computed once."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        pairwise_format: PairwiseFormat,
        *,
        share_prompts: bool = True,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
    ) -> None:
        self.model = model.eval()
        self.tokenize = PairwiseTokenizer(tokenizer, pairwise_format.max_length)
        self.temperature = pairwise_format.temperature
        self.share_prompts = share_prompts and trees.can_share(bare_model(model))
        self.max_batch_tokens = max_batch_tokens

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        max_length: int | None = None,
        temperature: float | None = None,
        load_in_4bit: bool | None = None,
    ) -> "PairwiseModel":
        """From a folder that this pipeline wrote, or a published checkpoint of the format.

        max_length, temperature: for a model that brings no format of its own; a temperature that
        is given holds for both.
        """
        model = load_model(name, load_in_4bit=load_in_4bit)
        limit = max_positions(bare_model(model))
        own = PairwiseFormat.load(Path(name)) or PairwiseFormat(min(max_length or limit, limit))
        own = PairwiseFormat(own.max_length, temperature or own.temperature)
        return cls(model, load_tokenizer(name), own)

    def compare(
        self,
        questions: Iterable[tuple[str | list[Message], Sequence[str], Sequence[tuple[int, int]]]],
        cache: PrefixCache | None = None,
    ) -> Iterator[list[Preferred] | Unscorable]:
        """For each (prompt, responses, pairs of their indices) what is preferred; streams.

        cache: new_cache(), and given again for further pairs of the same questions.
        """
        window: list[list[list[int]] | Unscorable] = []
        tokens = 0
        for prompt, responses, pairs in questions:
            both = [order for a, b in pairs for order in ((a, b), (b, a))]
            made = self.tokenize(prompt, responses, both) if both else Tokenized([], 0, 0)
            rows = made if isinstance(made, Unscorable) else made.rows
            window.append(rows)
            tokens += 0 if isinstance(rows, Unscorable) else sum(map(len, rows))
            if tokens >= 16 * self.max_batch_tokens:
                yield from self._compare_window(window, cache)
                window, tokens = [], 0
        yield from self._compare_window(window, cache)

    def _compare_window(
        self, window: list[list[list[int]] | Unscorable], cache: PrefixCache | None
    ) -> Iterator[list[Preferred] | Unscorable]:
        rows = [row for made in window if not isinstance(made, Unscorable) for row in made]
        read = iter(self.label_logps(rows, cache))
        for made in window:
            if isinstance(made, Unscorable):
                yield made
            else:
                yield [self._preferred(next(read), next(read)) for _ in range(len(made) // 2)]

    def _preferred(self, given: tuple[float, float], swapped: tuple[float, float]) -> Preferred:
        p_given = _first_of_two(given[0], given[1], self.temperature)
        p_swapped = _first_of_two(swapped[1], swapped[0], self.temperature)
        outside = [1 - float(np.exp(a) + np.exp(b)) for a, b in (given, swapped)]
        return Preferred((p_given + p_swapped) / 2, p_given, p_swapped, max(0.0, sum(outside) / 2))

    def label_logps(
        self, rows: Sequence[Sequence[int]], cache: PrefixCache | None = None
    ) -> list[tuple[float, float]]:
        """(log p(A), log p(B)) of the token behind each row."""
        if not self.share_prompts:
            return self._one_by_one(rows)
        found: dict[int, tuple[float, float]] = {}
        for batch in trees.tree_batches(rows, self.max_batch_tokens):
            run = partial(self._shared, cache)
            read = in_halves(run, [rows[i] for i in batch], cache)
            found.update(zip(batch, read, strict=True))
        return [found[i] for i in range(len(rows))]

    def new_cache(self) -> PrefixCache:
        """For the keys and values of two or three batches, where a quarter of the free memory suffices."""
        fitting = free_bytes(self.model.device) // 4 // position_bytes(bare_model(self.model))
        return PrefixCache(min(2 * self.max_batch_tokens, fitting))

    def _shared(
        self, cache: PrefixCache | None, rows: list[Sequence[int]]
    ) -> list[tuple[float, float]]:
        outputs, _ = trees.run_tree(self.model, rows, cache=cache, only_last=True)
        return self._read(outputs.logits[0])

    def _one_by_one(self, rows: Sequence[Sequence[int]]) -> list[tuple[float, float]]:
        found = []
        for row in rows:
            ids = torch.tensor([row], device=self.model.device)
            with torch.inference_mode():
                found += self._read(self.model(input_ids=ids).logits[:, -1])
        return found

    def _read(self, logits_N_V: torch.Tensor) -> list[tuple[float, float]]:
        a, b = self.tokenize.labels
        logps = logits_N_V.float().log_softmax(-1)[:, [a, b]].tolist()
        return [(x, y) for x, y in logps]


def _first_of_two(first: float, second: float, temperature: float) -> float:
    return float(1 / (1 + np.exp((second - first) / temperature)))
