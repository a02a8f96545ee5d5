"""Every path, model name and shared constant of the pipeline. Edit them here.

A single run may override them: command line (--n 16) beats environment (BEST_OF_N_N=16) beats `.env`
beats a profile (PROFILE=conj-qwen2-7b reads profiles/conj-qwen2-7b.toml) beats this file. The values
here are those of the embedded chain, which runs on any machine; a profile holds the recipe of a
published one. `--show-settings` prints each value and where it came from.

`python config.py` prints the paths and names as shell variables: pipeline.sh takes them from here.
"""

import os
from pathlib import Path

from prefpipe.llm.responders import Responder

ROOT = Path(__file__).parent

# ---- paths: each stage finds the one before it here ------------------------------------------

DATA = Path(os.environ.get("PREFPIPE_DATA") or "data")
"""PREFPIPE_DATA=runs/b keeps a second run apart from the first."""
EMBEDDED = Path("embedded")
PROFILES = ROOT / "profiles"

# the judge path
RAW_TRAIN = str(EMBEDDED / "sample/preferences-train.parquet")
RAW_VALIDATION = str(EMBEDDED / "sample/preferences-validation.parquet")
ITEMS = DATA / "pairwise_critic_inference2_get_answer/Sky"
ITEMS_ENGLISH = DATA / "pairwise_critic_inference2_get_answer/Sky_english"
JUDGMENTS = DATA / "judgments/raw"
JUDGMENTS_CLEAN = DATA / "judgments/clean"
DPO_DATASET = DATA / "dpo"
TUNED_JUDGE = DATA / "models/judge"
REFERENCE_CACHE = DATA / "cache/reference_logps"
ACCURACY = DATA / "accuracy"

# the preference models
REWARD_MODEL = DATA / "models/reward"
PAIRWISE_MODEL = DATA / "models/pairwise"
RESPONSES = DATA / "responses.jsonl"
RANKING = DATA / "ranking"
ACCURACY_MODELS = DATA / "accuracy_models"

# synthetic preferences
SYNTHETIC = DATA / "synthetic"
PROMPTS = str(SYNTHETIC / "prompts.jsonl")
MODEL_RESPONSES = SYNTHETIC / "responses"
ANNOTATION_MIX = SYNTHETIC / "mix.jsonl"
ANNOTATION_PROMPTS = SYNTHETIC / "annotation_prompts.jsonl"
ANNOTATIONS = SYNTHETIC / "annotations.jsonl"
SYNTHETIC_PREFERENCES = SYNTHETIC / "preferences.jsonl"
BATCHES = DATA / "batches"

# RAG pairs
RAG_TABLE = DATA / "rag/stdlib.csv"
VECTOR_STORE = DATA / "rag/store"
PAIRWISE_PREFS = DATA / "rag/pairwise_prefs.jsonl"
RAG_ITEMS = DATA / "rag/items"

# ---- models ----------------------------------------------------------------------------------

BASE_MODEL = str(EMBEDDED / "model")
"""A folder or a hub name: the judge, the RAG generator, the backbone of the preference models."""

EMBEDDING_MODEL = "all-MiniLM-L6-v2"
"""A sentence-transformers model: a folder or a hub name. This one comes as a PyPI package."""

RESPONSE_MODELS = [
    Responder(name="base-t0.5", model=BASE_MODEL, temperature=0.5),
    Responder(name="base-t0.8", model=BASE_MODEL, temperature=0.8),
    Responder(name="base-t1.1", model=BASE_MODEL, temperature=1.1),
    Responder(name="base-t1.4", model=BASE_MODEL, temperature=1.4),
    Responder(name="judge", model=str(TUNED_JUDGE), temperature=1.0),
]
"""Who answers the prompts of the synthetic path. In a profile it is one
[[generate_responses.models]] table each."""

# ---- numbers ---------------------------------------------------------------------------------

SEED = 2021
"""Seed of every random choice, of every stage."""


def shell_variables() -> str:
    """NAME=value for each path and model name above, quoted for a shell."""
    import shlex

    named = {k: v for k, v in globals().items() if k.isupper() and isinstance(v, str | Path)}
    return "\n".join(f"{name}={shlex.quote(str(value))}" for name, value in named.items())


if __name__ == "__main__":
    print(shell_variables())
