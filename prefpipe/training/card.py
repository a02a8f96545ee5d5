"""The model card: what a reader of the folder must know before using the model."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prefpipe.files import write_text

_TEXT = """\
# {title}

{what}

## Data

{data}

## Results

{results}

`loss_curve.csv` and `loss_curve.png` hold every step; `*.meta.json` all settings, versions and counts.

## Settings

```json
{settings}
```

## Intended use

{use}
"""


class Kind(NamedTuple):
    """What is said and drawn of a kind of model; its settings are filled into {model}, {method}, ..."""

    title: str
    curve: str
    """The title of its curve."""
    panels: Mapping[str, Sequence[str]]
    """What is drawn of its training: panel -> names of the log's numbers."""
    tag: str
    """TRL's name of the training."""
    task: str
    """The hub's name of what the model does."""
    what: str
    use: str


KINDS = {
    "dpo": Kind(
        title="A contrastive judge, DPO on {model}",
        curve="DPO of {model}",
        panels={
            "loss": ("loss", "eval_loss"),
            "reward margin": ("rewards/margins", "eval_rewards/margins"),
            "reward accuracy": ("rewards/accuracies", "eval_rewards/accuracies"),
        },
        tag="dpo",
        task="text-generation",
        what=(
            "Trained with DPO on pairs of its own judgments, one with the right verdict and one "
            "with the wrong one ({method}, weights of the {checkpoint} checkpoint). It reads "
            "a question and two answers, and replies with a JSON object: the reason, and which "
            "answer is better."
        ),
        use=(
            "Judging two answers to one question, in the prompt format of its training. A single "
            "verdict can depend on the order of the answers: judge in both orders. Its reasons are "
            "generated text, not evidence. It inherits the base model's licence and limits."
        ),
    ),
    "reward": Kind(
        title="A reward model on {model}",
        curve="reward model on {model}",
        panels={
            "loss": ("loss", "eval_loss"),
            "accuracy": ("accuracy", "eval_accuracy"),
            "margin": ("margin", "eval_margin"),
        },
        tag="reward-trainer",
        task="text-classification",
        what=(
            "A Bradley-Terry reward model: AutoModelForSequenceClassification with one label. "
            "sigmoid((r(a) - r(b)) / temperature) is the probability that response a is better "
            "than b to the same prompt. Trained with {method}, weights of the {checkpoint} "
            "checkpoint."
        ),
        use=(
            "Ranking responses to one prompt. Scores of different prompts do not compare. It can "
            "be wrong with confidence outside the kind of prompts it was trained on: "
            "`reward_eval.json` and `disagreements.jsonl` show where it was wrong inside. It "
            "inherits the base model's licence and limits."
        ),
    ),
    "pairwise": Kind(
        title="A pairwise preference model on {model}",
        curve="pairwise model on {model}",
        panels={
            "loss": ("loss", "eval_loss"),
            "accuracy of the label": ("mean_token_accuracy", "eval_mean_token_accuracy"),
        },
        tag="sft",
        task="text-generation",
        what=(
            "It reads a conversation and two responses, `[CONTEXT] ... [RESPONSE A] ... "
            "[RESPONSE B] ...`, in one user turn, and answers with one token, A or B (the format "
            "of RLHFlow's pair-preference models). Trained with {method} in both orders, "
            "weights of the {checkpoint} checkpoint."
        ),
        use=(
            "Comparing responses to one prompt: softmax over the logits of A and B, the mean of "
            "both orders. For several responses a tournament, `rank_responses.py --by pairwise`. "
            "`pairwise_eval.json` and `disagreements.jsonl` show where it was wrong. It inherits "
            "the base model's licence and limits."
        ),
    ),
}


def write_card(
    folder: Path,
    kind: str,
    data: Mapping[str, Any],
    left_out: Counter[str],
    results: Mapping[str, float],
    settings: Mapping[str, Any],
) -> None:
    """README.md of a model's folder, as the hub reads it.

    kind: a key of KINDS. data: name -> count or text; results: name -> number, printed with four
    digits; settings: those of a TrainingStage.
    """
    from huggingface_hub import ModelCard, ModelCardData

    base, words = settings["model"], KINDS[kind]
    is_adapter = settings["method"] == "lora" and not settings["merge_adapter"]
    facts = ModelCardData(
        base_model=None if Path(base).exists() else base,  # the hub knows no folder of ours
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag=words.task,
        tags=["trl", words.tag],
    )
    text = _TEXT.format(
        title=words.title.format(model=Path(base).name),
        what=words.what.format(**settings),
        data=_list({"base model": base, **data, "left out": in_words(left_out) or "none"}),
        results=_list({name: f"{value:.4g}" for name, value in results.items()}),
        settings=json.dumps(settings, indent=2, ensure_ascii=False),
        use=words.use,
    )
    card = ModelCard(f"---\n{facts.to_yaml()}\n---\n\n{text}")
    write_text(folder / "README.md", str(card))


def _list(values: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in values.items())


def in_words(left_out: Counter[str]) -> str:
    """The reasons with their counts, the most frequent first."""
    return ", ".join(f"{count} {reason}" for reason, count in left_out.most_common())
