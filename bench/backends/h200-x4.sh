#!/usr/bin/env bash
# The experiment as first asked for, on four H200, from the repository's root:
#   GATE_LOGS=FOLDER bench/backends/h200-x4.sh OUT SECONDS [STAGE…]
# It writes OUT/STAGE/…, OUT/STAGE.log and both packed (stages.sh). The stages:
#   natural  the root experiments.toml (h200-x4.toml says what differs), with its report
#   replay   GATE_LOGS (see h200-replay.sh) replayed under tensor and expert parallelism
# Without a STAGE, both run in this order. Not run yet: no machine with four GPUs was had. vLLM 0.25.1's parser takes its command lines
# (h200-x1-starts.sh, stage flags). Tried with
#   DRY_RUN="--engine builtin --only 001 --set backends.baseline.extra_args=[]" \
#     bench/backends/h200-x4.sh OUT 600 natural
# ALL2ALL=flashinfer_cutlass is the kernel of all2all; triton needs no built module.
# python3 must find gatescope's dependencies and vLLM 0.25.1; h200-x4.toml says what /tmp/mixtral is.
# Keep OUT/natural and OUT/replay as bench/results/h200-x4/, without requests/ and server.log.
set -uo pipefail
source "$(dirname "$0")/stages.sh"

natural() {
  gatescope natural bench/backends/h200-x4.toml \
    --set "backends.all2all.moe_backend=${ALL2ALL:-flashinfer_cutlass}"
  python3 -m core.cli report "$out/natural" >>"$out/natural.log" 2>&1
}

replay() {
  gatescope replay bench/backends/h200-replay-x4.toml --replay "${GATE_LOGS:?a folder of gate logs}"
  python3 -m core.cli report "$out/replay" >>"$out/replay.log" 2>&1
}

run_stages "natural replay" "${@:3}"
