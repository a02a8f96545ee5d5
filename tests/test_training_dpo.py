"""prefpipe.training.dpo: the same numbers as trl.DPOTrainer's, whatever the layout and batches."""

import copy
import math

import pytest
import torch
from peft import LoraConfig
from transformers.integrations import deepspeed
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from prefpipe.models.sharing import shares
from prefpipe.training.dpo import PrefixSharedDPOTrainer, ReferenceCache, weights_are_whole
from prefpipe.training.tokenized_pairs import to_dataset
from prefpipe.training.trainer import NotFiniteError
from tests.training_models import VOCABULARY, OrderOf, pairs, qwen2, tokenizer

SIZES = [5, 1, 3, 2, 4, 1]  # pairs of each prompt: 16 in all
LOSSES = {
    "sigmoid": {"loss_type": ["sigmoid"]},
    "ipo": {"loss_type": ["ipo"]},
    "sigmoid+sft": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]},
    "apo_zero": {"loss_type": ["apo_zero"]},
}


class StockTrainer(DPOTrainer):
    """trl.DPOTrainer, given token ids as they are."""

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset


def config(folder, **changes):
    return DPOConfig(
        str(folder),
        **{
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
            "precompute_ref_log_probs": True,
            "seed": 3,
            **changes,
        },
    )


def moved(model, scale=0.05):
    """The policy some way off its reference: at the start every loss is the same constant."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
                parameter.add_(scale * noise.to(parameter))


def step(trainer, count=16, micro=None):
    """Loss, metrics and gradient of one optimizer step over the data set's first pairs."""
    moved(trainer.model)
    trainer.model.train()
    rows = [trainer.train_dataset[i] for i in range(count)]
    micro = micro or [count]
    ends = [sum(micro[: i + 1]) for i in range(len(micro))]
    batches = [
        trainer.data_collator(rows[end - size : end]) for end, size in zip(ends, micro, strict=True)
    ]
    trainer.current_gradient_accumulation_steps = len(batches)
    items = trainer._get_num_items_in_batch(batches, trainer.args.device)
    trainer.create_optimizer_and_scheduler(1)
    loss = sum(trainer.training_step(trainer.model, batch, items).item() for batch in batches)
    gradient = torch.cat(
        [p.grad.float().flatten() for p in trainer.model.parameters() if p.grad is not None]
    )
    metrics = {k: v[-1] for k, v in trainer._metrics["train"].items() if k != "num_tokens"}
    return loss, metrics, gradient


def trainers(tmp_path, data, model=qwen2, stock_changes=None, peft_config=None, **changes):
    """TRL's trainer and ours on equal models and data."""
    tok = tokenizer()
    kwargs = {"processing_class": tok, "peft_config": peft_config}
    stock = StockTrainer(
        model(), args=config(tmp_path / "a", **changes), train_dataset=data, **kwargs
    )
    ours = PrefixSharedDPOTrainer(
        model(), config(tmp_path / "b", **changes), data, **copy.deepcopy(kwargs)
    )
    return stock, ours


def assert_equal_steps(stock, ours, atol=1e-4, gradient=1e-5):
    assert ours[0] == pytest.approx(stock[0], abs=atol, rel=atol)
    assert ours[1] == pytest.approx(stock[1], abs=atol, rel=atol)
    assert stock[2].norm() > 1e-3
    assert (ours[2] - stock[2]).norm() <= gradient * stock[2].norm()


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_metrics_and_gradients_are_those_of_trl(tmp_path, loss):
    data = to_dataset(pairs(SIZES))
    stock, ours = trainers(tmp_path, data, **LOSSES[loss])
    for column in ("ref_chosen_logps", "ref_rejected_logps"):
        assert ours.train_dataset[column][:] == pytest.approx(
            stock.train_dataset[column][:], abs=1e-4
        )
    assert_equal_steps(step(stock), step(ours))


def test_the_reference_may_also_be_run_beside_the_policy(tmp_path):
    """With an adapter the reference is the base model, run in each step on the same packs."""
    data = to_dataset(pairs(SIZES))
    adapter = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.0)
    stock, ours = trainers(tmp_path, data, peft_config=adapter, precompute_ref_log_probs=False)
    assert_equal_steps(step(stock), step(ours))


