"""Reward models: what they read, and the score they give. Training is in prefpipe.training.reward.

A score r(x, y) is read at the last token of prompt and response: the end of the assistant's turn of
a decoder, or what an encoder's own head pools. Training, evaluation and ranking get their token ids
from RewardTokenizer, with the same limit; a response is never cut.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from prefpipe import chat
from prefpipe.chat import completion_ids, encode
from prefpipe.files import write_json
from prefpipe.models import trees
from prefpipe.models.classifiers import load_classifier
from prefpipe.models.loading import bare_model, max_positions
from prefpipe.models.memory import in_halves
from prefpipe.rows import Message, flatten_turns

FORMAT_FILE = "reward_format.json"
MAX_BATCH_TOKENS = 8192
_WINDOW = 64
"""Batches that are collected and sorted by length, where prompts are not shared."""


@dataclass(frozen=True, slots=True)
class RewardFormat:
    """What must be the same in training and in use; kept beside the model as FORMAT_FILE."""

    max_length: int
    """Most tokens of prompt and response together."""
    cut_prompt: bool
    """Cut a longer prompt from its left; False: such a row is left out."""
    temperature: float | None = None
    """Margins divided by it are calibrated log-odds, on the held-out pairs; None: not fitted."""

    def save(self, folder: Path) -> None:
        write_json(folder / FORMAT_FILE, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> "RewardFormat | None":
        path = folder / FORMAT_FILE
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


@dataclass(frozen=True, slots=True)
class Unscorable:
    """Why a prompt's responses have no scores."""

    reason: str
    """snake_case: too_long, empty_prompt."""
    detail: str


@dataclass(frozen=True, slots=True)
class Tokenized:
    prompt_ids: list[int]
    """Empty for an encoder: its prompt stands in each response's row."""
    completions: list[list[int]]
    """For each response; of a decoder ending with the end of turn."""
    tokens_cut: int
    """Of the prompt, from its left."""


class RewardTokenizer:
    """A prompt and its responses to token ids.

    A decoder reads its chat template (prefpipe.prompts), an encoder prompt and response as a pair
    of texts. All responses of one call are behind the same prompt: where it must be cut, it is cut
    for the longest of them, so that they are compared in one context.
    """

    def __init__(self, tokenizer: Tokenizer, reward_format: RewardFormat, is_causal: bool) -> None:
        self.tokenizer, self.format, self.is_causal = tokenizer, reward_format, is_causal

    def __call__(
        self, prompt: str | list[Message], responses: Sequence[str]
    ) -> Tokenized | Unscorable:
        turns = [Message(role="user", content=prompt)] if isinstance(prompt, str) else list(prompt)
        if not any(turn["content"].strip() for turn in turns):
            return Unscorable("empty_prompt", "the prompt is empty")
        made = (
            self._decoder(turns, responses) if self.is_causal else self._encoder(turns, responses)
        )
        if made is None:
            return Unscorable(
                "too_long",
                f"prompt and response have more than {self.format.max_length} tokens"
                + (", the response alone nearly as many" if self.format.cut_prompt else ""),
            )
        return made

    def _decoder(self, turns: list[Message], responses: Sequence[str]) -> Tokenized | None:
        completions = [completion_ids(self.tokenizer, response) for response in responses]
        room = self.format.max_length - max(map(len, completions))
        whole = ids = chat.prompt_ids(self.tokenizer, turns)
        while len(ids) > room:
            shorter = self._cut(turns, len(ids) - room)
            if shorter is None:
                return None
            turns = shorter
            ids = chat.prompt_ids(self.tokenizer, turns)
        return Tokenized(ids, completions, len(whole) - len(ids))

    def _encoder(self, turns: list[Message], responses: Sequence[str]) -> Tokenized | None:
        def rows(turns: list[Message]) -> list[list[int]]:
            text = flatten_turns(turns)
            return [
                self.tokenizer(text, response, verbose=False)["input_ids"] for response in responses
            ]  # pyright: ignore

        made = rows(turns)
        whole = longest = max(map(len, made))
        while longest > self.format.max_length:
            shorter = self._cut(turns, longest - self.format.max_length)
            if shorter is None:
                return None
            turns = shorter
            made = rows(turns)
            longest = max(map(len, made))
        return Tokenized([], made, whole - longest)

    def _cut(self, turns: list[Message], over: int) -> list[Message] | None:
        """The turns without the oldest ones, or the last turn without its first `over` tokens.

        A system turn stays. None: nothing is left to cut, or it must not be cut.
        """
        if not self.format.cut_prompt:
            return None
        kept = [turn for turn in turns if turn["role"] == "system"][:1]
        rest = turns[len(kept) :]
        if len(rest) > 1:
            later = next(
                (k for k in range(1, len(rest)) if rest[k]["role"] == "user"), len(rest) - 1
            )
            return [*kept, *rest[later:]]
        text = cut_left(self.tokenizer, rest[0]["content"], over)
        return [*kept, Message(role=rest[0]["role"], content=text)] if text.strip() else None


