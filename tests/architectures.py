"""Each architecture, in a tiny size, through sampling, scoring, ranking and the three trainers.

    uv run python -m tests.architectures                 all; writes docs/architectures.md
    uv run python -m tests.architectures qwen3 bert      these alone; prints their rows

What prefpipe computes is compared with plain transformers and TRL: a text with `generate`'s, a score
with one forward pass over what `apply_chat_template` gives, a training with TRL's own trainer on
the same tokens. A cell is `shared` (equal, texts share what they begin with), `alone` (equal, each
text read by itself), or the sentence that says why not. Models are random, and nothing is downloaded.
"""

import contextlib
import io
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from datasets import Dataset
from peft import LoraConfig
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from prefpipe import chat
from prefpipe.compare.ab_model import PairwiseModel
from prefpipe.compare.reward_model import RewardModel
from prefpipe.compare.reward_tokens import RewardFormat, RewardTokenizer
from prefpipe.llm import Failure, Request
from prefpipe.llm.local.local_engine import open_local
from prefpipe.models.adapters import new_modules
from prefpipe.models.classifiers import load_classifier
from prefpipe.models.loading import load_both, max_positions
from prefpipe.rows import Message, Preference
from prefpipe.training import ab, reward
from prefpipe.training.ab import PrefixSharedPairwiseTrainer
from prefpipe.training.dpo import PrefixSharedDPOTrainer
from prefpipe.training.reward import PrefixSharedRewardTrainer
from prefpipe.training.tokenized_pairs import PairTokenizer, TokenizedPair, to_dataset
from prefpipe.training.untrained import switch_off_dropout
from tests.examples import ROOT
from tests.tokenizers_of_chats import tokenizer_of

TABLE = ROOT / "docs" / "architectures.md"
WORDS = "the quick brown fox jumps over a lazy dog and says that two and two make four "
SIZE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
}
HEAD = {"head_dim": 8}
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
LINEAR: dict[str, Any] = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "num_hidden_layers": 4,
}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "qk_nope_head_dim": 8,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 1024, "initializer_range": 0.2}
GEMMA = {"query_pre_attn_scalar": 8, "sliding_window": 24} | HEAD

