#!/usr/bin/env bash
# What `gatescope record` with metrics costs on one H200, run from the repository's root:
#   bench/record/h200.sh OUT SECONDS [VARIANTS]
# Starts of the server alternate: as it is (off, control), and recorded with metrics, scraped once a
# second. OUT/recorder_cost.json has every round; a second call with the same OUT adds starts.
# python3 must find gatescope's dependencies, prometheus-client and vLLM 0.25.1; /tmp/mixtral has
# bench/recorder/mixtral-8x7b/config.json and a tokenizer.
set -euo pipefail
out=$1 seconds=$2 variants=${3:-off,metrics,control,metrics,metrics,control}
export PYTHONPATH=$PWD:${PYTHONPATH:-} HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 PYTHONUNBUFFERED=1
exec python3 bench/recorder/recorder_cost.py --model /tmp/mixtral --load-format dummy \
  --moe-backend triton --rounds 6 --budget-s "$seconds" --out "$out" --variants "$variants"
