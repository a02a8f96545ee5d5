"""prefpipe.llm.batch_api.batch_submission: what may be submitted, and what it may cost."""

import pytest

from embedded.server import Server
from tests.batch_helpers import engine, request, sizes, texts

pytestmark = pytest.mark.usefixtures("no_account")


def test_the_estimate_counts_what_is_left_and_asks_nobody():
    requests = [request(i, text="x" * 400, max_new_tokens=50) for i in range(10)]
    with Server() as server:
        used = engine(server, model="gpt-4o-mini")
        before = used.estimate(requests)
        list(used.generate(requests[:4]))
    left = engine(None, model="gpt-4o-mini").estimate(requests)
    assert (before.requests, before.prompt_tokens, before.new_tokens) == (10, 1000, 500)
    assert (left.requests, left.submitted, left.prompt_tokens) == (6, 4, 600)
    # half of 0.15 and of 0.60 USD a million
    assert before.usd == pytest.approx((1000 * 0.15 + 500 * 0.60) / 1e6 / 2)
    assert engine(None, model="no-such").estimate(requests).usd is None


def test_max_cost_stops_before_a_batch_that_could_go_beyond_it():
    # a batch of 2: 200 prompt tokens and at most 2,000,000 new ones, 0.600015 USD at half price
    requests = [request(i, text=f"{i}".rjust(400), max_new_tokens=1_000_000) for i in range(6)]
    with Server(lambda body, sample: "short") as server:

        def run(max_cost):
            used = engine(server, model="gpt-4o-mini", requests=2, max_cost=max_cost)
            return texts(used.generate(requests))

        with pytest.raises(SystemExit, match="6 requests not submitted: the next batch of 2"):
            run(0.6)
        assert sizes(server) == []
        with pytest.raises(SystemExit, match=r"4 requests not submitted.*max_cost \(1\.20\)"):
            run(1.2)
        assert sizes(server) == [2]
        # The answers were short: what they really cost leaves room for the next batch.
        with pytest.raises(SystemExit, match="2 requests not submitted"):
            run(1.2)
        assert sizes(server) == [2, 2]
        assert len(run(None)) == 6
    assert sizes(server) == [2, 2, 2] and set(server.paid.values()) == {1}


def test_max_cost_counts_each_batch_of_the_folder_at_the_price_of_its_own_model():
    # 1,000,000 new tokens of gpt-4o cost 5 USD in a batch, of gpt-4o-mini 0.30
    asked = request(max_new_tokens=1_000_000)
    with Server() as server:
        engine(server, model="gpt-4o", max_cost=5.1).submit([asked])
        with pytest.raises(SystemExit, match=r"may cost 0.30 USD, and 5.00 are spent or under way"):
            engine(server, model="gpt-4o-mini", max_cost=5.1).submit([asked])
        engine(server, model="gpt-4o-mini", max_cost=5.4).submit([asked])
    assert sizes(server) == [1, 1]


def test_max_cost_without_a_price_stops_before_anything_is_sent():
    with Server() as server, pytest.raises(SystemExit, match="no price of m in prefpipe/prices"):
        list(engine(server, max_cost=1.0).generate([request()]))
    assert not server.api_calls
