"""prefpipe.training.ab: the loss is -log p of the label in both orders, as TRL's SFT has it."""

import copy
import logging

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch.utils.data import DataLoader
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from prefpipe.compare.ab_prompt import PairwiseTokenizer, label_ids
from prefpipe.rows import Preference, Reject
from prefpipe.training.ab import (
    PairwiseCollator,
    PrefixSharedPairwiseTrainer,
    tokenize_pair,
)
from prefpipe.training.tokenized_pairs import TokenizedPair, to_dataset
from tests.training_models import gradient_of, qwen2, tokenizer

ROWS = [
    Preference(id=f"p{k}", prompt=prompt, chosen=chosen, rejected=rejected, tie=k == 3)
    for k, (prompt, chosen, rejected) in enumerate(
        [
            ("Why is it so?", "Because.", "No idea, really none."),
            ("Why is it so?", "Because of this.", "No."),
            ("What?", "That over there", "This"),
            ("What?", "That", "This over here"),
            ("Who?", "Nobody knows", "You"),
        ]
    )
]


class StockTrainer(SFTTrainer):
    """trl.SFTTrainer, given token ids and labels as they are."""

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset


def model():
    return qwen2(vocabulary=300)


def pairs(rows=ROWS) -> list[TokenizedPair]:
    tokenize = PairwiseTokenizer(tokenizer(), 512)
    found = []
    for row in rows:
        pair, _ = tokenize_pair(row, tokenize)
        assert not isinstance(pair, Reject)
        found.append(pair)
    return found


def data(ties=None):
    return to_dataset(pairs()).add_column("tie", ties or [False] * len(ROWS))


def config(folder, **changes):
    options = {
        "max_length": None,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "seed": 3,
    }
    return SFTConfig(str(folder), **{**options, **changes})


def ours(tmp_path, sharing=True, ties=None, adapter=None, **changes):
    return PrefixSharedPairwiseTrainer(
        model(),
        config(tmp_path, **changes),
        data(ties),
        data(ties),
        processing_class=tokenizer(),
        labels=label_ids(tokenizer()),
        prefix_sharing=sharing,
        peft_config=adapter,
    )


def stock(tmp_path, adapter=None, **changes):
    """TRL's trainer on each order of each pair as a whole row, the label last."""
    a, b = label_ids(tokenizer())
    rows = [
        ([*p.prompt_ids, *rest], label)
        for p in pairs()
        for rest, label in ((p.chosen_ids, a), (p.rejected_ids, b))
    ]
    whole = Dataset.from_dict(
        {
            "input_ids": [[*map(int, ids), label] for ids, label in rows],
            "labels": [[-100] * len(ids) + [label] for ids, label in rows],
        }
    )
    return StockTrainer(
        model(), args=config(tmp_path, per_device_train_batch_size=16, **changes),
        train_dataset=whole, processing_class=tokenizer(), peft_config=adapter,
    )  # fmt: skip


