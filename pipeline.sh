#!/usr/bin/env bash
# The stages in their order. Options go to every stage: ./pipeline.sh judge --overwrite
#   ./pipeline.sh [judge|rag|models|synthetic|all] [--overwrite] [--limit N] [--seed N] ...
#   ./pipeline.sh page        only the page of what is there; each path ends with it
set -euo pipefail
cd "$(dirname "$0")"

path=judge
if [[ $# -gt 0 && $1 != -* ]]; then path=$1; shift; fi

export HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false
# The embedded chain uses no network; a profile has a model to fetch, and may have texts to translate.
if [[ -z ${PROFILE:-} ]]; then export HF_HUB_OFFLINE=1 TRANSLATION_OFFLINE=${TRANSLATION_OFFLINE:-true}; fi
packages=(--no-dev --inexact)
[[ ${PROFILE:-} != smollm2-135m ]] || packages+=(--group real)
if [[ -d .venv ]]; then packages+=(--quiet); else echo "== packages: a minute or two, once"; fi
ticking='' # a terminal has uv's own bars; a log file gets a line a minute
if [[ ! -t 2 ]]; then
  (while sleep 60 >/dev/null 2>&1; do echo "packages: $((SECONDS / 60)) min so far" >&2; done) &
  ticking=$!
  trap 'kill "$ticking"' EXIT
fi
uv sync "${packages[@]}"
if [[ $ticking ]]; then kill "$ticking"; trap - EXIT; fi
paths=$(uv run --no-sync python config.py) # set -e sees a failure here, but not inside eval
eval "$paths"
is_model() { [[ -f $1/config.json || -f $1/adapter_config.json ]]; }
run() { local name=$1; [[ $name != -m ]] || name=$2; echo "== $name"; uv run --no-sync "$@"; }
# LAUNCH="accelerate launch --config_file configs/multi_gpu.yaml" trains on several devices
train() { echo "== $1"; uv run --no-sync ${LAUNCH:-} "$@"; }

judge() {
  run preprocess_dataset.py "$@"
  run translation.py "$@"
  run inference_best_of_n.py "$@"
  run inference_all.py "$@"
  run post_processing.py "$@"
  run construct_dpo_dataset.py "$@"
  run dpo_dataset.py "$@"
  train dpo_training.py "$@"
  run accuracy.py "$@"
}

rag() {
  run -m embedded.stdlib_documents
  run build_vector_store.py "$@"
  run build_pairwise_prefs.py "$@"
  run preprocess_dataset.py --input "$PAIRWISE_PREFS" --validation-input "" \
    --output "$RAG_ITEMS" "$@"
}

models() {
  local judge=$TUNED_JUDGE
  is_model "$judge" || judge=$BASE_MODEL # the judge path was not run: its base stands in
  train train_reward_model.py "$@"
  train train_pairwise_model.py "$@"
  run -m embedded.answers --questions 300
  run rank_responses.py --by reward "$@"
  run accuracy.py --kind reward --kind pairwise --kind judge --tuned "$judge" \
    --items None --pairs None --benchmark sky="$RAW_VALIDATION" \
    --benchmark best_of_n="$RESPONSES" --output "$ACCURACY_MODELS" "$@"
}

synthetic() {
  case ${PROFILE:-} in
    "") run -m embedded.synthetic prompts --questions 150 ;;
    smollm2-135m) [[ -s $PROMPTS ]] || run -m embedded.synthetic prompts --questions 40 ;;
  esac # another profile answers prompts of yours
  if [[ -z ${PROFILE:-} ]]; then # the embedded models, behind an OpenAI-compatible server on this machine
    local models=(--model "$BASE_MODEL") url
    if is_model "$TUNED_JUDGE"; then models+=(--model "$TUNED_JUDGE")
    else export GENERATE_IGNORE_MODEL='^judge$'; fi
    url=$(mktemp)
    uv run --no-sync python -m embedded.server "${models[@]}" >"$url" &
    trap "kill $! || true; rm -f '$url'" EXIT
    until [[ -s $url ]]; do kill -0 $!; sleep 0.2; done
    OPENAI_BASE_URL=$(head -n 1 "$url")
    export OPENAI_BASE_URL GENERATE_ENGINE=server ANNOTATE_ENGINE=server
  fi
  run generate_responses.py "$@"
  run create_annotation_mix.py "$@"
  run annotate_preferences.py "$@"
  run parse_preferences.py "$@"
  [[ -n ${PROFILE:-} ]] || run -m embedded.synthetic right
}

page() {
  run report.py "$@"
}

case $path in
  judge) judge "$@" ;;
  rag) rag "$@" ;;
  models) models "$@" ;;
  synthetic) synthetic "$@" ;;
  all) judge "$@"; rag "$@"; models "$@"; synthetic "$@" ;;
  page) page "$@" ;;
  *) echo "pipeline.sh: no path named $path; there are: judge, rag, models, synthetic, all, page" >&2; exit 2 ;;
esac
[[ $path == page ]] || page "$@"
