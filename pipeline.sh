#!/usr/bin/env bash
# The stages in their order. Options go to every stage: ./pipeline.sh judge --overwrite
#   ./pipeline.sh [judge|all] [--overwrite] [--limit N] [--seed N] ...
set -euo pipefail
cd "$(dirname "$0")"

path=judge
if [[ $# -gt 0 && $1 != -* ]]; then path=$1; shift; fi

export HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false
if [[ -z ${PROFILE:-} ]]; then export HF_HUB_OFFLINE=1; fi
uv sync --quiet --no-dev --inexact
run() { echo "== $1"; uv run --no-sync "$@"; }

judge() {
  run preprocess_dataset.py "$@"
  run translation.py "$@"
  run inference_best_of_n.py "$@"
  run inference_all.py "$@"
  run post_processing.py "$@"
  run construct_dpo_dataset.py "$@"
  run dpo_dataset.py "$@"
  run dpo_training.py "$@"
  run accuracy.py "$@"
}

case $path in
  judge|all) judge "$@" ;;
  *) echo "pipeline.sh: no path named $path; there are: judge, all" >&2; exit 2 ;;
esac
