"""What a served preference model makes of a request: rows of token ids, and scores out of their results.

Both kinds of model look alike from outside, so that an RL framework need not know which it is: a
score for each response to a prompt. A pairwise model's is the probability that the response is better
than another one to the same prompt in the request, the mean over these.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from prefpipe import chat
from prefpipe.compare.ab_model import PairwiseModel
from prefpipe.compare.ab_prompt import PairwiseFormat
from prefpipe.compare.context import Unscorable
from prefpipe.compare.reward_model import RewardModel
from prefpipe.compare.reward_tokens import RewardFormat
from prefpipe.formats import markup
from prefpipe.models.loading import bare_model, embedding_rows
from prefpipe.models.model_files import base_of, from_pretrained
from prefpipe.rows import Message

_PROBE = "prefpipe-probe"
Pair = tuple[str | list[Message], str]
"""A prompt and a response."""


class Refused(Exception):
    """A request that cannot be answered; the message says why, and what to send."""

    def __init__(self, message: str, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass
class Asked:
    """Part of a request: rows of token ids, and what makes its scores of the rows' results."""

    rows: list[list[int]]
    finish: Callable[[list[Any]], list[float]]
    places: list[int]
    """Where its scores stand among those of the request."""


class RewardScorer:
    """A reward model's own scores."""

    kind = "reward"

    def __init__(self, model: RewardModel) -> None:
        self.run, self.batch_tokens = model.score_rows, model.max_batch_tokens
        self._tokenize = model.tokenize
        self._vocabulary = embedding_rows(bare_model(model.model))
        self._marks = _marks(self._tokenize.tokenizer) if model.is_causal else []

    def question(self, prompt: str | list[Message], responses: Mapping[int, str]) -> Asked:
        """All responses to a prompt, by place: they are read in one context."""
        made = _scorable(self._tokenize(prompt, [*responses.values()]))
        rows = [[*made.prompt_ids, *own] for own in made.completions]
        return Asked(rows, list, [*responses])

    def rendered(self, text: str, place: int) -> Asked | None:
        """A conversation in the model's own chat template, up to and with the response; None: it is
        in none that is known to be this model's."""
        if not any(mark in text for mark in self._marks):
            return None
        return self.row(self._tokenize.rendered(text), place)

    def row(self, ids: list[int], place: int) -> Asked:
        """A row of token ids as it is."""
        check_ids(ids, self._vocabulary, self._tokenize.format.max_length)
        return Asked([ids], list, [place])


class PairwiseScorer:
    """A pairwise model's: how probably a response is better than the others of its request."""

    kind = "pairwise"

    def __init__(self, model: PairwiseModel) -> None:
        self.run, self.batch_tokens = model.label_logps, model.max_batch_tokens
        self.labels, self.tokenizer = model.tokenize.labels, model.tokenizer
        self._model = model
        self._vocabulary = embedding_rows(bare_model(model.model))

    def question(self, prompt: str | list[Message], responses: Mapping[int, str]) -> Asked:
        """All responses to a prompt, by place, each against each in both orders."""
        texts = [*responses.values()]
        if len(texts) < 2:
            raise Refused("a pairwise model compares: send two responses or more to each prompt")
        pairs = [*combinations(range(len(texts)), 2)]
        both = [order for a, b in pairs for order in ((a, b), (b, a))]
        made = _scorable(self._model.tokenize(prompt, texts, both))

        def finish(logps: list[tuple[float, float]]) -> list[float]:
            preferred = self._model.preferences_of(logps)
            self._model.check_outside()
            wins = [0.0] * len(texts)
            for (a, b), one in zip(pairs, preferred, strict=True):
                wins[a] += one.p
                wins[b] += 1 - one.p
            return [won / (len(texts) - 1) for won in wins]

        return Asked(made.rows, finish, [*responses])

    def rendered(self, text: str, place: int) -> None:
        """None: it reads turns in a format of its own."""

    def row(self, ids: list[int], place: int) -> Asked:
        """A row of token ids says nothing of a response."""
        raise Refused(
            "a pairwise model compares: send a prompt and its responses to /score, or the rows of both "
            "orders to /v1/completions"
        )

    def label_row(self, ids: list[int]) -> list[int]:
        """The row, if it is one of this model."""
        check_ids(ids, self._vocabulary, self._model.format.max_length)
        return ids