@pytest.mark.parametrize("loss", LOSSES)
def test_lora_with_gradient_checkpointing_gives_the_same(tmp_path, loss):
    data = to_dataset(pairs(SIZES))
    adapter = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.0)
    options = {**LOSSES[loss], "gradient_checkpointing": True}
    stock, ours = trainers(tmp_path, data, peft_config=adapter, **options)
    stock_step, our_step = step(stock), step(ours)
    assert_equal_steps(stock_step, our_step)
    adapter_size = sum(p.numel() for n, p in ours.model.named_parameters() if "lora_" in n)
    assert len(our_step[2]) == adapter_size  # nothing but the adapter got a gradient


@pytest.mark.parametrize("loss", LOSSES)
def test_each_pair_weighs_the_same_in_micro_batches_of_unequal_groups(tmp_path, loss):
    """Six micro-batches of 5, 1, 3, 2, 4, 1 pairs give the step of TRL's one batch of 16."""
    data = to_dataset(pairs(SIZES))
    stock, ours = trainers(tmp_path, data, **LOSSES[loss])
    whole = step(stock)
    loss_value, _, gradient = step(ours, micro=SIZES)
    assert loss_value == pytest.approx(whole[0], abs=1e-5)
    assert (gradient - whole[2]).norm() <= 1e-5 * whole[2].norm()


def test_trl_weighs_them_unequally(tmp_path):
    """So that the test above can fail: the stock trainer's step differs."""
    data = to_dataset(pairs(SIZES))
    whole = step(trainers(tmp_path, data)[0])
    in_parts = step(trainers(tmp_path, data)[0], micro=SIZES)
    assert (in_parts[2] - whole[2]).norm() > 0.05 * whole[2].norm()


def test_without_prefix_sharing_pairs_weigh_the_same_too(tmp_path):
    data = to_dataset(pairs(SIZES))
    whole = step(trainers(tmp_path, data)[0])
    off = PrefixSharedDPOTrainer(
        qwen2(), config(tmp_path), data, processing_class=tokenizer(), prefix_sharing=False
    )
    loss_value, _, gradient = step(off, micro=SIZES)
    assert loss_value == pytest.approx(whole[0], abs=1e-5)
    assert (gradient - whole[2]).norm() <= 1e-5 * whole[2].norm()


def test_bf16_gives_the_same_within_its_rounding(tmp_path):
    """Ours must be about as far from fp32 as TRL's own bf16 is; 3 decimal digits each."""
    data = to_dataset(pairs(SIZES))
    exact = step(trainers(tmp_path, data)[0])
    stock, ours = trainers(tmp_path, data, bf16=True)
    stock_step, our_step = step(stock), step(ours)
    assert_equal_steps(stock_step, our_step, atol=0.05, gradient=0.05)
    own_error = (stock_step[2] - exact[2]).norm()
    assert 0 < (our_step[2] - exact[2]).norm() <= 1.5 * own_error


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_other_architectures_and_attention_implementations(tmp_path, kind, implementation):
    import transformers

    shape = {k: getattr(qwen2().config, k) for k in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "initializer_range", "eos_token_id",
        "pad_token_id",
    )}  # fmt: skip

    def model():
        name = kind.capitalize()
        made = getattr(transformers, f"{name}Config")(**shape, attn_implementation=implementation)
        torch.manual_seed(0)
        return getattr(transformers, f"{name}ForCausalLM")(made).eval()

    data = to_dataset(pairs(SIZES))
    stock, ours = trainers(tmp_path, data, model=model)
    assert_equal_steps(step(stock), step(ours))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention's backward needs CUDA")
@pytest.mark.parametrize("implementation", ["sdpa", "flex_attention"])
def test_on_cuda_with_flex_attention(tmp_path, implementation):
    """Heads of 16: FlexAttention takes no narrower ones."""

    def model(implementation):
        made = qwen2(hidden_size=64, attn_implementation=implementation)
        return made.to("cuda")  # pyright: ignore[reportArgumentType]

    data = to_dataset(pairs(SIZES))
    options = config(tmp_path, use_cpu=False)
    tok = tokenizer()
    stock = StockTrainer(model("sdpa"), args=options, train_dataset=data, processing_class=tok)
    ours = PrefixSharedDPOTrainer(model(implementation), options, data, processing_class=tok)
    assert_equal_steps(step(stock), step(ours), atol=1e-3, gradient=1e-3)


