"""What a run through a paid server will use, before anything is sent: tokens and money."""

import datetime
import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path

PRICES = Path(__file__).parent.parent / "prices.toml"


def estimate_tokens(text: str) -> int:
    """Tokens of the text, roughly: 0.8 a CJK character, 0.25 any other character, rounded up.

    An approximation (within about a quarter for English and Chinese prose with the vocabularies of
    2024 and later), for budgets and for money to expect; what was used is what the server reports.
    """
    if text.isascii():
        return -(-len(text) // 4)
    cjk = sum(c >= "\u2e80" for c in text)
    return -(-(16 * cjk + 5 * (len(text) - cjk)) // 20)


@dataclass(frozen=True)
class Price:
    """What a model costs, by its provider's published table."""

    input: float
    """USD for 1 million prompt tokens."""
    output: float
    """USD for 1 million new tokens."""
    as_of: datetime.date
    """When it was published; it may have changed since."""
    batch: float = 1.0
    """What the same tokens cost in a batch, as a share of this."""

    def money(self, prompt_tokens: int, new_tokens: int, *, batch: bool = False) -> float:
        """USD."""
        usd = (prompt_tokens * self.input + new_tokens * self.output) / 1_000_000
        return usd * self.batch if batch else usd


@functools.cache
def find_price(model: str) -> Price | None:
    """The model's line of prefpipe/prices.toml; None: not in there."""
    table = tomllib.loads(PRICES.read_text(encoding="utf-8")).get(model)
    return Price(**table) if table else None


def describe_tokens(model: str, prompt_tokens: int, new_tokens: int, *, batch: bool = False) -> str:
    """10,000 prompt + 500 new tokens, 0.002 USD; without money where no price is known."""
    text = f"{prompt_tokens:,} prompt + {new_tokens:,} new tokens"
    if price := find_price(model):
        text += f", {price.money(prompt_tokens, new_tokens, batch=batch):.4g} USD"
    return text