def cut_left(tokenizer: Tokenizer, text: str, tokens: int) -> str:
    """The text without its first tokens; a character that was cut in two goes, too."""
    ids = encode(tokenizer, text)[tokens:]
    decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return str(decoded).lstrip("\ufffd")


class RewardModel:
    """Scores the responses to a prompt, each prompt computed once."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        reward_format: RewardFormat,
        is_causal: bool,
        *,
        share_prompts: bool = True,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
    ) -> None:
        self.model = model.eval()
        self.tokenize = RewardTokenizer(tokenizer, reward_format, is_causal)
        bare = bare_model(model)
        self.share_prompts = (
            share_prompts
            and is_causal
            and trees.can_share(bare)
            and isinstance(getattr(bare, "score", None), torch.nn.Module)
        )
        self.max_batch_tokens = max_batch_tokens

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        max_length: int | None = None,
        cut_prompt: bool = True,
        load_in_4bit: bool | None = None,
    ) -> "RewardModel":
        """From a folder that this pipeline wrote, or any published one-label classifier.

        max_length, cut_prompt: for a model that brings no format of its own.
        """
        model, tokenizer, causal = load_classifier(name, load_in_4bit=load_in_4bit)
        limit = max_positions(bare_model(model))
        own = RewardFormat.load(Path(name))
        return cls(
            model,
            tokenizer,
            own or RewardFormat(min(max_length or limit, limit), cut_prompt),
            causal,
        )

    def score(
        self, questions: Iterable[tuple[str | list[Message], Sequence[str]]]
    ) -> Iterator[list[float] | Unscorable]:
        """For each prompt and its responses their rewards, in order; streams."""
        window: list[Tokenized | Unscorable] = []
        for prompt, responses in questions:
            window.append(self.tokenize(prompt, responses))
            if len(window) == _WINDOW:
                yield from self._score_window(window)
                window = []
        yield from self._score_window(window)

    def _score_window(
        self, window: list[Tokenized | Unscorable]
    ) -> Iterator[list[float] | Unscorable]:
        rows = [
            [*made.prompt_ids, *completion]
            for made in window
            if isinstance(made, Tokenized)
            for completion in made.completions
        ]
        scores = iter(self.score_rows(rows))
        for made in window:
            if isinstance(made, Unscorable):
                yield made
            else:
                yield [next(scores) for _ in made.completions]

    def score_rows(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """Rewards of whole rows of token ids, prompt and response together."""
        scores = [0.0] * len(rows)
        if self.share_prompts:
            for batch in trees.tree_batches(rows, self.max_batch_tokens):
                found = in_halves(self._shared, [rows[i] for i in batch])
                for i, score in zip(batch, found, strict=True):
                    scores[i] = score
            return scores
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        sized = ((len(rows[i]), i) for i in order)
        for batch in trees.in_batches(sized, self.max_batch_tokens):
            found = in_halves(self._padded, [rows[i] for i in batch])
            for i, score in zip(batch, found, strict=True):
                scores[i] = score
        return scores

    def _shared(self, rows: list[Sequence[int]]) -> list[float]:
        bare = bare_model(self.model)
        backbone = bare.base_model
        assert isinstance(backbone, PreTrainedModel)
        outputs, last = trees.run_tree(backbone, rows)
        with torch.inference_mode():
            head: Any = bare.score
            return head(outputs.last_hidden_state[0, last])[:, 0].float().tolist()

    def _padded(self, rows: list[Sequence[int]]) -> list[float]:
        pad, device = self.tokenize.tokenizer.pad_token_id, self.model.device
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows], device=device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        mask = (torch.arange(longest, device=device) < lengths[:, None]).long()
        with torch.inference_mode():
            logits = self.model(input_ids=ids, attention_mask=mask).logits
        return logits[:, 0].float().tolist()
