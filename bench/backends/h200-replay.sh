#!/usr/bin/env bash
# Recorded routing, replayed on H200s, from the repository's root:
#   bench/backends/h200-replay.sh OUT SECONDS GATE_LOGS [BACKEND]
# GATE_LOGS: a folder of gate logs of 32 layers, 8 experts, top-2 (of the published Mixtral-8x7B logs:
# the folder that holds gates_logs_01, gates_logs_03, …). BACKEND: tp1 (the default, one GPU) or
# ep2 (two). 15 logs make 51 runs of about 4 s, behind one start of the server (3 to 5 minutes).
# It writes OUT/BACKEND (a run directory with report.md and summary-replayed.csv), OUT/BACKEND.log,
# and both packed as OUT/BACKEND.tar.xz.
# python3 must find gatescope's dependencies and vLLM 0.25.1; /tmp/mixtral holds
# bench/recorder/mixtral-8x7b/config.json and a tokenizer.
set -uo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd) seconds=$2 logs=$3 name=${4:-tp1}
export PYTHONPATH=$PWD:${PYTHONPATH:-} HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 PYTHONUNBUFFERED=1
timeout --kill-after 30 "$seconds" python3 -m core.cli --batch --out "$out/$name" \
  --config "bench/backends/h200-replay-$name.toml" --replay "$logs" \
  >"$out/$name.log" 2>&1
code=$?
python3 -m core.cli report "$out/$name" >>"$out/$name.log" 2>&1
tar -C "$out" -cJf "$out/$name.tar.xz" --ignore-failed-read "$name" "$name.log"
grep -A 40 "replayed routing: means" "$out/$name.log"
exit "$code"
