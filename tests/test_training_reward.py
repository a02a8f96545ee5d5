"""prefpipe.training.reward: the loss by hand, by autograd, by TRL; packs change no number."""

import copy
import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import Qwen2Config, Qwen2ForSequenceClassification
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from prefpipe.training.reward import PrefixSharedRewardTrainer
from prefpipe.training.tokenized_pairs import to_dataset
from prefpipe.training.trainer import NotFiniteError
from tests.training_models import VOCABULARY, OrderOf, gradient_of, pairs, qwen2, tokenizer

SIZES = [5, 1, 3, 2, 4, 1]  # pairs of each prompt: 16 in all


class StockTrainer(RewardTrainer):
    """trl.RewardTrainer, its inputs being whole rows: prompt and completion."""

    ordered_as: PrefixSharedRewardTrainer | None = None
    """Whose order its rows come in; None: that of the data."""

    def _get_train_sampler(self, train_dataset=None):
        return OrderOf(self.ordered_as) if self.ordered_as else None


def classifier(seed=0, **changes):
    shape = qwen2().config.to_dict()
    made = {k: shape[k] for k in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "initializer_range", "pad_token_id",
        "eos_token_id", "bos_token_id",
    )}  # fmt: skip
    torch.manual_seed(seed)
    config = Qwen2Config(**{**made, "num_labels": 1, **changes})
    return Qwen2ForSequenceClassification(config).eval()


