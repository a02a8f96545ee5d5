"""Every stage on Qwen2-7B-Instruct's own config, shrunk in width: same classes, same code path.

28 layers, 7 query heads to a key-value head, untied embeddings, biases in the projections, as the
published config has them; only sizes are smaller. The weights are random, so nothing it writes can
be read: that is counted, and pairs for training are written by hand. Weights in 4-bit for sampling
(bitsandbytes has a CPU kernel), a LoRA adapter in float32 for training.
"""

import json
from pathlib import Path

import pytest

import accuracy
import dpo_training
import inference_all
import inference_best_of_n
import post_processing
import preprocess_dataset
from prefpipe.files import read_rows, write_rows
from prefpipe.rows import CleanJudgment, Item, Judgment, JudgmentPair, Message

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("qwen2-7b-narrow")
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "embedded/model")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=448,  # 3,584 / 8; bitsandbytes' CPU kernel takes multiples of 64
        intermediate_size=576,  # 18,944 / 33
        num_hidden_layers=28,
        num_attention_heads=28 // 4,  # of 64 each
        num_key_value_heads=4 // 4,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def items(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("items")
    preprocess_dataset.main(preprocess_dataset.Settings(output=folder, limit=4))
    return folder


def test_the_sampling_stages_run_in_4_bit_and_count_what_cannot_be_read(model, items, tmp_path):
    raw, name = tmp_path / "raw", str(model)
    inference_best_of_n.main(
        inference_best_of_n.Settings(
            input=items,
            output=raw / "best_of_n.jsonl",
            model=name,
            load_in_4bit=True,
            n=2,
            max_new_tokens=6,
        )
    )
    inference_all.main(
        inference_all.Settings(
            input=items, output=raw, model=name, load_in_4bit=True, max_new_tokens=6
        )
    )
    post_processing.main(
        post_processing.Settings(items=items, input=raw, output=tmp_path / "clean")
    )
    sampled = list(read_rows(raw / "best_of_n.jsonl", Judgment))
    asked = [item.id for item in read_rows(items, Item)]
    assert [(row.id, row.sample) for row in sampled] == [(id, k) for id in asked for k in (0, 1)]
    clean = list(read_rows(tmp_path / "clean/best_of_n.jsonl", CleanJudgment))
    assert len(clean) == 16
    assert all((row.verdict is None) != (row.unreadable is None) for row in clean)


def test_training_makes_an_adapter_and_accuracy_takes_it(model, items, tmp_path):
    for split in ("train", "validation"):
        pairs = [
            pair(item, k) for item in read_rows(items / f"{split}.jsonl", Item) for k in (0, 1)
        ]
        write_rows(tmp_path / f"dpo/{split}.parquet", pairs, JudgmentPair)
    tuned = tmp_path / "judge"
    dpo_training.main(
        dpo_training.Settings(
            input=tmp_path / "dpo",
            output=tuned,
            model=str(model),
            method="lora",
            learning_rate=1e-3,
            epochs=6,
            batch_pairs=4,
            reference_cache=tmp_path / "cache",
        )
    )
    assert (tuned / "adapter_model.safetensors").exists()
    accuracy.main(
        accuracy.Settings(
            base=str(model),
            tuned=str(tuned),
            items=items / "validation.jsonl",
            pairs=tmp_path / "dpo/train.parquet",
            output=tmp_path / "accuracy",
            max_new_tokens=6,
        )
    )
    report = json.loads((tmp_path / "accuracy/accuracy.json").read_text())
    assert report["judging"]["validation"]["base"]["n"] == 4
    # random weights know nothing of questions they have not seen, but learn these very pairs
    assert report["pairs"]["all"]["implicit_reward"] > 0.8


def pair(item: Item, number: int) -> JudgmentPair:
    assert item.better is not None
    says = [json.dumps({"reason": f"It is {number}.", "better_answer": k}) for k in (1, 2)]
    right, wrong = says if item.better == 1 else says[::-1]
    return JudgmentPair(
        id=f"{item.id}:hint:{number}",
        item_id=item.id,
        split=item.split,
        pair_type="hint",
        better=item.better,
        prompt=[Message(role="user", content=item.prompt)],
        chosen=[Message(role="assistant", content=right)],
        rejected=[Message(role="assistant", content=wrong)],
        chosen_sample=0,
        rejected_sample=0,
    )
