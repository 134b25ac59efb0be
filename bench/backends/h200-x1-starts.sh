#!/usr/bin/env bash
# One H200, two starts a backend, from the repository's root:
#   GATE_LOGS=FOLDER bench/backends/h200-x1-starts.sh OUT SECONDS [STAGE…]
# It writes OUT/STAGE/…, OUT/STAGE.log and both packed (stages.sh). The stages:
#   flags   vLLM's own parser reads the command lines of all the *.toml here and of the root's
#   starts  natural, forced and replayed (GATE_LOGS: a folder of gate logs, see h200-replay.sh)
#           routing with one API server and with two, A B B A; what rows of padding choose is
#           written beside the gate logs (padding_probe)
# Without a STAGE, both run in this order.
# python3 must find gatescope's dependencies and vLLM 0.25.1; /tmp/mixtral has
# bench/recorder/mixtral-8x7b/config.json and a tokenizer.
# Then, on any machine: python3 bench/backends/woken.py CALIBRATED OUT/starts
set -uo pipefail
source "$(dirname "$0")/stages.sh"

prompts() { # ordinary prompts, and repetitive ones (1… of 001, 2… of 002)
  local size
  mkdir -p "$out/prompts"
  cp bench/backends/h200-x1-starts.toml "$out/experiments.toml"
  for size in 008 030 032 256; do
    cat datasets/00[3-9]_*.jsonl datasets/01[013-9]_*.jsonl | head -"$((10#$size))" \
      >"$out/prompts/${size}_ordinary.jsonl"
  done
  head -30 datasets/001_*.jsonl >"$out/prompts/1030_repetitive.jsonl"
  head -12 datasets/002_*.jsonl >"$out/prompts/2012_repetitive.jsonl"
}

flags() { stage flags python3 bench/backends/flags.py; }

starts() {
  PYTHONPATH=$PWD/bench/backends/padding_probe:$PYTHONPATH gatescope starts "$out/experiments.toml" \
    --replay "${GATE_LOGS:?a folder of gate logs}"
  python3 -m core.cli report "$out/starts" >>"$out/starts.log" 2>&1
}

prompts
run_stages "flags starts" "${@:3}"
