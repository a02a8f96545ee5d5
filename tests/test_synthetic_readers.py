"""The pairs of the synthetic path as `datasets`, TRL and our own stages read them."""

from pathlib import Path
from typing import Any

import pytest

from prefpipe.files import write_rows
from prefpipe.formats import FORMATS
from prefpipe.formats.opening import HowRead
from prefpipe.rows import Message, Preference, SyntheticPair


def preferences(path: Path, prompt: str | list[Message]) -> list[SyntheticPair]:
    def side(text: str) -> str | list[Message]:
        return text if isinstance(prompt, str) else [Message(role="assistant", content=text)]

    rows = [
        SyntheticPair(
            id=f"p{k}",
            prompt=prompt,
            chosen=side(f"good {k}"),
            rejected=side(f"bad {k}"),
            margin=1.5,
            source="synthetic",
            chosen_model="a",
            rejected_model="b",
            chosen_rating=4.5,
            rejected_rating=3.0,
            aspects=["honesty", "truthfulness"],
            chosen_ratings=[None, 4.5] if k else [4.0, 5.0],
            rejected_ratings=[3.0, 3.0],
        )
        for k in range(4)
    ]
    write_rows(path, rows, SyntheticPair)
    return rows


@pytest.mark.parametrize(
    "prompt", ["Hi", [Message(role="user", content="Hi")]], ids=["plain", "turns"]
)
def test_datasets_trl_and_our_own_stages_take_the_file_as_it_is(tmp_path, prompt):
    import datasets
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    from tests.preference_data import save_base

    rows = preferences(tmp_path / "preferences.jsonl", prompt)
    loaded = datasets.load_dataset(
        "json",
        data_files=str(tmp_path / "preferences.jsonl"),
        cache_dir=str(tmp_path / "cache"),
        split="train",
    )
    assert isinstance(loaded, datasets.Dataset) and len(loaded) == 4
    for record, row in zip(loaded, rows, strict=True):
        assert record == row.model_dump()
        (read,) = HowRead().reader(FORMATS["skywork"]).read(record)
        assert (read.id, read.margin, read.tie) == (row.id, 1.5, False)
        texts = [side if isinstance(side, str) else side[0]["content"]
                 for side in (row.chosen, row.rejected)]  # fmt: skip
        assert [read.chosen, read.rejected] == texts
        assert set(Preference.model_fields) <= set(loaded.column_names)
    arguments = DPOConfig(
        output_dir=str(tmp_path / "dpo"), max_steps=1, per_device_train_batch_size=4,
        report_to=[], use_cpu=True, bf16=False, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    trainer = DPOTrainer(
        model=str(save_base(tmp_path / "tiny")), args=arguments, train_dataset=loaded
    )
    first = trainer.train_dataset[0]  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]
    token: Any = trainer.processing_class
    assert "good 0" in token.decode(first["chosen_ids"])
    assert "bad 0" in token.decode(first["rejected_ids"])
    assert trainer.train().training_loss > 0
