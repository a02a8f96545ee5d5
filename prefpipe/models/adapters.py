"""PEFT's adapters: put on their base whole, and saved whole."""

from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn

from prefpipe.models.model_files import read_json

_OF_PEFT = "base_model.model."


def put_on(model: Any, folder: Path, *, merge: bool, for_training: bool) -> tuple[Any, set[str]]:
    """The model with the folder's adapter, and the names of the model's weights that it brings.

    merge: added into the weights, where its kind can be.
    """
    from peft import PeftModel
    from peft.utils import get_peft_model_state_dict

    shapes = _shapes(folder)
    config = read_json(folder / "adapter_config.json")
    kind = str(config.get("peft_type"))
    if any(word in kind for word in ("PROMPT", "PREFIX", "P_TUNING")):
        raise SystemExit(
            f"model {folder}: an adapter of kind {kind} puts tokens of its own before each text and "
            "cannot be added to the weights; take a LoRA, or a merged model"
        )
    _resize(model, shapes)
    try:
        adapted: Any = PeftModel.from_pretrained(model, str(folder), is_trainable=for_training)
        wanted = {*get_peft_model_state_dict(adapted, save_embedding_layers=False)}
        if lost := sorted(wanted - shapes.keys()):
            raise ValueError(f"{lost[0]} and {len(lost) - 1} more of its weights are missing")
        if merge and hasattr(adapted, "merge_and_unload"):
            adapted = adapted.merge_and_unload()
    except Exception as error:
        words = " ".join(str(error).split())[:150]
        raise SystemExit(
            f"model {folder}: the adapter does not fit its base: {type(error).__name__}: {words}"
        ) from error
    return adapted, {key.removeprefix(_OF_PEFT) for key in shapes}


def _shapes(folder: Path) -> dict[str, list[int]]:
    """The shape of each weight of the adapter."""
    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        raise SystemExit(
            f"model {folder}: adapter_model.safetensors is missing (no pickle is read)"
        )
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise SystemExit(f"{path}: damaged or cut: {str(error)[:150]}") from None


def _resize(model: Any, shapes: dict[str, list[int]]) -> None:
    """Give the base as many embeddings as the adapter was trained on, where it brings its own."""
    table: Any = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is table)
    rows = shapes.get(f"{_OF_PEFT}{name}.weight", [0])[0]
    rows = rows or shapes.get(f"{_OF_PEFT}{name}.lora_embedding_A", [0, 0])[-1]
    if rows and rows != table.weight.shape[0]:
        model.resize_token_embeddings(rows, mean_resizing=False)


def new_modules(model: Any) -> list[str]:
    """Names of the modules above a classifier's backbone, a pooler's too: an adapter must save them."""
    head = [
        name
        for name, module in model.named_children()
        if name != model.base_model_prefix and any(True for _ in module.parameters())
    ]
    if not head:
        raise SystemExit(
            f"{type(model).__name__}: no head found that an adapter could keep; use full"
        )
    has_pooler = isinstance(getattr(model.base_model, "pooler", None), nn.Module)
    return [*head, "pooler"] if has_pooler else head


def check_targets(model: Any, names: list[str]) -> None:
    """SystemExit where an adapter is asked for at layers that the model has not, or that are tied."""
    if names == ["all-linear"]:
        return
    modules = dict(model.named_modules())
    for name in names:
        found = [m for path, m in modules.items() if path == name or path.endswith(f".{name}")]
        if not found:
            linear = {p.rpartition(".")[2] for p, m in modules.items() if isinstance(m, nn.Linear)}
            raise SystemExit(
                f"lora_target_modules: {type(model).__name__} has no {name!r}; its linear layers are "
                f"{', '.join(sorted(linear))[:120] or 'of another class: name them'}"
            )
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        tied = ends[1] is not None and ends[0].weight is ends[1].weight
        if tied and any(module in ends for module in found):
            raise SystemExit(
                f"lora_target_modules: {name!r} has its weights in common with the other end of the "
                "model: an adapter there would be saved for one end alone; leave it out"
            )


def check_savable(model: Any) -> None:
    """SystemExit where a weight that is trained would not be among those an adapter saves."""
    from peft import PeftModel
    from peft.utils import get_peft_model_state_dict

    if not isinstance(model, PeftModel):
        return
    saved = {key.replace(".default", "") for key in get_peft_model_state_dict(model)}
    for name, weight in model.named_parameters():
        plain = name.replace(".default", "").replace(".modules_to_save", "")
        if weight.requires_grad and plain not in saved:
            raise SystemExit(f"lora: {name} would be trained and not saved; use --method full")
