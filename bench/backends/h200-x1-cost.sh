#!/usr/bin/env bash
# What routing costs on one H200, run from the repository's root:
#   bench/backends/h200-x1-cost.sh OUT SECONDS [STAGE…]
# It writes OUT/STAGE/…, OUT/STAGE.log and OUT/STAGE.tar.xz.00 … in parts of 15 MB. The stages:
#   calibrate  the kernel alone (at most 140 s), then the sweep at one start of the server
#   start1     natural and forced runs at 8, 32, 64, 128 and 256 requests, at a start of its own
#   start2     the same at another start
#   kernel     the kernel's R² table for five shapes (about 2 minutes each; not run unless named)
# Without a STAGE, the first three run in this order. Each is packed as it ends, whatever its exit
# code, so that it can be copied away at once; none outlasts SECONDS by more than 30.
# python3 must find gatescope's dependencies and vLLM 0.25.1; /tmp/mixtral has
# bench/recorder/mixtral-8x7b/config.json and a tokenizer.
# Then, on any machine: python3 bench/backends/cost_proof.py OUT/calibrate OUT/start1 OUT/start2
set -uo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd) end=$((SECONDS + $2))
export PYTHONPATH=$PWD:${PYTHONPATH:-} HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 PYTHONUNBUFFERED=1
export XDG_CACHE_HOME=${XDG_CACHE_HOME:-$out/cache}

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
    --sizes 8,32,64,128,256 --out "$out/calibrate"
}

start() { # NAME
  stage "$1" python3 -m core.cli --batch --config "$out/experiments.toml" --out "$out/$1"
}

start1() { start start1; }

start2() { start start2; }

kernel() { stage kernel python3 bench/kernel/table.py "$out/kernel"; }

stages=("${@:3}")
((${#stages[@]})) || stages=(calibrate start1 start2)
for name in "${stages[@]}"; do
  case $name in
    calibrate | start1 | start2 | kernel) ;;
    *) echo "no stage $name: calibrate, start1, start2, kernel" >&2 && exit 2 ;;
  esac
done
prompts
for name in "${stages[@]}"; do "$name"; done