def test_pairs_longer_than_a_sliding_window_are_trained_one_by_one(tmp_path, capfd):
    from transformers import MistralConfig, MistralForCausalLM

    shape = MistralConfig(
        vocab_size=97, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, sliding_window=24, pad_token_id=0,
    )  # fmt: skip
    trainer = PrefixSharedDPOTrainer(
        MistralForCausalLM(shape), config(tmp_path), to_dataset(pairs([2])),
        processing_class=tokenizer(),
    )  # fmt: skip
    assert not trainer.prefix_sharing
    assert "longer than its window of 24" in capfd.readouterr().err


def test_twenty_steps_follow_the_curve_of_trl(tmp_path):
    """40 pairs in batches of 4 x 2: 5 steps an epoch, 4 epochs; the same order for both."""
    data = to_dataset(pairs([5, 3, 4, 1, 2, 5, 5, 3, 5, 4, 3]))
    assert len(data) == 40
    options = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 4,
        "lr_scheduler_type": "cosine",
        "loss_type": ["sigmoid", "sft"],
        "loss_weights": [1.0, 0.0],  # TRL's SFT term is weighed by micro-batch, so off here
    }
    stock, ours = trainers(tmp_path, data, **options)
    stock._get_train_sampler = lambda train_dataset=None: OrderOf(ours)
    stock.train()
    ours.train()
    curves = [
        [row for row in trainer.state.log_history if "loss" in row] for trainer in (stock, ours)
    ]
    assert len(curves[0]) == len(curves[1]) == 20
    assert curves[0][0]["rewards/margins"] == pytest.approx(0, abs=1e-6)
    assert curves[0][-1]["rewards/margins"] > 0.5
    for theirs, mine in zip(*curves, strict=True):
        # In step 1 policy and reference are one: which reward is the higher one is rounding.
        skipped = {"num_tokens"} | ({"rewards/accuracies"} if theirs["step"] == 1 else set())
        expected = {name: theirs[name] for name in theirs.keys() - skipped}
        found = {name: mine[name] for name in mine.keys() - skipped}
        assert found == pytest.approx(expected, abs=1e-3, rel=1e-3)
    # Tokens through the model, which TRL counts too: fewer than half.
    assert curves[1][-1]["num_tokens"] < 0.5 * curves[0][-1]["num_tokens"]


def test_each_unique_completion_goes_through_the_reference_once_and_is_kept(tmp_path):
    rows = pairs([5, 2, 3])
    unique = {(p.prompt_ids.tobytes(), c.tobytes()) for p in rows for c in (p.chosen_ids, p.rejected_ids)}  # fmt: skip
    assert len(unique) < 2 * len(rows)

    def run():
        model = qwen2()
        assert shares(model)  # tried out here, so that those passes are not counted
        seen = []
        model.model.layers[0].register_forward_pre_hook(
            lambda _, args: seen.append(args[0].shape[1])
        )
        trainer = PrefixSharedDPOTrainer(
            model, config(tmp_path), to_dataset(rows), processing_class=tokenizer(),
            reference_cache=tmp_path / "cache",
        )  # fmt: skip
        return seen, trainer.train_dataset["ref_chosen_logps"][:]

    first, values = run()
    (file,) = (tmp_path / "cache").iterdir()
    assert first and len(file.read_text().splitlines()) == len(unique)
    again, same_values = run()
    assert not again and same_values == values
    file.write_bytes(file.read_bytes()[:-5])  # a kill in the last write
    third, same_values = run()
    assert len(third) == 1 and same_values == pytest.approx(values, abs=1e-4)
    assert len(file.read_text().splitlines()) == len(unique)


def test_another_model_finds_nothing_in_the_cache(tmp_path):
    cache = ReferenceCache(tmp_path, "model a")
    cache.add([(cache.key([1, 2], [3]), -0.5)])
    assert cache.key([1], [2, 3]) not in ReferenceCache(tmp_path, "model a")
    assert ReferenceCache(tmp_path, "model a")[cache.key([1, 2], [3])] == -0.5
    assert cache.key([1, 2], [3]) not in ReferenceCache(tmp_path, "model b")


