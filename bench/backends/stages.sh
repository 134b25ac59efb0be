# Stages of a measurement, for the scripts beside this one, which source it with their own arguments
# OUT SECONDS [STAGE…]. A stage is packed as it ends, whatever its exit code, in parts of 15 MB
# (OUT/STAGE.tar.xz.00 …), so that it can be copied away at once; none outlasts SECONDS by more than
# 30. DRY_RUN="--engine builtin --only 001" is added to each gatescope command line that runs servers.
out=$(mkdir -p "$1" && cd "$1" && pwd) end=$((SECONDS + $2))
export PYTHONPATH=$PWD:${PYTHONPATH:-} HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 PYTHONUNBUFFERED=1
export XDG_CACHE_HOME=${XDG_CACHE_HOME:-$out/cache}
read -ra dry <<<"${DRY_RUN:-}"

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

gatescope() { stage "$1" python3 -m core.cli --batch --out "$out/$1" --config "${@:2}" "${dry[@]}"; }

run_stages() { # "KNOWN…" [STAGE…]: those, or all that are known, in order
  local known=$1 name
  shift
  for name in "$@"; do
    [[ " $known " == *" $name "* ]] || { echo "no stage $name: ${known// /, }" >&2 && exit 2; }
  done
  for name in ${*:-$known}; do "$name"; done
}
