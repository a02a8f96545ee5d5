from tests import campaign_load
from tests.campaign import Runner


def test_a_server_that_fails_most_replies_and_two_kills_leave_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(campaign_load, "IN_A_ROW", 2)  # the pauses of a third would be most of it
    runner = Runner(libraries=["aiohttp", "openai"])
    found = campaign_load.load("translation_server", tmp_path, 30, runner)
    assert not found["problems"]
    faults, kills = found["runs"]["faults"], found["runs"]["kills"]
    assert faults["faults"] > faults["requests"] / 2
    assert (faults["again"], kills["kills"]) == (0, 2)


def test_the_table_has_a_line_a_stage_and_says_where_the_bytes_were_not_the_same():
    run = {"seconds": 2.0, "requests": 9, "faults": 5, "kills": 0, "peak_mb": 1, "again": 0}
    stages = {
        name: {"runs": dict.fromkeys(("whole", "faults", "kills"), run), "problems": problems}
        for name, problems in (("a", []), ("b", ["faults: not the same: x"]))
    }
    lines = campaign_load.table({"rows": 8, "stages": stages}).split("\n")
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| a", "| b"]
    assert [line.split(" | ")[-1] for line in lines[2:]] == ["yes |", "no |"]
    assert lines[2].split(" | ")[2] == "4"