def test_a_loss_that_is_no_number_ends_the_run_and_names_the_rows(tmp_path):
    rows = pairs([2, 2])
    trainer = PrefixSharedDPOTrainer(
        qwen2(), config(tmp_path, per_device_train_batch_size=2), to_dataset(rows),
        processing_class=tokenizer(),
    )  # fmt: skip
    trainer.model.lm_head.weight.data[5] = float("nan")
    with pytest.raises(
        NotFiniteError, match=r"step 1: the loss is nan in training; rows: p\d-\d, p"
    ):
        trainer.train()


def test_what_trl_would_cut_is_refused(tmp_path):
    with pytest.raises(ValueError, match="max_length must be None"):
        PrefixSharedDPOTrainer(
            qwen2(), config(tmp_path, max_length=1024), to_dataset(pairs([1])),
            processing_class=tokenizer(),
        )  # fmt: skip


def test_evaluation_weighs_pairs_equally_too(tmp_path):
    """5 pairs in batches of 4: the mean of the two batches' means would weigh the last one 4 times."""
    data = to_dataset(pairs([2, 3]))
    small, whole = (
        PrefixSharedDPOTrainer(
            qwen2(), config(tmp_path, per_device_eval_batch_size=size), data, data,
            processing_class=tokenizer(),
        )
        for size in (4, 8)
    )  # fmt: skip
    for trainer in (small, whole):
        moved(trainer.model)
    in_parts, at_once = small.evaluate(), whole.evaluate()
    for name in (
        "eval_loss",
        "eval_rewards/margins",
        "eval_rewards/accuracies",
        "eval_logps/chosen",
    ):
        assert in_parts[name] == pytest.approx(at_once[name], abs=1e-4)
    assert in_parts["eval_rewards/margins"] != 0


def first_loss(tmp_path, model, data, **options) -> float:
    trainer = PrefixSharedDPOTrainer(
        model, config(tmp_path, max_steps=1, logging_steps=1), data, processing_class=tokenizer(),
        **options,
    )  # fmt: skip
    trainer.train()
    return next(row["loss"] for row in trainer.state.log_history if "loss" in row)


def opt():
    """Its dropout is a function's argument, no module."""
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=VOCABULARY, hidden_size=32, ffn_dim=32, num_hidden_layers=1, dropout=0.5,
            num_attention_heads=2, word_embed_proj_dim=32, max_position_embeddings=128, init_std=0.3,
        )
    )  # fmt: skip


@pytest.mark.parametrize("sharing", [True, False])
@pytest.mark.parametrize("model", [lambda: qwen2(attention_dropout=0.5), opt], ids=["qwen2", "opt"])
def test_no_dropout_of_the_base_makes_the_policy_differ_from_its_reference(
    tmp_path, model, sharing
):
    loss = first_loss(tmp_path, model(), to_dataset(pairs([3, 2])), prefix_sharing=sharing)
    assert loss == pytest.approx(math.log(2), abs=1e-4)


def test_the_same_weights_under_another_configuration_have_a_reference_of_their_own(tmp_path):
    data = to_dataset(pairs([3, 2]))
    for theta in (10000.0, 100.0):
        rope = {"rope_type": "default", "rope_theta": theta}
        loss = first_loss(
            tmp_path, qwen2(rope_parameters=rope), data, reference_cache=tmp_path / "cache"
        )
        assert loss == pytest.approx(math.log(2), abs=1e-4)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_damaged_cache_is_named(tmp_path):
    cache = ReferenceCache(tmp_path, "model a")
    cache.add([(cache.key([1, 2], [3]), -0.5)])
    (path,) = tmp_path.iterdir()
    for damage in ("nonsense\n", "[1]\n", '["a", "b"]\n'):
        path.write_text(damage)
        with pytest.raises(SystemExit, match=r"damaged; delete it"):
            ReferenceCache(tmp_path, "model a")


def test_before_the_ranks_share_weights_none_is_taken_for_a_shared_one():
    """TRL asks transformers, which knows from the first that ZeRO-3 is wanted (tests.distributed runs it)."""

    class Told:
        def is_zero3(self) -> bool:
            return True

    told = Told()
    deepspeed.set_hf_deepspeed_config(told)
    try:
        with weights_are_whole():
            assert not deepspeed.is_deepspeed_zero3_enabled()
        assert deepspeed.is_deepspeed_zero3_enabled()
    finally:
        deepspeed.unset_hf_deepspeed_config()