def config(folder, **changes):
    options = {
        "max_length": None,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 16,
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
    return RewardConfig(str(folder), **{**options, **changes})


def whole_rows(data):
    """What TRL's own data preparation makes of them."""
    return data.map(
        lambda row: {s: row["prompt_ids"] + row[s] for s in ("chosen_ids", "rejected_ids")},
        remove_columns=["prompt_ids", "id", *({"tie"} & set(data.column_names))],
    )


def ours(tmp_path, data, *, sharing=True, model=classifier, peft_config=None, **changes):
    return PrefixSharedRewardTrainer(
        model(),
        config(tmp_path, **changes),
        data,
        data,
        processing_class=tokenizer(),
        prefix_sharing=sharing,
        peft_config=peft_config,
    )


def stock(tmp_path, data, *, model=classifier, peft_config=None, **changes):
    return StockTrainer(
        model(),
        args=config(tmp_path, **changes),
        train_dataset=whole_rows(data),
        processing_class=tokenizer(),
        peft_config=peft_config,
    )


def step(trainer, count=16, micro=None):
    """Loss, metrics and gradient of one optimizer step over the first pairs, in micro-batches."""
    trainer.model.train()
    rows = [trainer.train_dataset[i] for i in range(count)]
    ends = [sum((micro or [count])[: k + 1]) for k in range(len(micro or [count]))]
    starts = [0, *ends]
    batches = [trainer.data_collator(rows[a:b]) for a, b in zip(starts, ends, strict=False)]
    trainer.current_gradient_accumulation_steps = len(batches)
    items = trainer._get_num_items_in_batch(batches, trainer.args.device)
    trainer.create_optimizer_and_scheduler(1)
    loss = sum(trainer.training_step(trainer.model, b, items).item() for b in batches)
    gradient = torch.cat(
        [p.grad.float().flatten() for p in trainer.model.parameters() if p.grad is not None]
    )
    return loss, {k: v[-1] for k, v in trainer._metrics["train"].items()}, gradient


def assert_equal_steps(a, b, tolerance=1e-5):
    assert b[0] == pytest.approx(a[0], abs=tolerance)
    names = a[1].keys() - {"num_tokens"}
    assert {n: b[1][n] for n in names} == pytest.approx({n: a[1][n] for n in names}, abs=1e-4)
    assert a[2].norm() > 1e-2
    assert (a[2] - b[2]).norm() <= tolerance * a[2].norm()


def scores(model, rows):
    """Each row alone, in a loop: (P,) chosen, (P,) rejected, with gradient."""
    return [
        torch.stack([
            model(input_ids=torch.tensor([[*p.prompt_ids, *getattr(p, side)]])).logits[0, 0]
            for p in rows
        ])
        for side in ("chosen_ids", "rejected_ids")
    ]  # fmt: skip


# ---- the loss, three ways ------------------------------------------------------------------------


def test_the_loss_is_that_of_numbers_worked_out_by_hand(tmp_path):
    """Rewards 0.5 and -0.5 with margin 0.25: -log sigmoid(0.75) = 0.3869; the second pair, -1 and 1
    with margin 0: -log sigmoid(-2) = 2.1269; centring 0.1 * ((0.5 - 0.5)^2 + (-1 + 1)^2) / 2 = 0."""
    rows = pairs([2])
    data = to_dataset(rows).add_column("margin", [0.25, 0.0])
    trainer = ours(tmp_path, data, sharing=False, center_rewards_coefficient=0.1)

    class Fixed(torch.nn.Module):
        training = True

        def forward(self, **inputs):
            return type("Out", (), {"logits": torch.tensor([[0.5], [-1.0], [-0.5], [1.0]])})

    assert isinstance(trainer.train_dataset, Dataset)
    batch = trainer.data_collator(trainer.train_dataset.to_list())
    loss = trainer.compute_loss(Fixed(), batch)
    assert loss.item() == pytest.approx((0.38687 + 2.12693) / 2, abs=1e-4)


@pytest.mark.parametrize("sharing", [True, False])
def test_the_gradient_is_that_of_autograd_on_the_formula(tmp_path, sharing):
    rows = pairs(SIZES)
    margins = [0.1 * (k % 4) for k in range(len(rows))]
    trainer = ours(
        tmp_path,
        to_dataset(rows).add_column("margin", margins),
        sharing=sharing,
        center_rewards_coefficient=0.05,
    )
    found = step(trainer)
    model = classifier()
    chosen, rejected = scores(model, rows)
    margin = torch.tensor(margins)
    loss = (
        torch.log(1 + torch.exp(-(chosen - rejected - margin))) + 0.05 * (chosen + rejected) ** 2
    ).mean()
    loss.backward()
    gradient = gradient_of(model)
    assert found[0] == pytest.approx(loss.item(), abs=1e-5)
    assert (found[2] - gradient).norm() <= 1e-5 * gradient.norm()


@pytest.mark.parametrize("options", [{}, {"center_rewards_coefficient": 0.02}])
@pytest.mark.parametrize("sharing", [True, False])
def test_loss_metrics_and_gradients_are_those_of_trl(tmp_path, sharing, options):
    rows = pairs(SIZES)
    data = to_dataset(rows)
    if options:
        data = data.add_column("margin", [0.2] * len(rows))
    assert_equal_steps(
        step(stock(tmp_path, data, **options)),
        step(ours(tmp_path, data, sharing=sharing, **options)),
    )


@pytest.mark.parametrize("sharing", [True, False])
def test_a_tie_is_half_in_each_direction(tmp_path, sharing):
    """log sigmoid by hand on the scores of rows run alone; a tie with margin 0 whatever it says."""
    rows = pairs([3, 2])
    ties = [False, True, False, True, False]
    data = to_dataset(rows).add_column("tie", ties).add_column("margin", [0.5, 9.0, 0.0, 9.0, 0.0])
    found = step(ours(tmp_path, data, sharing=sharing), count=5)
    chosen, rejected = (s.tolist() for s in scores(classifier(), rows))
    total = 0.0
    for c, r, tie, m in zip(chosen, rejected, ties, (0.5, 0, 0, 0, 0), strict=True):
        win, loss = math.log1p(math.exp(-(c - r - m))), math.log1p(math.exp(-(r - c)))
        total += (win + loss) / 2 if tie else win
    assert found[0] == pytest.approx(total / 5, abs=1e-5)


# ---- layouts and batches -------------------------------------------------------------------------


@pytest.mark.parametrize("sharing", [True, False])
def test_each_pair_weighs_the_same_in_micro_batches_of_unequal_size(tmp_path, sharing):
    data = to_dataset(pairs(SIZES))
    whole = step(ours(tmp_path, data, sharing=sharing))
    parts = step(ours(tmp_path, data, sharing=sharing), micro=SIZES)
    assert parts[0] == pytest.approx(whole[0], abs=1e-5)
    assert (parts[2] - whole[2]).norm() <= 1e-5 * whole[2].norm()
    unequal = step(stock(tmp_path, data), micro=SIZES)  # so that this can fail: TRL's differs
    assert (unequal[2] - whole[2]).norm() > 0.02 * whole[2].norm()


def test_lora_with_gradient_checkpointing_gives_the_same(tmp_path):
    data = to_dataset(pairs(SIZES))
    adapter = LoraConfig(
        task_type="SEQ_CLS", r=4, target_modules="all-linear", modules_to_save=["score"]
    )
    options = {"gradient_checkpointing": True, "peft_config": adapter}
    a = step(stock(tmp_path, data, **copy.deepcopy(options)))
    b = step(ours(tmp_path, data, **copy.deepcopy(options)))
    assert_equal_steps(a, b)


@pytest.mark.parametrize("lora", [False, True])
def test_of_the_last_layer_only_the_scored_positions_are_computed(tmp_path, lora):
    """By a hook: 16 pairs have up to 32 completions, each with one token that is scored."""
    peft_config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"]) if lora else None
    data = to_dataset(pairs(SIZES))
    trainer = ours(tmp_path, data, peft_config=peft_config)
    layers = trainer.model.get_base_model().model.layers if lora else trainer.model.model.layers
    rows: list[int] = []
    for layer in layers:
        layer.mlp.down_proj.register_forward_hook(lambda _, args, out: rows.append(out.shape[1]))
    batch = trainer.data_collator([data[i] for i in range(16)])
    step(trainer)  # the first time it runs whole, too, to be compared
    rows.clear()
    step(trainer)
    first, last = rows
    assert first == batch["attention_mask"].sum() and last == len(batch["pack_index"].unique())


def test_an_adapter_that_comes_later_is_trained_in_the_last_layer_too(tmp_path):
    data, model = to_dataset(pairs(SIZES)), classifier()
    ours(tmp_path, data, model=lambda: model)
    peft_config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    trainer = ours(tmp_path, data, model=lambda: model, peft_config=peft_config)
    trainer.model.zero_grad()
    step(trainer)
    last = trainer.model.get_base_model().model.layers[-1]
    for part in (last.self_attn.q_proj, last.mlp.down_proj):
        assert part.lora_A["default"].weight.grad.norm() > 0


def test_bf16_gives_the_same_within_its_rounding(tmp_path):
    """Ours must be about as far from fp32 as TRL's own bf16 is."""

    def prepared(trainer):
        trainer.accelerator.prepare_model(trainer.model)  # as train() does: autocast is on
        return trainer

    data = to_dataset(pairs(SIZES))
    exact = step(stock(tmp_path / "a", data))
    theirs = step(prepared(stock(tmp_path / "b", data, bf16=True)))
    mine = step(prepared(ours(tmp_path / "c", data, bf16=True)))
    assert mine[0] == pytest.approx(theirs[0], abs=0.05)
    own_error = (theirs[2] - exact[2]).norm()
    assert 0 < (mine[2] - exact[2]).norm() <= 1.5 * own_error


def test_twelve_steps_follow_the_curve_of_trl(tmp_path):
    """Loss, accuracy, margins at each step; the same order for both."""
    data = to_dataset(pairs([5, 3, 4, 1, 2, 1]))
    options = {"per_device_train_batch_size": 4, "num_train_epochs": 3, "max_grad_norm": 1.0}
    theirs, mine = stock(tmp_path, data, **options), ours(tmp_path, data, **options)
    theirs.ordered_as = mine
    curves = []
    for trainer in (theirs, mine):
        trainer.train()
        curves.append([row for row in trainer.state.log_history if "loss" in row])
    assert len(curves[0]) == len(curves[1]) == 12
    for a, b in zip(*curves, strict=True):
        names = ("loss", "grad_norm", "accuracy", "margin", "mean_reward", "learning_rate")
        assert {n: b[n] for n in names} == pytest.approx({n: a[n] for n in names}, abs=1e-3)
    assert curves[1][-1]["num_tokens"] < 0.75 * curves[0][-1]["num_tokens"]


def test_evaluation_weighs_pairs_equally_too(tmp_path):
    """5 pairs in batches of 4: a mean of the two batches' means would weigh the last one 4 times."""
    data = to_dataset(pairs([2, 3]))
    small, whole = (ours(tmp_path, data, per_device_eval_batch_size=n).evaluate() for n in (4, 8))
    for name in ("eval_loss", "eval_accuracy", "eval_margin"):
        assert small[name] == pytest.approx(whole[name], abs=1e-5)


def test_a_loss_that_is_no_number_ends_the_run_and_names_the_rows(tmp_path):
    data = to_dataset(pairs([2, 2]))
    trainer = ours(tmp_path, data, per_device_train_batch_size=2)
    trainer.model.score.weight.data[0, 5] = float("nan")
    with pytest.raises(NotFiniteError, match=r"step 1: the loss is nan in training; rows: p\d-\d"):
        trainer.train()


def test_what_trl_would_drop_is_refused(tmp_path):
    with pytest.raises(ValueError, match="max_length must be None"):
        ours(tmp_path, to_dataset(pairs([1])), max_length=1024)


def test_the_vocabulary_of_the_rows_is_the_model_s():
    assert max(max(p.prompt_ids) for p in pairs(SIZES)) < VOCABULARY
