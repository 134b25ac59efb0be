#!/usr/bin/env bash
# What routing costs on one H200, run from the repository's root:
#   bench/backends/h200-x1-cost.sh OUT SECONDS [STAGE…]
# It writes OUT/STAGE/…, OUT/STAGE.log and both packed (stages.sh). The stages:
#   calibrate  the kernel alone (at most 140 s), then the sweep at one start of the server
#   start1     natural and forced runs at 8, 32, 64, 128 and 256 requests, at a start of its own
#   start2     the same at another start
#   kernel     the kernel's R² table for five shapes (about 2 minutes each; not run unless named)
# Without a STAGE, the first three run in this order.
# python3 must find gatescope's dependencies and vLLM 0.25.1; /tmp/mixtral has
# bench/recorder/mixtral-8x7b/config.json and a tokenizer.
# Then, on any machine: python3 bench/backends/cost_proof.py OUT/calibrate OUT/start1 OUT/start2
set -uo pipefail
source "$(dirname "$0")/stages.sh"

prompts() { # ordinary prompts, and repetitive ones (1…): their natural routing is skewed
  local size
  mkdir -p "$out/prompts"
  cp bench/backends/h200-x1-cost.toml "$out/experiments.toml"
  for size in 008 032 064 128 256; do
    cat datasets/00[3-9]_*.jsonl datasets/01[013-9]_*.jsonl | head -"$((10#$size))" \
      >"$out/prompts/${size}_ordinary.jsonl"
    for _ in 1 2 3 4 5 6 7 8 9; do cat datasets/001_*.jsonl; done | head -"$((10#$size))" \
      >"$out/prompts/1${size}_repetitive.jsonl"
  done
}

calibrate() {
  stage calibrate python3 -m core.cli calibrate baseline --config "$out/experiments.toml" \
    --sizes 8,32,64,128,256 --out "$out/calibrate" "${dry[@]}"
}

start1() { gatescope start1 "$out/experiments.toml"; }

start2() { gatescope start2 "$out/experiments.toml"; }

kernel() { stage kernel python3 bench/kernel/table.py "$out/kernel"; }

prompts
stages=("${@:3}")
((${#stages[@]})) || stages=(calibrate start1 start2)
run_stages "calibrate start1 start2 kernel" "${stages[@]}"
