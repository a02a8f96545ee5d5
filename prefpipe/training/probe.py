"""A reward model's linear probe, fitted: logistic regression on what frozen layers say of both answers.

sigmoid(w . (f(chosen) - f(rejected))) is the probability that chosen is better: Bradley & Terry's model
with features in place of a network, and convex. How much w is held back (L2) is chosen by
cross-validation over questions of the training pairs, so the held-out ones choose nothing.
"""

import hashlib
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import torch

from prefpipe.compare.reward_model import ProbedModel
from prefpipe.compare.reward_tokens import RewardFormat
from prefpipe.files import DryRunEnd, Plan, Run, difference, write_json
from prefpipe.models.model_files import read_json
from prefpipe.models.probes import Probe, layers_of
from prefpipe.models.tokenizers import load_tokenizer
from prefpipe.screen import progress
from prefpipe.training import ranks
from prefpipe.training.preferences import TrainingPairs
from prefpipe.training.reward import MarginAs
from prefpipe.training.saving import OLD_WEIGHTS, check_scores, weight_dtype
from prefpipe.training.tokenized_pairs import TokenizedPair

MOST_PAIRS = 20_000
"""Training pairs that are used at most: features of a 7B model take 100 kB a pair."""
_PART = 128
"""Pairs whose features are kept together: so many are read again after a kill, at most."""
_FOLDS = 5
_GRID = tuple(10 ** (k / 2) for k in range(-10, 1))
"""Inverse strengths of L2, on features of unit size: 1e-5 to 1."""
_FEW = 10 ** (-3.5)
"""Where there are too few questions to choose by."""


class KeptFeatures:
    """Features of pairs, in files of _PART pairs each, so that a stopped run goes on from them.

    Exits with a sentence where the folder holds those of other settings or input.
    """

    def __init__(
        self, model_folder: Path, mark: Mapping[str, str], *, overwrite: bool, looks_only: bool
    ) -> None:
        """looks_only: of a dry run, which takes nothing away."""
        self.folder = model_folder / "checkpoints"
        owner = self.folder / "features.json"
        if overwrite and not looks_only:
            shutil.rmtree(self.folder, ignore_errors=True)
        if owner.is_file():
            before = read_json(owner)
            if before != dict(mark):
                raise SystemExit(
                    f"{self.folder}: a stopped run with other settings or input "
                    f"({difference(before, dict(mark))}); --overwrite starts anew"
                )
        elif others := sorted(self.folder.glob("checkpoint-*")):
            raise SystemExit(
                f"{self.folder}: a stopped run with another method ({others[0].name}); --overwrite starts anew"
            )
        elif not looks_only:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(owner, dict(mark))

    @property
    def done(self) -> int:
        """Pairs whose features are kept."""
        return _PART * len(list(self.folder.glob("*.npy")))

    def read(self, model: ProbedModel, pairs: Sequence[TokenizedPair]) -> tuple[Any, Any]:
        """f(chosen) - f(rejected) of each pair (N, F), and the mean over all features (F,); float32."""
        parts = [
            pairs[start : start + _PART]
            for start in range(0, len(pairs), _PART)
        ]  # fmt: skip
        steps: Any = progress(parts, len(parts), f"features ({_PART} pairs each)")
        found = [
            self._part(model, part, self.folder / f"{k:08}.npy") for k, part in enumerate(steps)
        ]
        both = np.concatenate(found)  # (N, 2, F)
        return both[:, 0] - both[:, 1], both.mean((0, 1))

    def _part(self, model: ProbedModel, pairs: Sequence[TokenizedPair], path: Path) -> Any:
        size = model.model.config.get_text_config().hidden_size
        with_features = (len(pairs), 2, 2 * len(model.probe.layers) * size)
        if path.is_file():
            try:
                kept = np.load(path, allow_pickle=False)
            except (ValueError, EOFError, OSError):
                kept = np.empty(0)
            if kept.shape == with_features:
                return kept
        features = torch.stack(model.features(_rows(pairs))).reshape(with_features).cpu().numpy()
        temporary = path.with_suffix(".tmp")
        with open(temporary, "wb") as file:
            np.save(file, features)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        return features

    def delete(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True)
