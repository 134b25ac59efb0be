#!/usr/bin/env bash
# What `gatescope record` with metrics costs on one H200, run from the repository's root:
#   bench/record/h200.sh OUT SECONDS
# Starts of the server alternate: as it is, recorded with metrics (scraped once a second), and as it
# is again. OUT/recorder_cost.json has every round; a second call with the same OUT adds starts.
# python3 must find gatescope's dependencies, prometheus-client and vLLM 0.25.1; /tmp/mixtral has
# bench/recorder/mixtral-8x7b/config.json and a tokenizer.
set -euo pipefail
out=$1 seconds=$2
export PYTHONPATH=$PWD:${PYTHONPATH:-} HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 PYTHONUNBUFFERED=1
exec python3 bench/recorder/recorder_cost.py --model /tmp/mixtral --load-format dummy \
  --moe-backend triton --rounds 8 --budget-s "$seconds" --out "$out" \
  --variants off,metrics,control,metrics,off,metrics,control,metrics
