"""Steps rounded up to a size against steps of their own; on a GPU, recorded ones against launched ones.

Without a GPU nothing is recorded: `run` is called again where a graph would be replayed, which is
what a graph does but for its speed.
"""

import numpy as np
import pytest
import torch

from prefpipe.llm.local.local_engine import LocalEngine
from prefpipe.models.decode_graphs import DecodeGraphs, Size, rounded
from prefpipe.models.kv_store import KVStore
from tests.engine_models import make_model, make_tokenizer
from tests.test_local_engine import requests, texts

MANY = {"samples": (0, 1, 2, 3, 4), "max_new_tokens": 70, "temperature": 1.0}


@pytest.fixture
def replays(monkeypatch):
    """How often a step was replayed; recording is running."""
    count = [0]

    def record(self, run):
        def replay():
            count[0] += 1
            return run()

        return replay, run()

    def made(self, *args):
        before(self, *args)
        self.is_on = True

    before = DecodeGraphs.__init__
    monkeypatch.setattr(DecodeGraphs, "__init__", made)
    monkeypatch.setattr(DecodeGraphs, "record", record)
    return count


@pytest.mark.parametrize("shape", ["qwen2_tied", "llama_no_gqa", "mistral"])
def test_texts_of_recorded_steps_are_those_of_launched_ones(shape, replays, monkeypatch):
    """Samples end at different steps, prompts come in while others run: sizes go up and down."""
    model, tokenizer, asked = make_model(shape), make_tokenizer(), requests(12, **MANY)
    monkeypatch.setattr("prefpipe.models.decode_graphs.STEPS_BEFORE", 0)
    found = texts(LocalEngine(model, tokenizer, max_samples=24), asked)
    assert replays[0] > 50
    monkeypatch.setattr(DecodeGraphs, "step", lambda self, *numbers: None)
    assert found == texts(LocalEngine(model, tokenizer, max_samples=24), asked)


def test_a_window_that_moves_is_launched(replays, capfd):
    model, tokenizer = make_model("mistral_windowed"), make_tokenizer()
    engine = LocalEngine(model, tokenizer)
    assert not engine.is_plain
    texts(engine, requests(3, **MANY))
    assert replays[0] == 0
    assert "no CUDA graph of this model" in capfd.readouterr().err


def test_wrong_numbers_of_a_graph_are_not_used(replays, monkeypatch, capfd):
    model, tokenizer, asked = make_model(), make_tokenizer(), requests(3, **MANY)
    want = texts(LocalEngine(model, tokenizer), asked)
    monkeypatch.setattr(DecodeGraphs, "record", lambda self, run: (lambda: 2 * run(), run()))
    assert texts(LocalEngine(model, tokenizer), asked) == want
    assert "its numbers differ by 100.0%" in capfd.readouterr().err


def test_a_step_is_rounded_up_within_the_store():
    store = KVStore(1, 2, 4, torch.float32, torch.device("cpu"))
    store.reserve(slots=20, prompt_tokens=128, rows=70, new_tokens=100)
    slot = np.repeat(np.arange(17), 4)
    size = Size.of(store, slot, np.full(68, 64), np.full(17, 70))
    assert size == Size(rows=70, slots=20, width=4, prompt_tokens=128, own_tokens=100)
    few = Size.of(store, slot[:9], np.full(9, 3), np.full(3, 60))
    assert few == Size(rows=16, slots=8, width=4, prompt_tokens=64, own_tokens=64)
    assert [rounded(n) for n in (1, 8, 9, 128, 129, 511)] == [8, 8, 16, 128, 144, 512]


def test_a_store_that_is_made_anew_is_recorded_anew():
    store = KVStore(1, 2, 4, torch.float32, torch.device("cpu"))
    versions = [store.version]
    for reserve in [(2, 64, 4, 8), (2, 64, 4, 8), (3, 64, 4, 8)]:
        store.reserve(*reserve)
        versions.append(store.version)
    assert versions == [0, 1, 1, 2]
    store.shrink(1, 1)
    assert store.version == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need CUDA")
def test_graphs_of_a_gpu(monkeypatch, capfd):
    model, tokenizer = make_model().to("cuda"), make_tokenizer()  # pyright: ignore[reportArgumentType]
    asked = requests(12, **MANY)
    recorded = []
    record = DecodeGraphs.record
    monkeypatch.setattr(
        DecodeGraphs, "record", lambda self, run: recorded.append(1) or record(self, run)
    )
    found = texts(LocalEngine(model, tokenizer, max_samples=24), asked)
    assert recorded and "no CUDA graph" not in capfd.readouterr().err
    monkeypatch.setattr(DecodeGraphs, "step", lambda self, *numbers: None)
    assert found == texts(LocalEngine(model, tokenizer, max_samples=24), asked)
