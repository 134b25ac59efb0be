#!/usr/bin/env bash
# Everything that is measured on two H200, run from the repository's root:
#   bench/backends/h200-x2.sh OUT SECONDS [STAGE…]
# It writes OUT/STAGE/…, OUT/STAGE.log and OUT/STAGE.tar.xz.00 … in parts of 15 MB. The stages, with
# the times measured on 2026-11-30:
#   dose      forced routing (866 s)
#   natural   the two backends (650 s)
#   recorder  what recording costs (929 s)
#   naive     what logging by hand costs (709 s)
# Without a STAGE, all run in this order. Each is packed as it ends, whatever its exit code, so that
# it can be copied away at once; none outlasts SECONDS by more than 30.
# ALL2ALL=all2all-triton replaces FlashInfer's backend by that one.
# python3 must find gatescope's dependencies and vLLM 0.25.1. The two h200-x2.toml say what
# /tmp/mixtral and bench/dose/*_mixed.jsonl are.
set -uo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd) end=$((SECONDS + $2))
export PYTHONPATH=$PWD:${PYTHONPATH:-} HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 PYTHONUNBUFFERED=1

stage() { # NAME COMMAND…
  local name=$1 began=$SECONDS left=$((end - SECONDS))
  shift
  if ((left <= 0)); then # `timeout 0` means no limit
    echo "$name: not run, no time left" | tee -a "$out/times"
    return
  fi
  timeout --kill-after 30 "$left" "$@" >"$out/$name.log" 2>&1
  echo "$name: exit code $?, $((SECONDS - began)) s" | tee -a "$out/times"
  tar -C "$out" -cf - --ignore-failed-read "$name" "$name.log" times | nice xz -T8 -1 |
    split -b 15000000 -d - "$out/$name.tar.xz."
  touch "$out/$name.packed"
}

gatescope() { stage "$1" python3 -m core.cli --batch --out "$out/$1" --config "${@:2}"; }

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

stages=("${@:3}")
((${#stages[@]})) || stages=(dose natural recorder naive)
for name in "${stages[@]}"; do
  case $name in
    dose | natural | recorder | naive) ;;
    *) echo "no stage $name: dose, natural, recorder, naive" >&2 && exit 2 ;;
  esac
done
for name in "${stages[@]}"; do "$name"; done