Scorer = RewardScorer | PairwiseScorer


def asked_of_pairs(scorer: Scorer, pairs: Mapping[int, Pair]) -> list[Asked]:
    """Prompts with their responses, by place; responses to equal prompts are read in one context."""
    prompts: dict[str, str | list[Message]] = {}
    responses: dict[str, dict[int, str]] = {}
    for place, (prompt, response) in pairs.items():
        key = json.dumps(prompt)
        prompts[key] = prompt
        responses.setdefault(key, {})[place] = response
    return [scorer.question(prompts[key], texts) for key, texts in responses.items()]


def asked_of_texts(
    scorer: Scorer, texts: Sequence[str], prompts: Sequence[str] | None = None
) -> list[Asked]:
    """Whole conversations as texts: in the model's own chat template, in one of a markup that is known,
    or, with their prompts, plain. Raises Refused for what is none of these.
    """
    asked, pairs = [], {}
    for place, text in enumerate(texts):
        prompt = prompts[place] if prompts else None
        if prompt is not None and not text.startswith(prompt):
            raise Refused(f"query {place} does not begin with its prompt, {prompt[:40]!r}...")
        if own := scorer.rendered(text, place):
            asked.append(own)
        else:
            pairs[place] = _as_pair(text, prompt)
    return [*asked, *asked_of_pairs(scorer, pairs)]


def _as_pair(text: str, prompt: str | None) -> Pair:
    if name := markup.markup_of(text):
        try:
            *turns, last = markup.split_turns(text, name, "a text")
        except ValueError as error:
            raise Refused(str(error)) from None
        if turns and last["role"] == "assistant":
            return turns, last["content"]
        raise Refused(f"{text[-40:]!r} ends with no turn of the assistant: the response is missing")
    if prompt is None:
        raise Refused(
            f"{text[:40]!r}... is no conversation in this model's chat template, nor in another one that "
            "is known: send prompt and response to /score (text_1, text_2), or turns as messages"
        )
    return prompt, markup.without_end(text[len(prompt) :], "user")


def _marks(tokenizer: Any) -> list[str]:
    """What tells a text in this chat template: its special tokens but for BOS, else what it writes."""
    lead = chat.render(tokenizer, [Message(role="user", content=_PROBE)])
    bos = str(tokenizer.bos_token or "")
    names = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    marks = [name for name in names if name in lead and name != bos]
    parts = (lead.replace(bos, "") if bos else lead).split(_PROBE)
    return marks or [part.strip() for part in parts if part.strip()]


def _scorable(made: Any) -> Any:
    if isinstance(made, Unscorable):
        raise Refused(f"{made.reason}: {made.detail}", code=made.reason)
    return made


def check_ids(ids: list[int], vocabulary: int, most: int) -> None:
    """Raises Refused where the row is none of this model."""
    if not ids:
        raise Refused("a row of token ids is empty")
    if len(ids) > most:
        words = f"too_long: {len(ids)} tokens, and this model's maximum context length is {most}"
        raise Refused(words, code="context_length_exceeded")
    if not 0 <= min(ids) <= max(ids) < vocabulary:
        raise Refused(f"token ids are from 0 to {vocabulary - 1}, found {min(ids)} to {max(ids)}")


def open_scorer(name: str, *, max_length: int | None, load_in_4bit: bool | None) -> Scorer:
    """The model of that folder or hub name, of whichever kind it is: what its files say, or, of one that
    was trained elsewhere, its architecture: a language model answers A or B, a classifier scores.
    """
    from transformers import AutoConfig

    options: Any = {"max_length": max_length, "load_in_4bit": load_in_4bit}
    is_pairwise = (Path(name) / PairwiseFormat.file).is_file()
    if not is_pairwise and not (Path(name) / RewardFormat.file).is_file():
        source, of = base_of(name)
        architectures = from_pretrained(AutoConfig, source, **of).architectures or ()
        is_pairwise = any(kind.endswith("CausalLM") for kind in architectures)
    if is_pairwise:
        return PairwiseScorer(PairwiseModel.load(name, **options))
    return RewardScorer(RewardModel.load(name, **options))