class Fitted:
    """Weights on features as they are (F,), and how they were chosen."""

    weight_F: Any
    tried: list[dict[str, float]]
    """For each strength of L2, in the order of a curve: inverse_l2, and over the folds that did not see
    the pairs eval_loss and eval_accuracy."""


def outcomes(pairs: Sequence[TokenizedPair], margin_as: MarginAs | None) -> tuple[Any, Any]:
    """How far chosen is better (1; a tie 0.5; a soft label its own), and each pair's weight. (N,) each."""
    margins = np.array([pair.margin for pair in pairs], dtype=np.float64)
    ties = np.array([pair.tie for pair in pairs], dtype=bool)
    won, weights = np.ones(len(pairs)), np.ones(len(pairs))
    if margin_as == "soft":
        won = 1 / (1 + np.exp(-margins))
    elif margin_as == "scaled" and margins[~ties].any():  # all 0 would leave nothing to fit
        weights = np.where(ties, 1.0, margins)
    won[ties] = 0.5
    return won, weights


def fit(differences: Any, won: Any, weights: Any, questions: Sequence[bytes]) -> Fitted:
    """The logistic regression without intercept of `won` on the differences (N, F).

    questions: equal for pairs of one prompt, which are in one fold together.
    """
    scale = np.sqrt((differences.astype(np.float64) ** 2).mean(0)).astype(np.float32)
    scale[scale == 0] = 1
    unit = differences / scale
    fold = np.array([hashlib.sha256(q).digest()[0] % _FOLDS for q in questions])
    tried: list[dict[str, float]] = []
    if len({*fold.tolist()}) == _FOLDS:
        parts = [fold != one for one in range(_FOLDS)]
        solvers = [_Solver(unit[seen], won[seen], weights[seen]) for seen in parts]
        odds = np.zeros(len(unit))
        for strength in _GRID:
            for seen, solver in zip(parts, solvers, strict=True):
                odds[~seen] = unit[~seen] @ solver.solve(strength)
            loss = np.logaddexp(0, odds) - won * odds
            right = np.where(won == 0.5, 0.5, (odds > 0) == (won > 0.5))
            tried.append(
                {
                    "step": len(tried) + 1,
                    "inverse_l2": strength,
                    "eval_loss": float(np.average(loss, weights=weights)),
                    "eval_accuracy": float(np.average(right, weights=weights)),
                }
            )
            # weaker ones cost most, and behind the best one the loss only rises
            if len(tried) > 2 and min(one["eval_loss"] for one in tried[:-2]) < min(
                one["eval_loss"] for one in tried[-2:]
            ):
                break
    best = min(tried, key=lambda one: one["eval_loss"])["inverse_l2"] if tried else _FEW
    return Fitted(_Solver(unit, won, weights).solve(best) / scale, tried)


class _Solver:
    """The regression on some pairs (N, F), each strength from the weights of the one before."""

    def __init__(self, unit: Any, won: Any, weights: Any) -> None:
        from sklearn.linear_model import LogisticRegression

        # of few pairs the weights lie in what these span: the same problem in fewer numbers
        self._basis = np.linalg.qr(unit.T)[0] if len(unit) < unit.shape[1] else None
        rows = unit if self._basis is None else unit @ self._basis
        # a pair that is partly lost stands for a win and a loss
        partly = won < 1
        rows = np.concatenate([rows, rows[partly]])
        self._weights = np.concatenate([weights * won, (weights * (1 - won))[partly]])
        is_win = np.arange(len(rows)) < len(unit)
        # it wants both classes: a win of x is a loss of -x, since there is no intercept
        turned = np.arange(len(rows)) % 2 == 1
        self._rows, self._is_win = np.where(turned[:, None], -rows, rows), is_win ^ turned
        self._model = LogisticRegression(fit_intercept=False, max_iter=2000, warm_start=True)

    def solve(self, strength: float) -> Any:
        """Weights (F,)."""
        from sklearn.exceptions import ConvergenceWarning

        self._model.set_params(C=strength)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._model.fit(self._rows, self._is_win, sample_weight=self._weights)
        weights = self._model.coef_[0]
        return weights.copy() if self._basis is None else self._basis @ weights


