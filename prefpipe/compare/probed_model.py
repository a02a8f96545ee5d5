"""Reward models that are a linear probe: scores off the states of a model that was never trained for it."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prefpipe.compare.reward_model import RewardFormat, RewardModel
from prefpipe.files import DataError
from prefpipe.models import probes, sharing, trees
from prefpipe.models.classifiers import load_classifier
from prefpipe.models.loading import bare_model
from prefpipe.models.packs import pad_right


@dataclass(eq=False)
class ProbedModel(RewardModel):
    """A RewardModel whose network is a backbone and whose head is a probe of it."""

    _: KW_ONLY
    probe: probes.Probe

    def __post_init__(self) -> None:
        super().__post_init__()
        self._opening = probes.turn_opening(self.tokenizer) if self.is_causal else []
        probes.cut_above(bare_model(self.model), self.probe.layers)

    @cached_property
    def shares_prompts(self) -> bool:
        """Whether it is asked to, and can: tried out on first use."""
        return self.share_prompts and self.is_causal and sharing.shares(bare_model(self.model))

    @classmethod
    def open(cls, folder: Path, **options: Any) -> "ProbedModel":
        """The probe of a folder on its base model. Raises SystemExit, DataError."""
        own = RewardFormat.load(folder)
        if own is None:
            raise DataError(f"{folder}: no {RewardFormat.file}; train the probe again")
        probe = probes.Probe.load(folder)
        model, tokenizer, is_causal, _ = load_classifier(folder, **options)
        return cls(model, tokenizer, own, is_causal, probe=probe)

    def score_rows(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """Rewards of whole rows of token ids, prompt and response together."""
        return [self.probe.score(features) for features in self.features(rows)]

    def features(self, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        """What the probe reads of whole rows of token ids: (F,) each, float32."""
        found: Any = super().score_rows(rows)
        return found

    @torch.inference_mode()
    def _shared(self, rows: list[Sequence[int]]) -> list[Any]:
        backbone: Any = bare_model(self.model).base_model
        tree = trees.tree_of(rows)
        with probes.watched(backbone, self.probe.layers) as found:
            trees.run_tree(backbone, rows)
        states = [of[0] for of in found]
        return [
            probes.features(states, probes.last_tokens(tree, k, len(row) - self._start(row)))
            for k, row in enumerate(rows)
        ]

    @torch.inference_mode()
    def _padded(self, rows: list[Sequence[int]]) -> list[Any]:
        pad: Any = self.tokenizer.pad_token_id
        ids, mask = (x.to(self.model.device) for x in pad_right(rows, pad))
        with probes.watched(self.model, self.probe.layers) as found:
            self.model(input_ids=ids, attention_mask=mask)
        return [
            probes.features([of[k] for of in found], range(self._start(row), len(row)))
            for k, row in enumerate(rows)
        ]

    def _start(self, row: Sequence[int]) -> int:
        return min(probes.turn_start(row, self._opening), len(row) - 1)
