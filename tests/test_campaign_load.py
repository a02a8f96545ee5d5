import pytest

from tests.campaign import Runner
from tests.campaign_load import load


@pytest.mark.parametrize("name", ["translation_server", "rank_judge_server"])
def test_a_server_that_fails_most_replies_and_two_kills_leave_the_same_bytes(name, tmp_path):
    found = load(name, tmp_path, 40, Runner(libraries=["aiohttp", "openai"]))
    assert not found["problems"]
    faults, kills = found["runs"]["faults"], found["runs"]["kills"]
    assert faults["faults"] > faults["requests"] / 2
    assert (faults["again"], kills["kills"]) == (0, 2)