def reader_of(
    model: Any, tokenizer: Any, own_format: RewardFormat, is_causal: bool, share_prompts: bool
) -> ProbedModel:
    """The model as a probe that is not fitted yet."""
    probe = Probe.of(layers_of(model))
    return ProbedModel(
        model, tokenizer, own_format, is_causal, share_prompts=share_prompts, probe=probe
    )


class Fitting:
    """A probe's training, from features to the files; what record() asks of a trainer it has, too."""

    def __init__(self, reader: ProbedModel, folder: Path, run: Run, *, overwrite: bool) -> None:
        if ranks.count() > 1:
            raise SystemExit("method: a probe is fitted on one device; leave the launcher out")
        self.reader, self.folder, self.plan = reader, folder, run.plan
        self.kept = KeptFeatures(folder, run.mark, overwrite=overwrite, looks_only=bool(run.plan))
        self.processing_class = reader.tokenizer
        self.state = SimpleNamespace(log_history=[], global_step=0, best_global_step=None)
        run.went_on = self.kept.done > 0

    def run(
        self, pairs: TrainingPairs, margin_as: MarginAs | None, *, base: str, checked: int
    ) -> tuple[ProbedModel, float]:
        """Fit, save and load again: the loaded one, and the largest difference of its scores on so many
        held-out pairs. Of more than MOST_PAIRS the others are taken out of pairs. A dry run ends here."""
        if len(pairs.train) > MOST_PAIRS:
            print(f"probe: fitted on {MOST_PAIRS:,} of {len(pairs.train):,} pairs, drawn by chance")
            drawn = np.random.default_rng(0).permutation(len(pairs.train))[:MOST_PAIRS]
            pairs.train = [pairs.train[k] for k in sorted(drawn.tolist())]
        train = pairs.train
        if self.plan:
            self._end_dry_run(self.plan, len(train), len(pairs.validation))
        differences, mean = self.kept.read(self.reader, train)
        questions = [pair.prompt_ids.tobytes() for pair in train]
        fitted = fit(differences, *outcomes(train, margin_as), questions)
        self.state.log_history = fitted.tried
        weight = np.asarray(fitted.weight_F, dtype=np.float32)
        layers = self.reader.probe.layers
        # its mean score is 0
        self.reader.probe = Probe(layers, torch.from_numpy(weight), -float(weight @ mean))
        return self._save_and_reload(base, pairs.validation[:checked])

    def _end_dry_run(self, plan: Plan, train: int, held_out: int) -> NoReturn:
        done = min(self.kept.done, train)
        lines = [
            f"{train:,} pairs, each read once; {done:,} are done",
            f"held out: {held_out:,} pairs",
        ]
        plan.put("to fit", lines, pairs=train, held_out=held_out, pairs_done=done)
        raise DryRunEnd

    def _save_and_reload(
        self, base: str, pairs: Sequence[TokenizedPair]
    ) -> tuple[ProbedModel, float]:
        model, folder = self.reader, self.folder
        rows = _rows(pairs)
        expected, dtype = model.score_rows(rows), weight_dtype(model.model)
        for pattern in OLD_WEIGHTS:
            for path in folder.glob(pattern):
                path.unlink()
        model.tokenizer.save_pretrained(folder)
        model.format.save(folder)
        model.probe.save(folder, base)
        # the base is nobody's but its own: memory need not hold it twice
        own, tokenizer = RewardFormat.load(folder), load_tokenizer(folder)
        assert own
        how = {"share_prompts": model.share_prompts, "probe": Probe.load(folder)}
        loaded = ProbedModel(model.model, tokenizer, own, model.is_causal, **how)
        loaded.tokenizer.pad_token = model.tokenizer.pad_token
        return loaded, check_scores(expected, loaded.score_rows(rows), dtype, folder)


def _rows(pairs: Sequence[TokenizedPair]) -> list[list[int]]:
    """Prompt and completion of each, chosen and rejected in turn."""
    return [[*p.prompt_ids.tolist(), *ids.tolist()] for p in pairs for ids in p.completions]
