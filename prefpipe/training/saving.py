"""Save a trained model so that a reader finds all of it or nothing, and prove that it reloads."""

import copy
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import deepspeed

from prefpipe.files import write_json
from prefpipe.models.loading import bare_model, load_model
from prefpipe.screen import working
from prefpipe.training import ranks
from prefpipe.training.tokenized_pairs import TokenizedPair

Dtype = Literal["float32", "float16", "bfloat16"]

TOLERANCE: dict[Dtype, float] = {"float32": 1e-4, "float16": 0.02, "bfloat16": 0.1}
"""How much a reloaded model's score may differ, by its weights' type: rounding."""

OLD_WEIGHTS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "adapter_config.json",
    "probe.json",
)
"""What an earlier model of another kind may have left in a folder."""


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
    _sort_lists(saving / "adapter_config.json")
    for pattern in OLD_WEIGHTS:
        for path in folder.glob(pattern):
            path.unlink()
    files = sorted(saving.iterdir(), key=lambda p: (p.name.endswith("config.json"), p.name))
    for path in files:
        path.replace(folder / path.name)
    saving.rmdir()
    return sorted(path.name for path in files)


def _sort_lists(path: Path) -> None:
    """Put the lists of an adapter's configuration in order: PEFT has sets, whose order is chance."""
    if path.is_file():
        own = json.loads(path.read_text(encoding="utf-8"))
        own = {k: sorted(v) if isinstance(v, list) and _is_text(v) else v for k, v in own.items()}
        write_json(path, own)


def _is_text(values: list[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def skeleton(model: Any) -> Any:
    """The model with no weights (they are on the device `meta`) and none of our changes to its forward."""
    empty: dict[int, Any] = {
        id(p): torch.nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
        for p in model.parameters()
    }
    copied = copy.deepcopy(model, empty)  # which takes these where it meets the weights
    for module in copied.modules():
        vars(module).pop("forward", None)
    return copied


def whole_model(trainer: Any) -> Any:
    """The trained model in one piece, on the main rank; the others end here.

    Where the ranks share its weights (FSDP, ZeRO-3) these are gathered into the trainer's skeleton.
    """
    if trainer.skeleton is None:
        ranks.part()
        # without autocast, in which bfloat16 training runs it: what is saved are the weights themselves
        return trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    model, device = trainer.skeleton, trainer.accelerator.device
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    ranks.part()
    deepspeed.unset_hf_deepspeed_config()  # what is loaded from here on is no part of a model
    trainer.release()  # its part of them, and the optimizer's
    model.load_state_dict({k: v.to(device) for k, v in weights.items()}, strict=False, assign=True)
    bare_model(model).tie_weights()
    if lacking := [name for name, weight in model.named_parameters() if weight.is_meta]:
        raise RuntimeError(f"the weights {lacking[0]} were not gathered; the checkpoints are kept")
    return model


def save_and_reload(
    trainer: Any,
    folder: Path,
    *,
    merge: bool,
    score: Callable[[torch.nn.Module], list[float]],
    load: Callable[..., Any] = load_model,
) -> tuple[PreTrainedModel, float]:
    """Save the trained model, load it again: the loaded one, and the largest difference of its scores.

    merge: add the adapter to its base first. score: what must come out again, score_alone for
    example. load(folder, dtype=, load_in_4bit=): the model. The trainer lets go of its own.
    Raises RuntimeError where a score differs by more than rounding (TOLERANCE).
    """
    tokenizer = trainer.processing_class
    model = whole_model(trainer)
    is_quantized = bool(getattr(model, "is_loaded_in_4bit", False))
    if merge and is_quantized:
        # The adapter is added to the full-precision base: 4-bit weights would be rounded again.
        save_model(model, tokenizer, folder)
        model, is_quantized = load(folder, dtype="bfloat16", load_in_4bit=False), False
    expected = score(model)
    if merge:
        model = model.merge_and_unload()
    with working(f"saving to {folder}"):
        save_model(model, tokenizer, folder)
    dtype = weight_dtype(model)
    del model  # memory may not hold both the trained one and the loaded one
    trainer.release()
    loaded = load(folder, dtype=dtype, load_in_4bit=is_quantized)
    return loaded, check_scores(expected, score(loaded), dtype, folder)


def score_alone(
    model: torch.nn.Module,
    pairs: Sequence[TokenizedPair],
    read: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> list[float]:
    """What `read` makes of the logits of each chosen and rejected completion, in turn.

    A row of its own for each and plain logits: none of the code that trained is used.
    read: logits (T, V) of prompt and completion, ids of the completion (C,) -> numbers.
    """
    device = next(model.parameters()).device
    model.eval()
    scores: list[float] = []
    with torch.no_grad():
        for pair in pairs:
            for completion in (pair.chosen_ids, pair.rejected_ids):
                row = [[*pair.prompt_ids, *completion]]
                ids = torch.tensor(row, dtype=torch.long, device=device)
                logits = model(input_ids=ids).logits[0]
                scores += read(logits, ids[0, -len(completion) :]).flatten().tolist()
    return scores


def mean_logp(logits_T_V: torch.Tensor, completion_C: torch.Tensor) -> torch.Tensor:
    """Mean log-probability of a completion's tokens (nats); each is predicted one place before it."""
    logps_C_V = logits_T_V[-len(completion_C) - 1 : -1].float().log_softmax(-1)
    return logps_C_V.gather(-1, completion_C[:, None]).mean()


def weight_dtype(model: torch.nn.Module) -> Dtype:
    """The type of the base weights (the first parameter's that is no adapter's and no integer)."""
    for name, parameter in model.named_parameters():
        if parameter.dtype.is_floating_point and "lora_" not in name:
            return str(parameter.dtype).removeprefix("torch.")  # pyright: ignore[reportReturnType]
    raise ValueError("the model has no floating-point weight")


def check_scores(
    expected: Sequence[float], reloaded: Sequence[float], dtype: Dtype, folder: Path
) -> float:
    """The largest difference of scores; RuntimeError where it is over TOLERANCE."""
    largest = max(abs(a - b) for a, b in zip(expected, reloaded, strict=True))
    if not largest <= TOLERANCE[dtype]:
        raise RuntimeError(
            f"{folder}: the saved model, loaded again, gives scores that differ by up to "
            f"{largest:.2g} from those of the model that was trained (at most {TOLERANCE[dtype]} is "
            "rounding): it was not saved whole, its head perhaps. The checkpoints are kept"
        )
    return largest
