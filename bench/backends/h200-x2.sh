#!/usr/bin/env bash
# Everything that is measured on two H200, run from the repository's root:
#   bench/backends/h200-x2.sh OUT SECONDS [STAGE…]
# It writes OUT/STAGE/…, OUT/STAGE.log and both packed (stages.sh). The stages, with the times
# measured on 2026-11-30:
#   dose      forced routing (866 s)
#   natural   the two backends (650 s)
#   recorder  what recording costs (929 s)
#   naive     what logging by hand costs (709 s)
# Without a STAGE, all run in this order.
# ALL2ALL=all2all-triton replaces FlashInfer's backend by that one.
# python3 must find gatescope's dependencies and vLLM 0.25.1. The two h200-x2.toml say what
# /tmp/mixtral and bench/dose/*_mixed.jsonl are.
set -uo pipefail
source "$(dirname "$0")/stages.sh"

dose() { gatescope dose bench/dose/h200-x2.toml; }

natural() {
  gatescope natural bench/backends/h200-x2.toml --backend "${ALL2ALL:-all2all},baseline"
}

cost() { # NAME OPTION…
  stage "$1" python3 bench/recorder/recorder_cost.py --out "$out/$1" --model /tmp/mixtral \
    --load-format dummy --tp 2 --moe-backend triton --extra-arg=--compilation-config \
    '--extra-arg={"pass_config":{"fuse_allreduce_rms":false}}' \
    --budget-s $((end - SECONDS - 10)) "${@:2}"
}

recorder() { cost recorder --variants off,on,control,off,on,control,eager --rounds 8; }

naive() { cost naive --variants naive,eager,naive,eager --rounds 4; }

run_stages "dose natural recorder naive" "${@:3}"