Make = Callable[..., Any]
DECODERS: dict[str, tuple[str, dict[str, Any], str]] = {
    # name: configuration, what is set in it, whose chat template
    "qwen2": ("Qwen2Config", SIZE, "qwen2"),
    "qwen3": ("Qwen3Config", SIZE | HEAD, "qwen3"),
    "qwen3 (MoE)": ("Qwen3MoeConfig", SIZE | HEAD | EXPERTS | {"num_experts": 4}, "qwen3"),
    "qwen3-next": (
        "Qwen3NextConfig",
        SIZE | HEAD | EXPERTS | LINEAR | {"num_experts": 4, "shared_expert_intermediate_size": 32},
        "qwen3",
    ),
    "qwen3.5": ("Qwen3_5TextConfig", SIZE | HEAD | LINEAR, "qwen3"),
    "r1-distill (qwen2)": ("Qwen2Config", SIZE, "r1"),
    "llama": ("LlamaConfig", SIZE, "llama3"),
    "llama, dropout": ("LlamaConfig", SIZE | {"attention_dropout": 0.5}, "llama3"),
    "llama 4": (
        "Llama4TextConfig",
        SIZE
        | HEAD
        | {
            "num_hidden_layers": 4,
            "attention_chunk_size": 24,
            "intermediate_size_mlp": 64,
            "num_local_experts": 2,
            "moe_layers": [],
        },
        "llama3",
    ),
    "mistral, window": ("MistralConfig", SIZE | HEAD | {"sliding_window": 24}, "mistral"),
    "mixtral": (
        "MixtralConfig",
        SIZE | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
        "mistral",
    ),
    "gemma": ("GemmaConfig", SIZE | HEAD, "gemma"),
    "gemma 2": (
        "Gemma2Config",
        SIZE | GEMMA | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0},
        "gemma",
    ),
    "gemma 3": ("Gemma3TextConfig", SIZE | GEMMA, "gemma"),
    "gemma 4": (
        "Gemma4TextConfig",
        SIZE
        | HEAD
        | {
            "sliding_window": 24,
            "hidden_size_per_layer_input": 8,
            "global_head_dim": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "gemma",
    ),
    "gpt-oss": (
        "GptOssConfig",
        SIZE
        | HEAD
        | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 24},
        "channels",
    ),
    "deepseek v3": ("DeepseekV3Config", SIZE | EXPERTS | LATENT, "qwen2"),
    "glm 4.5": (
        "Glm4MoeConfig",
        SIZE | HEAD | EXPERTS | {k: LATENT[k] for k in ("n_routed_experts", "n_group", "topk_group", "first_k_dense_replace")},
        "qwen2",
    ),
    "phi 3": ("Phi3Config", SIZE | {"sliding_window": None, "original_max_position_embeddings": 1024}, "qwen2"),
    "phi 3, longrope": (
        "Phi3Config",
        SIZE
        | {
            "sliding_window": None,
            "original_max_position_embeddings": 48,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 4,
                "long_factor": [4.0] * 4,
                "original_max_position_embeddings": 48,
            },
        },
        "qwen2",
    ),
    "olmo 3": ("Olmo3Config", SIZE | {"sliding_window": 24}, "qwen2"),
    "granite": (
        "GraniteConfig",
        SIZE
        | {
            "logits_scaling": 4.0,
            "residual_multiplier": 0.3,
            "embedding_multiplier": 2.0,
            "attention_multiplier": 0.2,
        },
        "qwen2",
    ),
    "cohere 2": ("Cohere2Config", SIZE | {"sliding_window": 24, "logit_scale": 0.5}, "qwen2"),
    "smollm 3": ("SmolLM3Config", SIZE | {"no_rope_layers": [1, 0]}, "qwen2"),
    "lfm 2": (
        "Lfm2Config",
        SIZE
        | {
            "num_hidden_layers": 4,
            "block_auto_adjust_ff_dim": False,
            "layer_types": ["conv", "full_attention"] * 2,
        },
        "qwen2",
    ),
    "minimax": (
        "MiniMaxConfig",
        SIZE
        | HEAD
        | {
            "num_local_experts": 4,
            "block_size": 16,
            "layer_types": ["linear_attention", "full_attention"],
        },
        "qwen2",
    ),
    "doge": ("DogeConfig", SIZE | {"keep_window_size": 24}, "qwen2"),
    "recurrent gemma": (
        "RecurrentGemmaConfig",
        SIZE | {"num_hidden_layers": 3, "attention_window_size": 24, "lru_width": 32},
        "gemma",
    ),
    "mamba": ("MambaConfig", {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 2, "initializer_range": 0.2}, "qwen2"),
    "gpt-2": ("GPT2Config", OLD, "qwen2"),
    "gpt-j": ("GPTJConfig", OLD | {"rotary_dim": 8}, "qwen2"),
    "gpt-neox": ("GPTNeoXConfig", SIZE, "qwen2"),
    "opt": ("OPTConfig", SIZE | {"ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.2}, "qwen2"),
    "falcon": ("FalconConfig", SIZE | {"num_kv_heads": 2, "new_decoder_architecture": True}, "qwen2"),
    "bloom": ("BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}, "qwen2"),
    "mpt": ("MptConfig", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 1024, "initializer_range": 0.2}, "qwen2"),
}  # fmt: skip
ENCODER: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 130,
    "initializer_range": 0.3,
}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", ENCODER),
    "roberta": ("RobertaConfig", ENCODER | {"pad_token_id": 0, "type_vocab_size": 1}),
    "distilbert": (
        "DistilBertConfig",
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 128, "initializer_range": 0.3},
    ),
    "deberta v2": (
        "DebertaV2Config",
        ENCODER | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0},
    ),
    "modernbert": ("ModernBertConfig", ENCODER | {"pad_token_id": 0}),
    "mpnet": ("MPNetConfig", ENCODER | {"pad_token_id": 1}),
    "longformer": (
        "LongformerConfig",
        ENCODER | {"pad_token_id": 0, "attention_window": [8, 8], "type_vocab_size": 1},
    ),
}  # fmt: skip
SHORT = ("qwen3", "llama 4", "gpt-oss", "lfm 2", "deberta v2")
"""What CI looks at: an architecture of each kind of difference."""

