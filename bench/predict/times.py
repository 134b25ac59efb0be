"""Predicted step times, TTFT and TPOT against measured ones: of the built-in engine at a known
pace, or of vLLM on a CPU with the same model.

    python bench/predict/times.py FOLDER --learn DECODE_FOLDER/learn/run [--vllm PYTHON]

Datasets of 30 prompts from the second half of each subject's queries that aim at excess CVs from
0.2 to 0.8, 16 requests at once. The backend is calibrated, the datasets are run, then predicted
from the model and the calibration alone; decode by what `bench/predict/decode.py` recorded of other
datasets. `--vllm` names the Python that has vLLM's CPU build.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np

from bench.predict.predicted import ROOT, halves
from core.analysis import calibration
from core.analysis.calibration import Calibration
from core.prediction import aim
from core.prediction.builtin_stack import BuiltinStack
from core.rundir import result
from core.rundir.result import Result

CONFIG = """
[experiment]
datasets = "*.jsonl"
output_len = 48
max_concurrency = 16
num_prompts = 30
warmup_requests = 16
shuffle = false
starts = 1
split = false
temperature = {temperature}
[model]
max_model_len = 2048
{model}
[[backends]]
name = "one"
port = 0
tensor_parallel = 1
max_num_batched_tokens = 512
max_num_seqs = 16
{backend}
"""
PACED = 'extra_args = ["--pace", "60000,400,2000"]'
VLLM = """
moe_backend = ""
enforce_eager = true
python = "{python}"
startup_timeout_s = 900
extra_args = ["--dtype", "float32"]
env = {{ VLLM_CPU_KVCACHE_SPACE = "1", VLLM_CPU_OMP_THREADS_BIND = "0|1" }}
"""


def gatescope(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-P", "-m", "core.cli", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE)
    return done.stdout.decode()


def prepare(folder: Path, datasets: int, python: str) -> None:
    folder.mkdir(parents=True)
    _, second = halves()
    made = aim.aim(BuiltinStack(), second, np.linspace(0.2, 0.8, datasets).tolist())
    for number, one in enumerate(made, 1):
        rows = [json.dumps({"text": text}) + "\n" for text in one.texts]
        (folder / f"{number:03d}_0.jsonl").write_text("".join(rows))
    model, backend, temperature = "", PACED, 1.0
    if python:
        (folder / "init").mkdir()
        gatescope(folder / "init", "init", "--model", str(folder / "model"))
        model, backend = f'id = "{folder / "model"}"', VLLM.format(python=python)
        temperature = 0.0  # vLLM 0.30's CPU build has no seeded sampling
    config = CONFIG.format(model=model, backend=backend, temperature=temperature)
    (folder / "experiments.toml").write_text(config)


def of_dataset(label: str, one: Result) -> dict[str, float | str | None]:
    known = one.predicted
    assert known
    assert known.decode
    return {
        "dataset": label,
        "decode_step_ms": one.decode_step_ms,
        "predicted_decode_step_ms": known.decode.step_ms,
        "mean_tpot_ms": one.mean_tpot_ms,
        "predicted_tpot_ms": known.tpot_ms,
        "mean_ttft_ms": one.mean_ttft_ms,
        "predicted_ttft_ms": known.ttft_ms,
    }


def off(
    rows: list[dict[str, float | str | None]], measured: str, predicted: str
) -> dict[str, float]:
    """In % of the measured."""
    pairs = np.array([(row[measured], row[predicted]) for row in rows], np.float64)
    errors = (pairs[:, 1] / pairs[:, 0] - 1) * 100
    return {
        "mean": float(abs(errors).mean()),
        "worst": float(abs(errors).max()),
        "bias": float(errors.mean()),
    }


def terms(found: Calibration) -> dict[str, dict[str, float | None]]:
    models = (found.decode, found.prefill)
    return {m.phase: {name: one.value for name, one in m.terms.items()} for m in models}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--learn", type=Path, required=True)
    parser.add_argument("--datasets", type=int, default=12)
    parser.add_argument("--vllm", default="", metavar="PYTHON")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    engine, model = ("vllm", str(folder / "model")) if arguments.vllm else ("builtin", "builtin")
    if not folder.exists():
        prepare(folder, arguments.datasets, arguments.vllm)
    if not (folder / "cal").exists():
        calibrate = ("calibrate", "one", "--engine", engine, "--sizes", "1,2,4,8,16")
        gatescope(folder, *calibrate, "--out", "cal")
    if not (folder / "run").exists():
        gatescope(folder, "--batch", "--engine", engine, "--out", "run")
    learn = str(arguments.learn.resolve())
    given = ("--run", "run", "--learn", learn, "--calibration", "cal")
    said = gatescope(folder, "predict", "--model", model, *given)
    results = result.read_all(folder / "run" / "one" / "results_json").results
    rows = [of_dataset(label, results[label]) for label in sorted(results)]
    found = {
        "engine": engine,
        "terms_us": terms(calibration.read(folder / "cal")),
        "datasets": rows,
        "sentences": said.splitlines(),
        "decode_step_error_percent": off(rows, "decode_step_ms", "predicted_decode_step_ms"),
        "tpot_error_percent": off(rows, "mean_tpot_ms", "predicted_tpot_ms"),
        "ttft_error_percent": off(rows, "mean_ttft_ms", "predicted_ttft_ms"),
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