def step(trainer, micro=None):
    trainer.model.train()
    rows = list(trainer.train_dataset)
    micro = micro or [len(rows)]
    ends = [sum(micro[: k + 1]) for k in range(len(micro))]
    batches = [trainer.data_collator(rows[a:b]) for a, b in zip([0, *ends], ends, strict=False)]
    trainer.current_gradient_accumulation_steps = len(batches)
    items = trainer._get_num_items_in_batch(batches, trainer.args.device)
    trainer.create_optimizer_and_scheduler(1)
    loss = sum(trainer.training_step(trainer.model, b, items).item() for b in batches)
    gradient = torch.cat(
        [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
    )
    return loss, gradient


def by_hand(ties):
    """Each row alone through the plain model; loss with gradient."""
    net, (a, b) = model(), label_ids(tokenizer())
    losses = []
    for pair, tie in zip(pairs(), ties, strict=True):
        orders = []
        for rest, label, other in ((pair.chosen_ids, a, b), (pair.rejected_ids, b, a)):
            ids = torch.tensor([[*pair.prompt_ids, *rest]])
            logp = net(input_ids=ids).logits[0, -1].log_softmax(-1)
            orders.append(-(logp[label] + logp[other]) / 2 if tie else -logp[label])
        losses.append(sum(orders) / 2)
    loss = torch.stack(losses).mean()
    loss.backward()
    return loss.item(), gradient_of(net)


@pytest.mark.parametrize("ties", [[False] * 5, [False, True, False, True, False]])
@pytest.mark.parametrize("sharing", [True, False])
def test_the_loss_is_minus_log_p_of_the_label_in_both_orders_a_tie_half_of_each(
    tmp_path, sharing, ties
):
    found, expected = step(ours(tmp_path, sharing, ties)), by_hand(ties)
    assert found[0] == pytest.approx(expected[0], abs=1e-5)
    assert (found[1] - expected[1]).norm() <= 1e-5 * expected[1].norm()


def assert_equal_steps(theirs, mine):
    assert mine[0] == pytest.approx(theirs[0], abs=1e-5)
    assert (mine[1] - theirs[1]).norm() <= 1e-5 * theirs[1].norm()


def test_it_is_the_loss_of_trl_on_whole_rows(tmp_path):
    assert_equal_steps(step(stock(tmp_path)), step(ours(tmp_path)))


def adapter_of(trainer):
    return [p for name, p in trainer.model.named_parameters() if "lora_" in name]


def test_lora_with_gradient_checkpointing_gives_the_same(tmp_path):
    adapter = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.0)
    theirs, mine = (
        side(tmp_path, adapter=copy.deepcopy(adapter), gradient_checkpointing=True)
        for side in (stock, ours)
    )
    for trainer in (theirs, mine):  # B starts as 0, and A's gradient with it
        torch.manual_seed(1)
        for parameter in adapter_of(trainer):
            torch.nn.init.normal_(parameter, std=0.1)
    found = step(theirs), step(mine)
    assert_equal_steps(*found)
    assert len(found[1][1]) == sum(p.numel() for p in adapter_of(mine))


def test_bf16_gives_the_same_within_its_rounding(tmp_path):
    """Ours must be about as far from fp32 as TRL's own bf16 is."""

    def prepared(trainer):
        trainer.accelerator.prepare_model(trainer.model)  # as train() does: autocast is on
        return trainer

    exact = step(stock(tmp_path / "a"))
    theirs = step(prepared(stock(tmp_path / "b", bf16=True)))
    mine = step(prepared(ours(tmp_path / "c", bf16=True)))
    assert mine[0] == pytest.approx(theirs[0], abs=0.05)
    assert 0 < (mine[1] - exact[1]).norm() <= 1.5 * (theirs[1] - exact[1]).norm()


def test_twenty_steps_follow_the_curve_of_trl(tmp_path):
    """All pairs in each step: the loss, the gradient and the rate, step by step."""
    curves = []
    for side in (stock, ours):
        trainer = side(tmp_path, num_train_epochs=20, max_grad_norm=1.0)
        trainer.train()
        curves.append([row for row in trainer.state.log_history if "loss" in row])
    assert len(curves[0]) == len(curves[1]) == 20
    names = ("loss", "grad_norm", "learning_rate", "mean_token_accuracy")
    for a, b in zip(*curves, strict=True):
        assert {n: b[n] for n in names} == pytest.approx({n: a[n] for n in names}, abs=1e-3)
    assert curves[1][-1]["loss"] < 0.5 * curves[1][0]["loss"]


@pytest.mark.parametrize("sharing", [True, False])
def test_each_pair_weighs_the_same_in_micro_batches_of_unequal_size(tmp_path, sharing):
    ties = [False, True, False, False, False]
    whole = step(ours(tmp_path, sharing, ties))
    parts = step(ours(tmp_path, sharing, ties), micro=[1, 3, 1])
    assert parts[0] == pytest.approx(whole[0], abs=1e-5)
    assert (parts[1] - whole[1]).norm() <= 1e-5 * whole[1].norm()


