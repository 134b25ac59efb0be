#!/usr/bin/env bash
# Two H200, three starts a backend, from the repository's root:
#   bench/backends/h200-x2-starts.sh OUT SECONDS [STAGE…]
# It writes OUT/STAGE/…, OUT/STAGE.log and both packed (stages.sh). The stages:
#   calibrate_baseline, calibrate_all2all  the kernel's price list and a short forced sweep of each
#   runs    natural and forced routing at 32 and 256 requests, three starts of both backends
#   eplb    repetitive prompts with EPLB off and on, three starts; then what `advise` says of the log
#           without it: predicted against what happened
#   api     256 requests with one API server and with two: delivery lag
# Without a STAGE, all run in this order. Not run yet: no machine with two GPUs was had. vLLM 0.25.1's parser takes its command lines
# (h200-x1-starts.sh, stage flags). Tried with
#   DRY_RUN="--engine builtin" SIZES=4,8 bench/backends/h200-x2-starts.sh OUT 600 calibrate_all2all
#   DRY_RUN="--engine builtin --only 032 --set backends.baseline.extra_args=[]" … runs
# (the other stages need vLLM).
# python3 must find gatescope's dependencies and vLLM 0.25.1; /tmp/mixtral has
# bench/recorder/mixtral-8x7b/config.json and a tokenizer.
# Keep OUT/* as bench/results/h200-x2-starts/, without requests/ and server.log.
set -uo pipefail
source "$(dirname "$0")/stages.sh"

prompts() { # ordinary ones, and repetitive ones (1…), whose natural routing is skewed
  local size
  mkdir -p "$out/prompts"
  cp bench/backends/h200-x2-starts.toml "$out/experiments.toml"
  for size in 032 256; do
    cat datasets/00[3-9]_*.jsonl datasets/01[013-9]_*.jsonl | head -"$((10#$size))" \
      >"$out/prompts/${size}_ordinary.jsonl"
    for _ in 1 2 3 4 5 6 7 8 9; do cat datasets/001_*.jsonl; done | head -"$((10#$size))" \
      >"$out/prompts/1${size}_repetitive.jsonl"
  done
}

calibrate() { # BACKEND
  stage "calibrate_$1" python3 -m core.cli calibrate "$1" --config "$out/experiments.toml" \
    --sizes "${SIZES:-8,32,64,128,256}" --out "$out/calibrate_$1" "${dry[@]}"
}

calibrate_baseline() { calibrate baseline; }

calibrate_all2all() { calibrate all2all; }

runs() {
  gatescope runs "$out/experiments.toml" --backend baseline,all2all --dose 0,0.5,1 \
    --pattern hot-rank,spread
  python3 -m core.cli report "$out/runs" >>"$out/runs.log" 2>&1
}

eplb() {
  gatescope eplb "$out/experiments.toml" --backend all2all,eplb --only 1032,1256
  python3 -m core.cli advise "$out/eplb/all2all" --spare 2 --json >"$out/eplb/advice.json" \
    2>>"$out/eplb.log"
  python3 -m core.cli report "$out/eplb" >>"$out/eplb.log" 2>&1
}

api() { gatescope api "$out/experiments.toml" --backend baseline,api2 --only 256; }

prompts
run_stages "calibrate_baseline calibrate_all2all runs eplb api" "${@:3}"
