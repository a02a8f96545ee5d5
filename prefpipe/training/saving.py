"""Save a trained model so that a reader finds all of it or nothing, and prove that it reloads."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefpipe.training.tokenized_pairs import TokenizedPair

Dtype = Literal["float32", "float16", "bfloat16"]

TOLERANCE: dict[Dtype, float] = {"float32": 1e-4, "float16": 0.02, "bfloat16": 0.1}
"""Nats a token that a reloaded model's mean log-probability may differ, by its weights' type."""

_OLD_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "config.json", "adapter_config.json")


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> list[str]:
    """Weights as safetensors (of a PEFT model, the adapter), configuration, tokenizer. File names.

    Written beside and renamed, the configuration last: until it stands there nobody can load the
    folder. An earlier model in it is taken away first.
    """
    saving = folder / ".saving"
    shutil.rmtree(saving, ignore_errors=True)
    model.save_pretrained(saving)
    tokenizer.save_pretrained(saving)
    (saving / "README.md").unlink(missing_ok=True)  # PEFT's blank card
    for pattern in _OLD_WEIGHTS:
        for path in folder.glob(pattern):
            path.unlink()
    files = sorted(saving.iterdir(), key=lambda p: (p.name.endswith("config.json"), p.name))
    for path in files:
        path.replace(folder / path.name)
    saving.rmdir()
    return sorted(path.name for path in files)


def mean_logps(model: torch.nn.Module, pairs: Sequence[TokenizedPair]) -> list[float]:
    """Mean log-probability a token (nats) of each chosen and rejected completion, in turn.

    A row of its own for each and plain logits: none of the code that trained is used.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    means = []
    with torch.no_grad():
        for pair in pairs:
            for completion in (pair.chosen_ids, pair.rejected_ids):
                row = [[*pair.prompt_ids, *completion]]
                ids = torch.tensor(row, dtype=torch.long, device=device)
                logits = model(input_ids=ids).logits[0, -len(completion) - 1 : -1].float()
                targets = ids[0, -len(completion) :, None]
                means.append(logits.log_softmax(-1).gather(-1, targets).mean().item())
    model.train(was_training)
    return means


def weight_dtype(model: torch.nn.Module) -> Dtype:
    """The type of the base weights (the first parameter's that is no adapter's and no integer)."""
    for name, parameter in model.named_parameters():
        if parameter.dtype.is_floating_point and "lora_" not in name:
            return str(parameter.dtype).removeprefix("torch.")  # pyright: ignore[reportReturnType]
    raise ValueError("the model has no floating-point weight")


def check_reloaded(
    expected: Sequence[float],
    reloaded: torch.nn.Module,
    pairs: Sequence[TokenizedPair],
    folder: Path,
) -> float:
    """The largest difference between expected and what the reloaded model gives (nats a token).

    expected: mean_logps of the model in memory. Raises RuntimeError where it is over TOLERANCE.
    """
    pieces = zip(expected, mean_logps(reloaded, pairs), strict=True)
    largest = max(abs(a - b) for a, b in pieces)
    allowed = TOLERANCE[weight_dtype(reloaded)]
    if not largest <= allowed:
        raise RuntimeError(
            f"{folder}: the saved model, loaded again, gives log-probabilities that differ by up "
            f"to {largest:.2g} a token from those of the model in memory (at most {allowed} is "
            "rounding): it was not saved whole. Its checkpoints are kept"
        )
    return largest
