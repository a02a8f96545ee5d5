"""Models from a folder or the hub, whole or not at all, with dtype and device said, not guessed.

What the libraries do unasked is not done here: no weights drawn at random in place of missing ones,
no float32 on a GPU (TRL's way with a model given by name), no training on 4-bit weights on a CPU
(bitsandbytes repacks them in eval mode, after which LoRA gradients are exactly 0), no code from a
model repository, no pickled weights.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transformers.utils.logging import disable_progress_bar

from prefpipe.models.model_files import base_of, from_pretrained, is_adapter
from prefpipe.models.tokenizers import load_tokenizer, max_token_id
from prefpipe.screen import working

if TYPE_CHECKING:  # torch is loaded with the first model: a tokenizer alone does without
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

if not sys.stderr.isatty():
    disable_progress_bar()

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
Device = Literal["auto", "cuda", "mps", "cpu"]

UNLIMITED = 2**20
"""Positions of a model that has no table of them (ALiBi, a state)."""


def load_both(
    name: str | Path, **options: Any
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """The model (load_model's options) and its tokenizer, which fit each other."""
    tokenizer = load_tokenizer(name)
    model = load_model(name, **options)
    highest, rows = max_token_id(tokenizer), embedding_rows(bare_model(model))
    if highest >= rows:
        raise SystemExit(
            f"model {name}: the tokenizer has tokens up to number {highest}, the embeddings {rows} "
            "rows: they are not of one model, or the embeddings were never resized"
        )
    return model, tokenizer


def load_model(
    name: str | Path,
    *,
    dtype: Dtype = "auto",
    load_in_4bit: bool | None = None,
    device: Device = "auto",
    for_training: bool = False,
    new_head: bool = False,
    auto_class: Any = None,
    without_weights: bool = False,
    **options: Any,
) -> "PreTrainedModel":
    """A model in eval mode on one device.

    name: a folder or a hub name; a folder with a LoRA adapter stands for its base model with it,
    merged into the weights in float32, else kept beside them (trainable if for_training).
    dtype auto: float32 on the CPU, bfloat16 elsewhere.
    load_in_4bit: NF4, double quantisation, computing in bfloat16. None: on a CUDA GPU of whose free
    memory the bfloat16 weights would take more than half (4-bit saves memory, not time).
    device auto: cuda, mps or cpu, the first there is.
    new_head: what stands above the backbone may be missing, and is drawn at random (seed torch first).
    auto_class: AutoModelForCausalLM where None.
    without_weights: its modules only, on the device `meta`, which holds no number.
    options: for auto_class.from_pretrained, such as num_labels.
    Raises SystemExit with what to do where the model cannot be had or used that way.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

    auto_class = auto_class or AutoModelForCausalLM
    base, of = base_of(name)
    device = _device(device)
    is_quantized = bool(getattr(from_pretrained(AutoConfig, base, **of), "quantization_config", 0))
    if load_in_4bit is None:
        can = device == "cuda" and not is_quantized
        load_in_4bit = can and _is_tight(base, of, auto_class)
    if (load_in_4bit or is_quantized) and for_training and device != "cuda":
        words = (
            "its weights are 4-bit (or quantised otherwise) already, which" if is_quantized else ""
        )
        raise SystemExit(
            f"{name}: {words or '4-bit weights'} cannot be trained on {device} (LoRA gradients would "
            "be 0 after the first evaluation); take full weights, or train on a CUDA GPU"
        )
    if load_in_4bit and device == "mps":
        raise SystemExit(f"{name}: 4-bit needs cuda or cpu; set load_in_4bit to false")
    if dtype == "auto":
        dtype = "float32" if device == "cpu" and not load_in_4bit else "bfloat16"
    if load_in_4bit and not is_quantized:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    options |= {"dtype": getattr(torch, dtype), "device_map": {"": device}, "use_safetensors": True}
    if without_weights:
        return _skeleton(auto_class, base, of, options.get("num_labels"))
    with working(f"loading {name}"):
        loaded: Any = from_pretrained(auto_class, base, output_loading_info=True, **of, **options)
    model, report = loaded
    if model.base_model is model and hasattr(model, "model"):
        model.base_model_prefix = "model"  # Llama 4's says that its backbone has another name
    if device == "cpu":
        # The weights are the mapped file: one that is rewritten in place would change under us.
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()
    brought: set[str] = set()
    if is_adapter(name):
        from prefpipe.models.adapters import put_on

        merge = dtype == "float32" and not for_training
        model, brought = put_on(model, Path(name), merge=merge, for_training=for_training)
    _check_whole(model, name, set(report["missing_keys"]) - brought, report, new_head)
    _mend_generation_config(model)
    return model.eval()


class _OfConfig:
    """auto_class.from_config as from_pretrained, whose errors are sentences."""

    def __init__(self, auto_class: Any, config: Any) -> None:
        self._auto_class, self._config = auto_class, config

    def from_pretrained(self, _: str, **options: Any) -> Any:
        return self._auto_class.from_config(self._config, **options)


def _skeleton(auto_class: Any, base: str, of: dict[str, Any], labels: int | None = None) -> Any:
    import torch
    from transformers import AutoConfig

    config = from_pretrained(AutoConfig, base, **of)
    if labels is not None:
        config.num_labels = labels
    with torch.device("meta"):
        return from_pretrained(_OfConfig(auto_class, config), base, of=of.get("of", ""))


def _check_whole(model: Any, name: str | Path, missing: set[str], report: Any, head: bool) -> None:
    """SystemExit where a weight is missing, and so random, or no number."""
    bare = bare_model(model)
    if head:
        inside = f"{bare.base_model_prefix}."
        missing = {key for key in missing if key.startswith(inside) and ".pooler." not in key}
    if missing:
        shown = sorted(missing)
        others = f" and {len(shown) - 1} more" if len(shown) > 1 else ""
        unknown = sorted(report["unexpected_keys"])
        instead = f"; it has {unknown[0][:50]}, which the model has not" if unknown else ""
        raise SystemExit(
            f"model {name}: the weights {shown[0]}{others} are missing, and would be random "
            f"numbers{instead}; is this the whole model, and of this kind ({type(bare).__name__})?"
        )
    for key, weight in model.named_parameters():
        if weight.is_floating_point() and not weight.isfinite().all():
            raise SystemExit(
                f"model {name}: the weights {key} have values that are no number (NaN or infinite): "
                "its training diverged, or they overflowed in float16; take an earlier one"
            )


def _mend_generation_config(model: Any) -> None:
    """Make it one that can be saved: a temperature without do_sample is read, and then refused."""
    own = getattr(bare_model(model), "generation_config", None)
    if own is None:
        return
    try:
        own.validate(strict=True)
    except ValueError:
        own.do_sample = True  # what a temperature or top_p is meant for
        try:
            own.validate(strict=True)
        except ValueError:
            kept = ("eos_token_id", "bos_token_id", "pad_token_id")
            plain = type(own)(**{key: getattr(own, key) for key in kept})
            bare_model(model).generation_config = plain


def bare_model(model: Any) -> "PreTrainedModel":
    """The model inside PEFT's wrapper, where there is one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def embedding_rows(model: "PreTrainedModel") -> int:
    embeddings: Any = model.get_input_embeddings()
    return int(embeddings.weight.shape[0])


def max_positions(model: "PreTrainedModel") -> int:
    """Tokens that a row may have.

    A table with a padding row (RoBERTa, MPNet, Longformer, ...) counts positions from behind it.
    """
    import torch

    modules = ((name, m) for name, m in model.named_modules() if isinstance(m, torch.nn.Embedding))
    for name, module in modules:
        if name.endswith("position_embeddings") and module.padding_idx is not None:
            return module.num_embeddings - module.padding_idx - 1
    config = model.config.get_text_config()
    known = (getattr(config, key, None) for key in ("max_position_embeddings", "max_seq_len"))
    return next((limit for limit in known if isinstance(limit, int) and limit > 0), UNLIMITED)


def _device(device: Device) -> Device:
    import torch

    is_there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    there: list[Device] = [*(d for d in ("cuda", "mps") if is_there[d]()), "cpu"]
    if device == "auto":
        return there[0]
    if device not in there:
        raise SystemExit(f"device {device}: not on this machine; set device to auto or cpu")
    return device


def _is_tight(base: str, of: dict[str, Any], auto_class: Any) -> bool:
    """Whether bfloat16 weights take more than half of the GPU's free memory."""
    import torch

    model = _skeleton(auto_class, base, of)
    return 2 * model.num_parameters() > torch.cuda.mem_get_info()[0] / 2
