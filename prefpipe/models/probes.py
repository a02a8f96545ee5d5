"""Linear probes: a score read off the states of several layers of a model that stays as it is.

The features of a conversation are, at each of three layers in the upper half, the state of its last
token and the mean of the states of its last turn; the score is linear in them (Alain & Bengio 2016).
Nothing of the model is trained, so it is read once a conversation.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prefpipe import chat
from prefpipe.files import write_json
from prefpipe.models.attention import Segment
from prefpipe.models.model_files import PROBE, read_json
from prefpipe.models.trees import Tree

DEPTHS = (1 / 2, 2 / 3, 5 / 6)
"""Where the layers stand that are read, as shares of the model's depth."""
_WEIGHTS = "probe.safetensors"


@dataclass(frozen=True)
class Probe:
    """What is read, and its weights. F = layers x 2 x the states' size."""

    layers: tuple[int, ...]
    """1-based; ascending."""
    weight_F: Tensor
    """float32; of each layer the last token's, then the mean's."""
    bias: float

    @classmethod
    def of(cls, layers: tuple[int, ...]) -> "Probe":
        """A probe of these layers that is not fitted yet."""
        return cls(layers, torch.zeros(0), 0.0)

    def score(self, features_F: Tensor) -> float:
        return float(features_F @ self.weight_F.to(features_F.device)) + self.bias

    def save(self, folder: Path, base: str) -> None:
        """probe.safetensors, then probe.json, by which a folder is known as a probe's."""
        (folder / PROBE).unlink(missing_ok=True)
        tensors = {"weight": self.weight_F.contiguous(), "bias": torch.tensor([self.bias])}
        save_file(tensors, folder / _WEIGHTS)
        write_json(folder / PROBE, {"base_model_name_or_path": base, "layers": list(self.layers)})

    @classmethod
    def load(cls, folder: Path) -> "Probe":
        """Raises SystemExit for files that are no probe's."""
        layers: Any = read_json(folder / PROBE).get("layers")
        is_list = isinstance(layers, list) and layers and all(type(k) is int for k in layers)
        try:
            tensors = load_file(folder / _WEIGHTS)
            weight, bias = tensors["weight"], float(tensors["bias"])
            if not is_list or weight.ndim != 1 or len(weight) % (2 * len(layers)):
                raise ValueError("its layers are not those of its weights")
        except Exception as error:  # safetensors has its own kinds
            why = str(error).split("\n")[0][:150]
            raise SystemExit(
                f"{folder}: the probe cannot be read ({why}); train it again"
            ) from None
        return cls(tuple(layers), weight, bias)

    def check(self, model: Any) -> None:
        """SystemExit where this is no probe of the model: its base was another one."""
        config = model.config.get_text_config()
        fits = len(self.weight_F) == 2 * len(self.layers) * config.hidden_size
        if not fits or not 1 <= min(self.layers) <= max(self.layers) <= config.num_hidden_layers:
            raise SystemExit(
                f"model {model.name_or_path}: it is not the model that the probe was fitted to; set "
                f"base_model_name_or_path in {PROBE}"
            )


def layers_of(model: Any) -> tuple[int, ...]:
    """Which of the model's layers are read."""
    depth = len(_blocks(model)[1])
    # below the last one, which is computed at last tokens only
    return tuple(sorted({max(1, min(depth - 1, round(share * depth))) for share in DEPTHS}))


def cut_above(model: Any, layers: Sequence[int]) -> None:
    """Take away the layers that nothing is read of, but for one: the last one is computed where its own
    output is asked for only (prefpipe.models.last_layer). The model can do nothing else then."""
    owner, blocks, name = _blocks(model)
    setattr(owner, name, blocks[: max(layers) + 1])
    model.config.get_text_config().num_hidden_layers = len(getattr(owner, name))


def _blocks(model: Any) -> tuple[Any, torch.nn.ModuleList, str]:
    """The module that has the list of layers, the list, and its name."""
    depth = model.config.get_text_config().num_hidden_layers
    for owner in model.modules():
        for name, child in owner.named_children():
            if isinstance(child, torch.nn.ModuleList) and len(child) == depth:
                return owner, child, name
    raise SystemExit(
        f"model {model.name_or_path}: its layers are not found, so that no probe can read them; take "
        "--method lora"
    )


@contextmanager
def watched(model: Any, layers: Sequence[int]) -> Iterator[list[Tensor]]:
    """A list that gets these layers' outputs (B, T, H) of the forward passes inside, in their order."""
    blocks, found = _blocks(model)[1], list[Tensor]()

    def keep(_: Any, __: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    hooks = [blocks[k - 1].register_forward_hook(keep) for k in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def features(states: Sequence[Tensor], turn: Sequence[int]) -> Tensor:
    """The features (F,) of one conversation: float32. states: a layer's (N, H) each; turn: where the
    tokens of its last turn stand in them."""
    parts = [part.float() for of in states for part in (of[turn[-1]], of[[*turn]].float().mean(0))]
    return torch.cat(parts)


def last_tokens(tree: Tree, sequence: int, count: int) -> list[int]:
    """Where the sequence's last `count` tokens stand in the tree's row, in order."""
    places, segment = list[int](), tree.ends[sequence]
    while len(places) < count:
        start = max(segment.start, segment.stop - (count - len(places)))
        places[:0] = range(start, segment.stop)
        if segment.parent is None:
            break
        segment: Segment = segment.parent
    return places


def turn_opening(tokenizer: Any) -> list[int]:
    """The tokens behind which an assistant's turn begins, as far as no answer's text can change them;
    none of a template that opens no turn."""
    if not tokenizer.chat_template:
        return []
    a, b = (chat.prompt_ids(tokenizer, [{"role": "user", "content": text}]) for text in "ab")
    same = 0
    while same < min(len(a), len(b)) and a[-1 - same] == b[-1 - same]:
        same += 1
    opening = a[len(a) - same :]
    # a line end could melt into the answer's first token
    if opening and opening[-1] not in tokenizer.all_special_ids:
        opening.pop()
    return opening


def turn_start(row: Sequence[int], opening: Sequence[int]) -> int:
    """Where in a row its last turn begins, right behind the last opening; 0: there is none."""
    size = len(opening)
    for at in range(len(row) - size - 1, -1, -1) if size else ():
        if row[at] == opening[0] and [*row[at : at + size]] == [*opening]:
            return at + size
    return 0
