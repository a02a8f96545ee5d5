#!/usr/bin/env bash
# The benchmarks on a CUDA device, in one call of at most nine minutes: benchmarks/gpu.sh [folder]
#
# folder: where gpu.json goes (benchmarks/results). PYTHON=python3: run by that one instead of uv's, on
# a machine whose own torch is to be used. More options: python -m benchmarks.gpu --help
set -euo pipefail
cd "$(dirname "$0")/.."
if [[ -n ${PYTHON:-} ]]; then python=("$PYTHON"); else python=(uv run --no-sync python); fi
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 PYTHONUNBUFFERED=1
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
folder=${1:-benchmarks/results}
mkdir -p "$folder"
exec timeout 535 "${python[@]}" -m benchmarks.gpu --results "$folder" "${@:2}"
