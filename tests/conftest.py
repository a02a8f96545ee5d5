"""What all tests share: no network, few threads, and `--record` for the golden files."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run, however busy the machine; nothing is kept in the checkout.
settings.register_profile("prefpipe", deadline=None, derandomize=True, database=None)
settings.load_profile("prefpipe")

# Before anything imports torch or a hub client; children inherit it.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}
for name in ("PROFILE", "PREFPIPE_DATA"):  # of the one who runs the tests
    os.environ.pop(name, None)

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--record", action="store_true", help="write tests/golden/ anew; review it as a diff"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file whose one test takes minutes first, then those of many tests: a long one that begins
    last is waited for alone."""
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path.stem != "test_quiet_chains", -tests[item.path]))


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """golden(name, text): the text is that of tests/golden/<name>, or with --record becomes it."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--record"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8"), (
            f"{path}: `uv run pytest --record` if meant"
        )

    return check


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The tests' own servers only, whatever the person who runs them has set; in an empty folder."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