def test_both_orders_of_each_pair_are_in_the_batch_whatever_worker_makes_it():
    """No draw decides an order, so forked workers cannot draw alike."""
    a, b = label_ids(tokenizer())
    collate = PairwiseCollator(0, (a, b))
    batches = [
        list(DataLoader(data(), batch_size=2, collate_fn=collate, num_workers=workers))  # pyright: ignore
        for workers in (0, 2)
    ]
    for here, there in zip(*batches, strict=True):
        assert torch.equal(here["labels"], there["labels"]) and here["id"] == there["id"]
        labels = here["labels"][:, 1].tolist()
        assert labels.count(a) == labels.count(b) == len(here["id"]) * 2


def test_the_label_of_each_row_reaches_the_loss(tmp_path):
    """Trained until it knows them: the labels, and not their opposites, are what is learned."""
    trainer = ours(tmp_path, num_train_epochs=40, learning_rate=3e-3)
    trainer.train()
    assert isinstance(trainer.train_dataset, Dataset)
    batch = trainer.data_collator(trainer.train_dataset.to_list())
    assert trainer.evaluate()["eval_mean_token_accuracy"] > 0.99
    batch["labels"][:, 1] = sum(label_ids(tokenizer())) - batch["labels"][:, 1]
    batch["input_ids"][:, 1] = batch["labels"][:, 1]
    trainer.model.eval()
    assert trainer.compute_loss(trainer.model, batch).item() > 1


def test_the_orders_of_all_pairs_of_a_prompt_are_behind_one_copy_of_it():
    rows = data().to_list()
    batch = PairwiseCollator(0, label_ids(tokenizer()))(rows)
    whole = PairwiseCollator(0, label_ids(tokenizer()), prefix_sharing=False)(rows)
    packed = int(batch["attention_mask"].sum())
    # whole rows hold each order twice (for ties), and the label; 2 pairs share a prompt
    assert batch["pack_input_ids"].shape[0] == 3
    assert packed < 0.7 * int(whole["attention_mask"].sum()) / 2


def test_evaluation_weighs_pairs_equally_too(tmp_path):
    small, whole = (ours(tmp_path, per_device_eval_batch_size=n).evaluate() for n in (4, 8))
    assert small["eval_loss"] == pytest.approx(whole["eval_loss"], abs=1e-5)
    accuracy = "eval_mean_token_accuracy"
    assert small[accuracy] == pytest.approx(whole[accuracy], abs=1e-6)


def test_responses_of_equal_tokens_are_left_out():
    pair, _ = tokenize_pair(
        Preference(id="x", prompt="Q", chosen="same", rejected="same"),
        PairwiseTokenizer(tokenizer(), 512),
    )
    assert isinstance(pair, Reject) and pair.reason == "identical_after_tokenizing"


def test_ids_are_int32_and_the_shared_part_is_no_response():
    pair = pairs()[0]
    assert pair.prompt_ids.dtype == np.int32
    text = tokenizer().decode(pair.prompt_ids)
    assert isinstance(text, str) and text.endswith("[RESPONSE A]")


def test_a_checkpoint_with_tied_weights_is_whole_and_one_without_others_is_not(tmp_path, caplog):
    tied = qwen2(vocabulary=300, tie_word_embeddings=True)
    trainer = PrefixSharedPairwiseTrainer(
        tied, config(tmp_path), data(), processing_class=tokenizer(), labels=label_ids(tokenizer())
    )
    caplog.set_level(logging.WARNING, logger="transformers")  # another test may have set another
    weights = tied.state_dict()
    for name, is_missed in (("lm_head.weight", False), ("model.norm.weight", True)):
        del weights[name]
        trainer._issue_warnings_after_load(tied.load_state_dict(weights, strict=False))
        said = f"missing keys in the checkpoint model loaded: ['{name}']"
        assert (said in caplog.text) == is_missed
    assert "lm_head" not in caplog.text
