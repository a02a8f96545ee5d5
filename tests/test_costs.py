"""prefpipe.llm.costs: tokens and money, by hand."""

import socket

import pytest

from prefpipe.llm import Request, costs
from prefpipe.llm.costs import (
    Price,
    Spending,
    describe_estimate,
    describe_tokens,
    estimate,
    estimate_tokens,
    find_price,
)


@pytest.fixture
def own_prices(tmp_path, monkeypatch):
    """costs.PRICES with that text."""

    def write(text: str) -> None:
        path = tmp_path / "prices.toml"
        path.write_text(text, encoding="utf-8")
        monkeypatch.setattr(costs, "PRICES", path)
        find_price.cache_clear()

    yield write
    find_price.cache_clear()


def price(model: str, *, batch: bool = False) -> Price:
    found = find_price(model, batch=batch)
    assert found is not None
    return found


def request(characters: int, **options) -> Request:
    return Request("a", ({"role": "user", "content": "x" * characters},), **options)


def test_tokens_are_those_by_hand():
    assert estimate_tokens("a" * 9) == 3  # 9 / 4, rounded up
    assert estimate_tokens("你好吗") == 3  # 2.4
    assert estimate_tokens("你好 ab") == 3  # 1.6 + 0.75
    assert estimate_tokens("") == 0


def test_money_is_that_of_the_published_price_and_half_of_it_in_a_batch():
    """OpenAI's price list: 0.15 and 0.60 USD a million since 2024-07-18, half of it in batches."""
    money = 2 * 0.15 + 0.5 * 0.60
    assert price("gpt-4o-mini").money(2_000_000, 500_000) == pytest.approx(money)
    assert price("gpt-4o-mini", batch=True).money(2_000_000, 500_000) == pytest.approx(money / 2)
    assert find_price("no-such-model") is None


def test_prices_of_the_earlier_table_are_the_same():
    """They stood in prefpipe/prices.toml, model by model."""
    for model, input, output in (
        ("gpt-4o-mini", 0.15, 0.60),
        ("gpt-4o", 2.5, 10.0),
        ("gpt-4o-2024-08-06", 2.5, 10.0),
    ):
        assert price(model).rates == ((-1, input, output),)
        assert price(model, batch=True).rates == ((-1, input / 2, output / 2),)


def test_a_model_of_ones_own_is_no_paid_one():
    for name in ("Qwen/Qwen2-7B-Instruct", "embedded/model", "meta-llama/Llama-3.1-8B-Instruct"):
        assert find_price(name) is None


def test_a_price_is_looked_up_without_a_network(monkeypatch):
    def connect(*_: object, **__: object) -> None:
        pytest.fail("asks the network")

    monkeypatch.setattr(socket.socket, "connect", connect)
    find_price.cache_clear()
    assert price("gpt-4o-mini").source.startswith("genai-prices ")


def test_a_long_prompt_has_the_price_of_its_own_tier_and_many_short_ones_have_not():
    tiers = price("gpt-5.4")
    (_, input, output), (start, more_input, more_output) = tiers.rates
    assert input < more_input and output < more_output
    one = (start * input + 10 * output) / 1e6
    assert tiers.money(start, 10) == pytest.approx(one)
    assert tiers.money(start + 1, 10) == pytest.approx(
        ((start + 1) * more_input + 10 * more_output) / 1e6
    )
    assert tiers.money_of_short(9 * start, 90) == pytest.approx(9 * one)
    spending = Spending("gpt-5.4")
    for _ in range(3):
        spending.add(start, 10)
    assert spending.describe() == (f"{3 * start:,} prompt + 30 new tokens, {3 * one:.4g} USD")
    assert spending.usage.replies == 3


def test_a_line_of_the_users_own_goes_before_the_library(own_prices):
    own_prices(
        '["mine"]\ninput = 1.0\noutput = 2.0\nas_of = 2026-01-02\n'
        '["gpt-4o-mini"]\ninput = 3.0\noutput = 4.0\nbatch = 0.25\nas_of = 2026-01-03\n'
    )
    assert price("mine", batch=True).rates == ((-1, 1.0, 2.0),)
    assert price("gpt-4o-mini").rates == ((-1, 3.0, 4.0),)
    assert price("gpt-4o-mini", batch=True).money(1_000_000, 1_000_000) == pytest.approx(1.75)
    assert price("gpt-4o").source.startswith("genai-prices")
    said = describe_estimate("mine", 1_000_000, 500_000, batch=False, at_most=False)
    assert "money: about 2.00 USD for mine, at the prices of 2026-01-02 in prefpipe/prices" in said


def test_an_estimate_is_the_sum_of_its_requests():
    total = estimate([request(400, max_new_tokens=50, samples=(0, 1)), request(8)], "gpt-4o-mini")
    assert (total.requests, total.submitted) == (2, 0)
    assert (total.prompt_tokens, total.new_tokens) == (102, 2 * 50 + 256)
    assert total.usd == pytest.approx((102 * 0.15 + 356 * 0.60) / 1e6)
    assert estimate([], "gpt-4o-mini").usd == 0
    assert estimate([request(8)], "no-such-model").usd is None


def test_tokens_and_money_for_a_person():
    assert describe_tokens("gpt-4o-mini", 10_000, 500) == (
        "10,000 prompt + 500 new tokens, 0.0018 USD"
    )
    assert describe_tokens("no-such-model", 1, 2) == "1 prompt + 2 new tokens"
    assert describe_estimate(
        "gpt-4o-mini", 2_000_000, 0, batch=True, at_most=True
    ).splitlines() == [
        "tokens: about 2,000,000 in the prompts and at most 0 new (0.8 a Chinese character, 0.25 any "
        "other)",
        "money: at most about 0.15 USD for gpt-4o-mini in batches, at the prices of "
        f"{price('gpt-4o-mini').source}; they may have changed since",
    ]
    unknown = describe_estimate("no-such-model", 1, 2, batch=False, at_most=False)
    assert unknown.endswith(
        "money: no price of no-such-model in prefpipe/prices.toml or in genai-prices"
    )
