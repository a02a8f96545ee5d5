"""Models and tokenizers from a folder or the hub, with the dtype and device said, not guessed.

What the libraries do unasked is not done here: no float32 on a GPU (TRL's way with a model given by
name), no training on 4-bit weights on a CPU (bitsandbytes repacks them in eval mode, after which
LoRA gradients are exactly 0), no code from a model repository, no pickled weights.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

if TYPE_CHECKING:  # torch is loaded with the first model: a tokenizer alone does without
    from transformers import PreTrainedModel

if not sys.stderr.isatty():
    disable_progress_bar()

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
Device = Literal["auto", "cuda", "mps", "cpu"]

_PAD_TOKENS = ("<|endoftext|>", "<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<unk>")
"""Special tokens that can pad: no chat template ends a turn with one. In this order."""


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """A tokenizer that has a pad token and no length limit of its own.

    Where the model brings no pad token, it is a special token that its vocabulary already has and
    that does not end a turn, else EOS (the embeddings keep their size). A pad token is only ever
    what fills a batch; nothing is masked by comparing ids with it.
    """
    has_own = (Path(name) / "tokenizer_config.json").is_file()  # an adapter's folder may, too
    source = str(name) if has_own else _base_name(name)
    tokenizer = _from_pretrained(_tokenizer_class(source), source)
    if tokenizer.pad_token is None:
        known, eos = tokenizer.get_vocab(), tokenizer.eos_token
        tokenizer.pad_token = next((t for t in _PAD_TOKENS if t in known and t != eos), eos)
    if tokenizer.pad_token is None:
        raise SystemExit(f"{name}: the tokenizer has neither a pad nor an EOS token; set one in it")
    return tokenizer


def load_model(
    name: str | Path,
    *,
    dtype: Dtype = "auto",
    load_in_4bit: bool | None = None,
    device: Device = "auto",
    for_training: bool = False,
    auto_class: Any = None,
    **options: Any,
) -> "PreTrainedModel":
    """A model in eval mode on one device.

    name: a folder or a hub name; a folder with a LoRA adapter stands for its base model with it,
    merged into the weights in float32, else kept beside them (trainable if for_training).
    dtype auto: float32 on the CPU, bfloat16 elsewhere.
    load_in_4bit: NF4, double quantisation, computing in bfloat16. None: on a CUDA GPU of whose free
    memory the bfloat16 weights would take more than half (4-bit saves memory, not time).
    device auto: cuda, mps or cpu, the first there is.
    auto_class: AutoModelForCausalLM where None.
    options: for auto_class.from_pretrained, such as num_labels.
    Raises SystemExit with what to do where the model cannot be had or used that way.
    """
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    auto_class = auto_class or AutoModelForCausalLM
    base = _base_name(name)
    device = _device(device)
    if load_in_4bit is None:
        load_in_4bit = device == "cuda" and not for_training and _is_tight(base, auto_class)
    if load_in_4bit and for_training and device != "cuda":
        raise SystemExit(
            f"{name}: 4-bit weights cannot be trained on {device} (LoRA gradients would be 0 after "
            "the first evaluation); set load_in_4bit to false, or train on a CUDA GPU"
        )
    if load_in_4bit and device == "mps":
        raise SystemExit(f"{name}: 4-bit needs cuda or cpu; set load_in_4bit to false")
    if dtype == "auto":
        dtype = "float32" if device == "cpu" and not load_in_4bit else "bfloat16"
    if load_in_4bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    options |= {"dtype": getattr(torch, dtype), "device_map": {"": device}, "use_safetensors": True}
    model = _from_pretrained(auto_class, base, **options)
    if device == "cpu":
        # The weights are the mapped file: one that is rewritten in place would change under us.
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()
    if _is_adapter(name):
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(name), is_trainable=for_training)
        if dtype == "float32" and not for_training:
            model = model.merge_and_unload()  # pyright: ignore[reportCallIssue]
    return model.eval()  # pyright: ignore[reportReturnType]


def bare_model(model: Any) -> "PreTrainedModel":
    """The model inside PEFT's wrapper, where there is one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def max_positions(model: "PreTrainedModel") -> int:
    """Tokens that a row may have. RoBERTa's first positions are not for tokens."""
    config = model.config.get_text_config()
    if config.model_type in ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl"):
        return config.max_position_embeddings - config.pad_token_id - 1
    return config.max_position_embeddings


def _from_pretrained(auto_class: Any, name: str, **options: Any) -> Any:
    try:
        return auto_class.from_pretrained(name, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        if not Path(name).is_dir() and "couldn't connect" in first:
            first = "no such folder, and the model hub cannot be reached; give a folder's path"
        elif not Path(name).exists() and "Repo id must" in first:
            first = "no such folder, nor is it a model's name on the hub"
        raise SystemExit(f"model {name}: {first}") from error


def _tokenizer_class(name: str) -> Any:
    """AutoTokenizer, but for a folder whose tokenizer is of no model's class.

    Of a Qwen2 model AutoTokenizer makes a Qwen2Tokenizer whatever the folder says, and splits text
    by its rules instead of by those in tokenizer.json.
    """
    path = Path(name) / "tokenizer_config.json"
    own = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    plain = own.get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizerFast")
    return PreTrainedTokenizerFast if plain else AutoTokenizer


def _is_adapter(name: str | Path) -> bool:
    return (Path(name) / "adapter_config.json").is_file()


def _base_name(name: str | Path) -> str:
    """What to load first: an adapter's base model, else the model itself."""
    if not _is_adapter(name):
        return str(name)
    from peft import PeftConfig

    base = PeftConfig.from_pretrained(str(name)).base_model_name_or_path
    if not base:
        raise SystemExit(f"{name}/adapter_config.json: base_model_name_or_path is empty; set it")
    return base


def _device(device: Device) -> Device:
    import torch

    is_there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    there: list[Device] = [*(d for d in ("cuda", "mps") if is_there[d]()), "cpu"]
    if device == "auto":
        return there[0]
    if device not in there:
        raise SystemExit(f"device {device}: not on this machine; set device to auto or cpu")
    return device


def _is_tight(name: str, auto_class: Any) -> bool:
    """Whether bfloat16 weights take more than half of the GPU's free memory."""
    import torch
    from transformers import AutoConfig

    config = _from_pretrained(AutoConfig, name)
    with torch.device("meta"):
        model = auto_class.from_config(config)
    return 2 * model.num_parameters() > torch.cuda.mem_get_info()[0] / 2
