#!/bin/sh
# All figures of docs/prediction.md but those of a large checkpoint's shape (mixtral_shape.py):
#   bench/predict/all.sh FOLDER [OUT] [VLLM_PYTHON]
# Recorded runs are kept in FOLDER and used again; OUT is bench/results/predict where it is not named.
# With the Python that has vLLM's CPU build, times are predicted and measured there as well.
set -eu
here=$(dirname "$0")
folder=$1 out=${2:-$here/../results/predict} vllm=${3:-}
mkdir -p "$folder" "$out"

written() { # NAME SCRIPT ARGUMENTS…
    file=$1 script=$2
    shift 2
    python "$here/$script" "$@" >"$folder/$file"
    mv "$folder/$file" "$out/$file"
}

written predicted.json predicted.py "$folder/prefill"
written decode.json decode.py "$folder/decode"
learn=$folder/decode/learn/run
written times.json times.py "$folder/paced" --learn "$learn"
[ -z "$vllm" ] || written times-vllm.json times.py "$folder/vllm" --learn "$learn" --vllm "$vllm"
