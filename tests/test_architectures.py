"""tests.architectures in its short form: one architecture of each kind of difference."""

import pytest
import torch

from tests import architectures


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", architectures.SHORT)
def test_an_architecture_gives_what_transformers_and_trl_give(name, tmp_path):
    row = architectures.row_of(name, tmp_path)
    assert not [v for v in row.values() if v.startswith(("UNEQUAL", "FAILS"))], row


def test_a_difference_is_seen():
    """The table's tool must be able to fail."""
    with pytest.raises(architectures.Unequal, match="off by"):
        architectures.require_equal("scores", [1.0, 2.0], [1.0, 2.1], 1e-3)
    with pytest.raises(architectures.Unequal, match="off by nan"):
        architectures.require_equal("scores", [float("nan")], [1.0], 1e-3)


def test_the_table_has_every_architecture():
    text = architectures.TABLE.read_text(encoding="utf-8")
    for name in (*architectures.DECODERS, *architectures.ENCODERS):
        assert f"| {name} |" in text
    assert "UNEQUAL" not in text and "FAILS" not in text
