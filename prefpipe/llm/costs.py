"""What a run through a paid server will use, before anything is sent: tokens and money.

The prices are those of the library genai-prices, as they were when it was released: nothing is
fetched. A line of prefpipe/prices.toml goes before them.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prefpipe.files import read_toml
from prefpipe.llm import Failure, Request

PRICES = Path(__file__).parent.parent / "prices.toml"


def estimate_tokens(text: str) -> int:
    """Tokens of the text, roughly: 0.8 a CJK character, 0.25 any other character, rounded up.
    Within about a quarter for English and Chinese prose with the vocabularies of 2024 and later."""
    if text.isascii():
        return -(-len(text) // 4)
    cjk = sum(c >= "\u2e80" for c in text)
    return -(-(16 * cjk + 5 * (len(text) - cjk)) // 20)


def estimate_prompt_tokens(messages: Iterable[Any]) -> int:
    """Tokens of all messages of a prompt, by estimate_tokens."""
    return sum(estimate_tokens(message["content"]) for message in messages)


@dataclass(frozen=True)
class Price:
    """What a model costs."""

    rates: tuple[tuple[int, float, float], ...]
    """(n, input, output), by rising n: USD for 1 million prompt tokens and for 1 million new tokens
    of a request with more than n prompt tokens; n of the first is -1."""
    source: str
    """Who says so."""

    def money(self, prompt_tokens: int, new_tokens: int) -> float:
        """USD of one request."""
        rate = next(rate for rate in reversed(self.rates) if prompt_tokens > rate[0])
        return (prompt_tokens * rate[1] + new_tokens * rate[2]) / 1_000_000

    def money_of_short(self, prompt_tokens: int, new_tokens: int) -> float:
        """USD of requests with so many tokens together, none long enough for a price of its own."""
        return Price(self.rates[:1], self.source).money(prompt_tokens, new_tokens)


@functools.cache
def find_price(model: str, *, batch: bool = False) -> Price | None:
    """The price of the model, of one in batches where it has one of its own; None: not known."""
    own = read_toml(PRICES).get(model)
    if own is not None:
        share = own.get("batch", 1.0) if batch else 1.0
        rate = (-1, own["input"] * share, own["output"] * share)
        return Price((rate,), f"{own['as_of']} in prefpipe/prices.toml")
    import genai_prices  # 0.4 s, so only where a price is wanted

    context = {"processing": "batch"} if batch else None
    try:
        price = genai_prices.calc_price(genai_prices.Usage(), model, price_context=context)
    except LookupError:
        return None
    prices = [price.model_price.input_mtok, price.model_price.output_mtok]
    tiers = [{tier.start: tier.price for tier in getattr(price, "tiers", ())} for price in prices]
    now = [getattr(price, "base", price) or 0 for price in prices]
    rates = []
    for start in (-1, *sorted(tiers[0].keys() | tiers[1].keys())):
        now = [tier.get(start, price) for tier, price in zip(tiers, now, strict=True)]
        rates.append((start, *map(float, now)))
    return Price(tuple(rates), f"genai-prices {genai_prices.__version__}")


def describe_tokens(
    model: str,
    prompt_tokens: int,
    new_tokens: int,
    *,
    batch: bool = False,
    usd: float | None = None,
) -> str:
    """10,000 prompt + 500 new tokens, 0.002 USD; without money where no price is known. usd: of the
    requests, added up one by one; None: each is taken for a short one."""
    text = f"{prompt_tokens:,} prompt + {new_tokens:,} new tokens"
    if price := find_price(model, batch=batch):
        usd = price.money_of_short(prompt_tokens, new_tokens) if usd is None else usd
        text += f", {usd:.4g} USD"
    return text


def describe_estimate(
    model: str,
    prompt_tokens: int,
    new_tokens: int,
    *,
    batch: bool,
    at_most: bool,
    usd: float | None = None,
) -> str:
    """Two lines for a person, before anything is sent: the tokens, and the money they may cost.
    at_most: each text is counted as long as it may be. usd: as in describe_tokens."""
    bound = "at most " if at_most else ""
    tokens = (
        f"tokens: about {prompt_tokens:,} in the prompts and {bound}{new_tokens:,} new "
        "(0.8 a Chinese character, 0.25 any other)"
    )
    price = find_price(model, batch=batch)
    if price is None:
        return f"{tokens}\nmoney: {no_price(model)}"
    usd = price.money_of_short(prompt_tokens, new_tokens) if usd is None else usd
    return (
        f"{tokens}\nmoney: {bound}about {usd:.2f} USD for {model}{' in batches' if batch else ''}, "
        f"at the prices of {price.source}; they may have changed since"
    )


def no_price(model: str) -> str:
    return f"no price of {model} in prefpipe/prices.toml or in genai-prices"


@dataclass
class Usage:
    """What the server has reported so far; tokens of replies that were thrown away are in it."""

    replies: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0


class Spending:
    """Tokens and money of an engine so far."""

    def __init__(self, model: str, *, batch: bool = False) -> None:
        self.usage = Usage()
        self._model, self._batch, self._usd = model, batch, 0.0
        self._price = find_price(model, batch=batch)

    def add(self, prompt_tokens: int, new_tokens: int) -> None:
        """One reply more."""
        self.usage.replies += 1
        self.usage.prompt_tokens += prompt_tokens
        self.usage.new_tokens += new_tokens
        if self._price:
            self._usd += self._price.money(prompt_tokens, new_tokens)

    @property
    def usd(self) -> float | None:
        """None: no price of the model is known."""
        return self._usd if self._price else None

    def describe(self) -> str:
        """Tokens and money so far, for a person."""
        used = (self.usage.prompt_tokens, self.usage.new_tokens)
        return describe_tokens(self._model, *used, batch=self._batch, usd=self._usd)


class Spends:
    """What an engine has that counts its spending."""

    _spending: Spending

    @property
    def usd(self) -> float | None:
        """Spent so far; None: no price of the model is known."""
        return self._spending.usd


@dataclass
class Estimate:
    """What is left to ask a model, before anything is sent or loaded."""

    model: str
    batch: bool = False
    tokenizer: str = ""
    """Whose tokenizer counted; empty: estimate_tokens. A local model's texts cost nothing."""
    requests: int = 0
    texts: int = 0
    """Samples of all requests."""
    submitted: int = 0
    """Requests that are answered already, or under way."""
    prompt_tokens: int = 0
    """By estimate_tokens."""
    new_tokens: int = 0
    """At most: each text as long as it may be."""
    failures: dict[str, Failure] = field(default_factory=dict)
    """Requests of which it is known beforehand that they get no text."""
    _usd: float = 0.0

    @property
    def price(self) -> Price | None:
        return None if self.tokenizer else find_price(self.model, batch=self.batch)

    def __add__(self, other: "Estimate") -> "Estimate":
        """Both together, of one model."""
        names = (
            "requests",
            "texts",
            "submitted",
            "prompt_tokens",
            "new_tokens",
            "failures",
            "_usd",
        )
        sums = {name: getattr(self, name) for name in names}
        for name in names:
            own, more = sums[name], getattr(other, name)
            sums[name] = own | more if isinstance(own, dict) else own + more
        return replace(self, **sums)

    def add(self, request: Request, samples: int, prompt_tokens: int | None = None) -> None:
        """One request more, for so many samples. prompt_tokens: None: they are estimated."""
        if prompt_tokens is None:
            prompt_tokens = estimate_prompt_tokens(request.messages)
        tokens = prompt_tokens, samples * request.max_new_tokens
        self.requests += 1
        self.texts += samples
        self.prompt_tokens += tokens[0]
        self.new_tokens += tokens[1]
        if self.price:
            self._usd += self.price.money(*tokens)

    @property
    def usd(self) -> float | None:
        """At most; None: no price of the model is known."""
        return self._usd if self.price else None

    def numbers(self) -> dict[str, Any]:
        """All of it, for a program; usd: None where no price is known, and of a local model."""
        counts = {name: getattr(self, name) for name in ("requests", "texts", "prompt_tokens")}
        most = {"new_tokens_at_most": self.new_tokens, "usd_at_most": self.usd}
        return {"model": self.model, "tokenizer": self.tokenizer or None, **counts, **most}

    def lines(self) -> list[str]:
        """All of it, for a person."""
        first = f"{self.requests:,} requests to {self.model} for {self.texts:,} texts"
        if self.submitted:
            first += f"; {self.submitted:,} are submitted or answered already"
        if self.tokenizer:
            return [
                first,
                f"tokens: {self.prompt_tokens:,} in the prompts, at most {self.new_tokens:,} new (by its "
                "tokenizer)",
            ]
        tokens = (self.prompt_tokens, self.new_tokens)
        how = {"batch": self.batch, "at_most": True, "usd": self.usd}
        return [first, *describe_estimate(self.model, *tokens, **how).split("\n")]


def estimate(requests: Iterable[Request], model: str) -> Estimate:
    """What all these requests use at most, each sent by itself."""
    total = Estimate(model)
    for request in requests:
        total.add(request, len(request.samples))
    return total