ASKED: list[list[Message]] = [
    [{"role": "user", "content": WORDS + "is that so?"}],
    [{"role": "user", "content": "2+2?"}],
    [
        {"role": "user", "content": "hello you"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": WORDS},
    ],
]
ANSWERS = ["the fox says so", "no, a dog does", WORDS]
COLUMNS = ("sampling", "scoring", "reward", "pairwise", "DPO", "reward training", "A/B training")


class Unequal(Exception):
    """Two numbers or texts that ought to be the same."""


def require_equal(
    what: str, found: Sequence[float], want: Sequence[float], tolerance: float
) -> None:
    off = max(abs(a - b) for a, b in zip(found, want, strict=True))
    if not off <= tolerance:
        raise Unequal(f"{what}: off by {off:.2g}")


# ---- models ---------------------------------------------------------------------------------------


def save_decoder(folder: Path, name: str, *, classifier: bool = False) -> None:
    kind, values, family = DECODERS[name]
    tokenizer = tokenizer_of(family)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    # not the end of turn: transformers reads a score at the last token that is none
    tokenizer.pad_token = next(t for t in tokenizer.all_special_tokens if t != tokenizer.eos_token)
    config = getattr(hf, kind)(
        vocab_size=-(-len(tokenizer) // 8) * 8,
        pad_token_id=tokenizer.pad_token_id,
        **special | values,
    )
    save(folder, config, tokenizer, classifier=classifier)


def save_encoder(folder: Path, name: str, *, classifier: bool) -> None:
    kind, values = ENCODERS[name]
    letters = [chr(c) for c in range(97, 123)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    tokenizer = hf.BertTokenizer(vocab={word: k for k, word in enumerate(words)})
    if "type_vocab_size" in values:
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    save(
        folder, getattr(hf, kind)(vocab_size=len(words), **values), tokenizer, classifier=classifier
    )


def save(folder: Path, config: Any, tokenizer: Any, *, classifier: bool) -> None:
    torch.manual_seed(0)
    auto: Any = hf.AutoModelForCausalLM
    if classifier:
        config.num_labels, auto = 1, hf.AutoModelForSequenceClassification
    elif tokenizer.chat_template is None:
        auto = hf.AutoModel
    model = auto.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms and biases as they come hide half of a fault
            parameter.data += 0.05 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def plain(folder: Path, auto: Any) -> tuple[Any, Any]:
    """The model as transformers loads it by itself, and its tokenizer."""
    loaded = auto.from_pretrained(folder, dtype=torch.float32).eval()
    return loaded, hf.AutoTokenizer.from_pretrained(folder)


def template_ids(tokenizer: Any, turns: Sequence[Any], **options: Any) -> list[int]:
    return tokenizer.apply_chat_template(list(turns), tokenize=True, return_dict=False, **options)


def with_answer(turns: Sequence[Message], answer: str) -> list[Message]:
    return [*turns, {"role": "assistant", "content": answer}]


# ---- use -----------------------------------------------------------------------------------------


def sampling(folder: Path) -> bool:
    engine = open_local(folder)
    model, _ = plain(folder, hf.AutoModelForCausalLM)
    requests = [Request(str(i), tuple(turns), max_new_tokens=12) for i, turns in enumerate(ASKED)]
    for request, result in zip(requests, engine.generate(requests), strict=True):
        ids = torch.tensor([chat.prompt_ids(engine.tokenizer, request.messages)])
        mask = torch.ones_like(ids)
        ends = sorted(engine.end_ids)
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=12, do_sample=False, eos_token_id=ends, pad_token_id=ends[0]
        )[0, ids.shape[1] :].tolist()  # fmt: skip
        text = engine.tokenizer.decode([i for i in out if i not in ends], skip_special_tokens=True)
        if isinstance(result, Failure) or result[0].text != text:
            raise Unequal(f"{result} instead of {text!r}")
    return not engine.is_plain


def scoring(folder: Path) -> bool:
    engine = open_local(folder)
    model, _ = plain(folder, hf.AutoModelForCausalLM)
    found, want = [], []
    for turns, scores in zip(ASKED, engine.score((t, ANSWERS) for t in ASKED), strict=True):
        prompt = chat.prompt_ids(engine.tokenizer, turns)
        for answer, score in zip(ANSWERS, scores, strict=True):  # pyright: ignore[reportArgumentType]
            own = chat.completion_ids(engine.tokenizer, answer)
            with torch.no_grad():
                logps = model(torch.tensor([[*prompt, *own]])).logits[0].log_softmax(-1)
            found.append(score.sum_logp)
            want.append(sum(logps[len(prompt) - 1 + i, t].item() for i, t in enumerate(own)))
    require_equal("log-probabilities", found, want, 2e-3)
    return not engine.is_plain


def rewards(folder: Path) -> bool:
    scorer = RewardModel.load(folder)
    model, tokenizer = plain(folder, hf.AutoModelForSequenceClassification)
    tokenizer.chat_template = scorer.tokenizer.chat_template  # with the run's date
    found, want = [], []
    asked: list[list[Message]] = (
        ASKED if scorer.is_causal else [[{"role": "user", "content": "is two and two four"}]]
    )
    answers = ANSWERS if scorer.is_causal else ["yes", "the dog says no"]  # in 130 positions
    for turns, scores in zip(asked, scorer.score((t, answers) for t in asked), strict=True):
        for answer, score in zip(answers, scores, strict=True):  # pyright: ignore[reportArgumentType]
            if scorer.is_causal:
                ids = template_ids(tokenizer, with_answer(turns, answer))
                inputs = {"input_ids": torch.tensor([ids])}
            else:
                inputs = dict(tokenizer(turns[0]["content"], answer, return_tensors="pt"))
                if getattr(model.config, "type_vocab_size", 0) < 2:
                    inputs.pop("token_type_ids", None)
            with torch.no_grad():
                want.append(model(**inputs).logits[0, 0].item())
            found.append(score)
    require_equal("rewards", found, want, 1e-3)
    return scorer.shares_prompts


def pairwise(folder: Path) -> bool:
    scorer = PairwiseModel.load(folder)
    model, _ = plain(folder, hf.AutoModelForCausalLM)
    found, want = [], []
    for turns in ASKED:
        rows = scorer.tokenize(turns, ANSWERS, [(0, 1), (1, 0), (1, 2)]).rows  # pyright: ignore[reportAttributeAccessIssue]
        for row, both in zip(rows, scorer.label_logps(rows), strict=True):
            with torch.no_grad():
                logps = model(torch.tensor([row])).logits[0, -1].float().log_softmax(-1)
            found += both
            want += [logps[label].item() for label in scorer.tokenize.labels]
    require_equal("log p(A), log p(B)", found, want, 1e-3)
    return scorer.shares_prompts


class StockDPOTrainer(DPOTrainer):
    """TRL's, given the token ids that it would make of a conversation."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


# ---- training ------------------------------------------------------------------------------------


def preferences() -> list[Preference]:
    return [
        Preference(
            id=f"{i}-{k}", prompt=turns, chosen=with_answer([], ANSWERS[k]),
            rejected=with_answer([], ANSWERS[(k + 1) % 3]), source="s",
        )
        for i, turns in enumerate(ASKED)
        for k in range(2)
    ]  # fmt: skip


def arguments(kind: Any, folder: Path, count: int, **more: Any) -> Any:
    """Two steps over all pairs at once, so that no order of them matters."""
    return kind(
        str(folder / "run"), per_device_train_batch_size=count, max_steps=2, learning_rate=1e-3,
        logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, bf16=False,
        disable_tqdm=True, max_length=None, seed=0, lr_scheduler_type="constant",
        activation_checkpointing=False, **more,
    )  # fmt: skip


def router_loss(trainer: Any) -> float | None:
    """Its weight: 0 where a model only seems to have one, with which TRL's trainer fails."""
    return trainer.args.router_aux_loss_coef


def losses(trainer: Any) -> list[float]:
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def kept(rows: Sequence[Any]) -> list[TokenizedPair]:
    for row in rows:
        if not isinstance(row, TokenizedPair):
            raise Unequal(str(row))
    return list(rows)


def dpo_training(folder: Path) -> bool:
    model, tokenizer = load_both(folder, for_training=True)
    tokenize = PairTokenizer(tokenizer, 1024)
    data = to_dataset(kept([tokenize(row) for row in preferences()]))
    more: dict[str, Any] = {"precompute_ref_log_probs": True, "disable_dropout": False}
    ours = PrefixSharedDPOTrainer(
        model, arguments(DPOConfig, folder, len(data), **more), data, processing_class=tokenizer
    )
    found = losses(ours)
    more["router_aux_loss_coef"] = router_loss(ours)  # TRL's fails for Doge
    stock = load_both(folder, for_training=True)[0]
    switch_off_dropout(stock)
    theirs = StockDPOTrainer(
        stock, args=arguments(DPOConfig, folder, len(data), **more),
        train_dataset=data.remove_columns("id"), processing_class=tokenizer,
    )  # fmt: skip
    require_equal("losses", found, losses(theirs), 2e-4)
    return ours.prefix_sharing


def reward_training(folder: Path, *, lora: bool = False) -> bool:
    def loaded() -> tuple[Any, Any, bool]:
        torch.manual_seed(0)
        return load_classifier(folder, for_training=True, new_head=True)[:3]

    model, tokenizer, causal = loaded()
    reader = RewardTokenizer(
        tokenizer, RewardFormat(max_positions(model), True, read_at="template_end"), causal
    )
    pairs = kept([reward.tokenize_pair(row, reader, 0.0, "additive")[0] for row in preferences()])
    data = to_dataset(pairs, "tie")
    adapter = LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", modules_to_save=new_modules(model)) if lora else None  # fmt: skip
    torch.manual_seed(1)
    ours = PrefixSharedRewardTrainer(
        model, arguments(RewardConfig, folder, len(data), disable_dropout=False), data,
        processing_class=tokenizer, prefix_sharing=causal, peft_config=adapter,
    )  # fmt: skip
    found = losses(ours)
    if lora:
        check_saved(ours.model, folder / "adapter", tokenizer)
    stock, _, _ = loaded()
    switch_off_dropout(stock)
    whole = [
        {
            "chosen_ids": [*p.prompt_ids, *p.chosen_ids],
            "rejected_ids": [*p.prompt_ids, *p.rejected_ids],
        }
        for p in pairs
    ]
    torch.manual_seed(1)
    theirs = RewardTrainer(
        stock, args=arguments(RewardConfig, folder, len(data), disable_dropout=False),
        train_dataset=Dataset.from_list(whole), processing_class=tokenizer, peft_config=adapter,
    )  # fmt: skip
    require_equal("losses", found, losses(theirs), 2e-4)
    return ours.prefix_sharing


def check_saved(model: Any, folder: Path, tokenizer: Any) -> None:
    """A saved adapter, loaded again, gives the scores of the model that was trained."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    inputs = {"input_ids": torch.arange(5, 20)[None]}
    again = load_classifier(folder)[0]
    with torch.no_grad():
        a, b = (m.eval()(**inputs).logits[0, 0].item() for m in (model, again))
    require_equal("a saved adapter's score", [b], [a], 1e-4)


def ab_training(folder: Path) -> bool:
    model, tokenizer = load_both(folder, for_training=True)
    reader = ab.PairwiseTokenizer(tokenizer, 1024)
    pairs = kept([ab.tokenize_pair(row, reader)[0] for row in preferences()])
    data = to_dataset(pairs, "tie")
    ours = PrefixSharedPairwiseTrainer(
        model, arguments(SFTConfig, folder, len(data)), data, processing_class=tokenizer,
        labels=reader.labels,
    )  # fmt: skip
    found = losses(ours)
    rows = []
    for pair in pairs:
        for turn, label in zip((pair.chosen_ids, pair.rejected_ids), reader.labels, strict=True):
            ids = [*pair.prompt_ids.tolist(), *turn.tolist(), label]
            rows.append({"input_ids": ids, "completion_mask": [0] * (len(ids) - 1) + [1]})
    stock = load_both(folder, for_training=True)[0]
    switch_off_dropout(stock)
    theirs = SFTTrainer(
        stock, args=arguments(SFTConfig, folder, len(rows), completion_only_loss=True, router_aux_loss_coef=router_loss(ours)),
        train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
    )  # fmt: skip
    require_equal("losses", found, losses(theirs), 2e-4)
    return ours.prefix_sharing


# ---- the table -----------------------------------------------------------------------------------


def cell(work: Callable[..., bool], *args: Any, **options: Any) -> str:
    """`shared` or `alone` where all is equal, else why not."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            return "shared" if work(*args, **options) else "alone"
    except SystemExit as refused:
        return str(refused)
    except Unequal as error:
        return f"UNEQUAL: {error}"
    except Exception as error:
        traceback.print_exc()
        return f"FAILS: {type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"


def row_of(name: str, folder: Path) -> dict[str, str]:
    if name in ENCODERS:
        save_encoder(folder / "base", name, classifier=False)
        save_encoder(folder / "classifier", name, classifier=True)
        return {
            "reward": cell(rewards, folder / "classifier"),
            "reward training": cell(reward_training, folder / "base"),
            "LoRA": cell(reward_training, folder / "base", lora=True),
        }
    save_decoder(folder / "base", name)
    row = {"sampling": cell(sampling, folder / "base"), "scoring": cell(scoring, folder / "base")}
    try:
        save_decoder(folder / "classifier", name, classifier=True)
        row["reward"] = cell(rewards, folder / "classifier")
    except ValueError as error:  # transformers has no such classifier
        if "Unrecognized configuration" not in str(error):
            raise
        row["reward"] = row["reward training"] = "transformers has no classifier of this kind"
    row["pairwise"] = cell(pairwise, folder / "base")
    row["DPO"] = cell(dpo_training, folder / "base")
    if "reward training" not in row:
        row["reward training"] = cell(reward_training, folder / "base")
    row["A/B training"] = cell(ab_training, folder / "base")
    return {column: row[column] for column in COLUMNS}


def rows_of(names: Sequence[str]) -> dict[str, dict[str, str]]:
    rows = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = row_of(name, Path(folder))
        print(
            f"{name:<20}",
            *(f"{column}: {value};" for column, value in rows[name].items()),
            flush=True,
        )
    return rows


def table(rows: dict[str, dict[str, str]]) -> str:
    notes: dict[str, str] = {}

    def shown(value: str) -> str:
        if value in ("shared", "alone", "-"):
            return value
        return f"({notes.setdefault(value, str(len(notes) + 1))})"

    lines = [TEXT.format(transformers=hf.__version__)]
    for title, members, columns in (
        ("Decoders", DECODERS, COLUMNS),
        ("Encoders", ENCODERS, ("reward", "reward training", "LoRA")),
    ):
        lines += [
            "",
            f"## {title}",
            "",
            f"| | {' | '.join(columns)} |",
            "|---" * (len(columns) + 1) + "|",
        ]
        for name in (n for n in members if n in rows):
            cells = (shown(rows[name].get(column, "-")) for column in columns)
            lines.append(f"| {name} | {' | '.join(cells)} |")
    if notes:
        lines += ["", *(f"{number}. {note}" for note, number in notes.items())]
    return "\n".join(lines) + "\n"


TEXT = """# Architectures

Made by `uv run python -m tests.architectures` with transformers {transformers}, on a CPU: tiny random models, each
number compared with plain transformers' or TRL's. `shared`: equal, and texts share what they begin with;
`alone`: equal, each text read by itself, which takes longer and is said on standard error. Windows and
chunks are 24 tokens there, and texts are longer."""


def main(names: Sequence[str]) -> int:
    hf.logging.set_verbosity_error()
    torch.set_num_threads(1)  # a tiny model's step is too short to be shared out
    rows = rows_of(names or [*DECODERS, *ENCODERS])
    if not names:
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(table(rows), encoding="utf-8")
    bad = [
        f"{n}: {v}"
        for n, row in rows.items()
        for v in row.values()
        if v.startswith(("UNEQUAL", "FAILS"))
    ]
    print(f"{len(bad)} of {sum(map(len, rows.values()))} cells differ", *bad, sep="\n")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
