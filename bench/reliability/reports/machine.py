"""Lines B1, B3 and B5 to B9: GPUs, vLLM environments, file systems, models and gate logs as odd
machines have them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from backends.test_modelfiles import FAMILIES
from routing.test_layer_numbers import DENSE_FIRST
from routing.test_layer_numbers import write as write_gate_log
from support import fake_nvml
from support.fake_nvml import H200

from bench.reliability.reports.case import ROOT, Case, gatescope, wrong
from bench.reliability.reports.commands import experiment
from bench.reliability.reports.endings import ENDINGS

VLLM = """[experiment]
engine = "vllm"
datasets = "*.jsonl"
[model]
id = "{model}"
[[backends]]
name = "baseline"
port = 0
tensor_parallel = {ranks}
python = "{python}"
extra_args = {extra}
"""


# --- B1: GPUs ---


def show(place: Path, gpus: Sequence[dict[str, Any]], more: str = "") -> dict[str, str]:
    """The environment of a machine with these GPUs; `more`: code of its NVML."""
    fake = Path(fake_nvml.__file__).read_text()
    (place / "pynvml.py").write_text(f"{fake}\n{more}\n")
    (place / "gpus.json").write_text(json.dumps(gpus))
    return {"PYTHONPATH": f"{place}:{ROOT}", fake_nvml.FILE: str(place / "gpus.json")}


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in H200.items() if key not in keys}


FIGURES = ("used", "total", "utilisation", "temperature", "clock", "reasons", "processes")
LOST_COUNT = "def nvmlDeviceGetCount():\n    raise NVMLError('GPU is lost')"
NVMLS: list[tuple[str, list[dict[str, Any]], str]] = [
    ("no memory info", [without("used", "total")], ""),
    ("no figure at all", [without(*FIGURES)], ""),
    ("a lost GPU", [{**H200, "lost": True}], ""),
    ("a lost one of two", [{**H200, "lost": True}, H200], ""),
    ("the count is refused", [H200], LOST_COUNT),
    ("no driver", [], ""),
]


def sampled(gpus: list[dict[str, Any]], more: str, place: Path) -> str:
    """Costs samples, never the experiment."""
    experiment(place)
    answer = gatescope(place, "--batch", "--out", "run", **show(place, gpus, more))
    results = len([*place.glob("run/baseline/results_json/*.json")])
    return wrong({"exit code 0": answer.code == 0, "2 results": results == 2}, answer)


T400 = {**without("used", "total"), "name": "NVIDIA T400"}
GB10 = {**without("used", "total"), "name": "NVIDIA GB10"}
NEEDS_2 = "a backend needs 2: lower tensor_parallel"
# GPUs, CUDA_VISIBLE_DEVICES, ranks, and what `doctor` says and does not say.
GPUS: list[tuple[str, list[dict[str, Any]], str | None, int, str, str]] = [
    ("memory is [N/A]", [GB10], None, 1, "NVIDIA GB10", NEEDS_2),
    ("one of two answers [N/A]", [H200, T400], None, 2, "NVIDIA T400", NEEDS_2),
    ("all are visible", [H200, H200], None, 2, "140 of 140 GiB free", NEEDS_2),
    ("one is hidden", [H200, T400], "0", 2, NEEDS_2, "T400"),
]


def examined(
    gpus: list[dict[str, Any]], visible: str | None, ranks: int, said: str, unsaid: str, place: Path
) -> str:
    env = show(place, gpus) | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    configure(place, ranks=ranks)
    answer = gatescope(place, "doctor", **env)
    facts = {said: said in answer.out, f"not {unsaid}": unsaid not in answer.out}
    return wrong(facts, answer)


# --- B3, B5: vLLM environments ---


def configure(
    place: Path, *, model: str = "org/name", ranks: int = 1, python: str = "", extra: str = "[]"
) -> None:
    (place / "001.jsonl").write_text('{"prompt": "hello"}\n')
    text = VLLM.format(model=model, ranks=ranks, python=python, extra=extra)
    (place / "experiments.toml").write_text(text)


def fake_vllm(place: Path, version: str | None, server: str = "raise SystemExit(3)") -> str:
    """An interpreter whose vLLM has newer versions' flags and hook, and this server."""
    package = place / "site" / "vllm"
    for file, text in (
        ("__init__.py", ""),
        ("engine/arg_utils.py", '"--moe-backend"'),
        ("model_executor/layers/fused_moe/router/base_router.py", "def set_capture_fn"),
        ("entrypoints/openai/api_server.py", server),
        *([] if version is None else [("_version.py", version + "\n")]),
    ):
        (package / file).parent.mkdir(parents=True, exist_ok=True)
        (package / file).write_text(text)
    python = place / "python"
    path = f"PYTHONPATH={place / 'site'}:$PYTHONPATH"
    python.write_text(f'#!/bin/sh\n{path} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return str(python)


VERSIONS: list[tuple[str, str | None]] = [
    ("a shallow clone", "__version__ = version = '0.1.dev1+g977180c.d20251201'"),
    ("a fork without tags", "__version__ = version = '0.1.dev7557+g977180c'"),
    ("no _version.py", None),
    ("dev", "__version__ = version = 'dev'"),
    ("a commit", "__version__ = 'g977180c'"),
    ("annotated", "__version__: str = '0.12.0'"),
    ("a release candidate", '__version__ = version = "0.12.0rc2.dev3+gabc"'),
]


def versioned(version: str | None, place: Path) -> str:
    """`doctor` finds its hook, and `serve` starts it."""
    configure(place, python=fake_vllm(place, version))
    found = gatescope(place, "doctor")
    served = gatescope(place, "serve", "baseline", VLLM_API_KEY="k")
    facts = {
        "hook": "router hook: set_capture_fn" in found.out,
        "not too old": "too old" not in found.out + served.err,
        "started": "exited with code 3" in served.err,
    }
    return wrong(facts, served)


def died(lines: Sequence[str], sentence: str, place: Path) -> str:
    """`serve` gives the cause of a server's death."""
    (place / "log.txt").write_text("".join(line + "\n" for line in lines), newline="")
    code = (
        f"print(open({str(place / 'log.txt')!r}, newline='').read(), end='')\nraise SystemExit(1)"
    )
    configure(place, python=fake_vllm(place, "__version__ = '0.30.0'", code))
    answer = gatescope(place, "serve", "baseline", VLLM_API_KEY="k")
    end = f" s: {sentence}" if sentence else " s"
    is_said = answer.err.rstrip().endswith(end)
    return wrong({"exit code 1": answer.code == 1, sentence: is_said}, answer)


# --- B6: file systems ---


ODD = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#ifdef LOCKS
int flock(int fd, int op) { errno = NUMBER; return -1; }
#else
int bind(int fd, const struct sockaddr *a, socklen_t n) {
  int (*real)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "bind");
  if (a->sa_family == AF_UNIX && n > 3
      && strstr(((struct sockaddr_un *)a)->sun_path, "control.sock")) {
    errno = NUMBER;
    return -1;
  }
  return real(fd, a, n);
}
#endif
"""
FILE_SYSTEMS = [
    *(("LOCKS", name, "has no locks") for name in ("ENOSYS", "ENOLCK", "EOPNOTSUPP")),
    *(("SOCKETS", name, "has no unix sockets") for name in ("EOPNOTSUPP", "EPERM", "EACCES")),
]


def preloaded(what: str, number: str, said: str, place: Path) -> str:
    """The C library itself answers so; the batch says it and goes on."""
    (place / "odd.c").write_text(ODD)
    odd = place / "odd.so"
    flags = ("-shared", "-fPIC", f"-D{what}", f"-DNUMBER={number}")
    subprocess.run(["cc", *flags, "-o", odd, place / "odd.c", "-ldl"], check=True)
    experiment(place)
    answer = gatescope(place, "--batch", "--out", "run", LD_PRELOAD=str(odd))
    results = len([*place.glob("run/baseline/results_json/*.json")])
    facts = {"exit code 0": answer.code == 0, said: said in answer.err, "2 results": results == 2}
    return wrong(facts, answer)


# --- B7, B8, B9: models and their layers ---


MODELS = [
    ("beside the file", "models/tiny", "tokenizer", "{}/models/tiny/tokenizer.json"),
    ("below HOME", "~/models/tiny", "tokenizer", "{}/models/tiny/tokenizer.json"),
    (
        "absolute and missing",
        "/data/models/missing",
        "model",
        "there is no folder /data/models/mis",
    ),
    ("relative and missing", "./models/missing", "model", "there is no folder {}/models/missing"),
    ("in HF_HUB_CACHE", "acme/moe", "tokenizer", "acme/moe, in {}/hub"),
]


def found_model(model: str, subject: str, said: str, place: Path) -> str:
    """From another folder than the file's."""
    for folder in ("models/tiny", "hub/models--acme--moe/snapshots/1", "elsewhere"):
        (place / folder).mkdir(parents=True)
    (place / "models/tiny/tokenizer.json").write_text("{}")
    configure(place, model=model, python=fake_vllm(place, "__version__ = '0.30.0'"))
    env = {"HOME": str(place), "HF_HUB_CACHE": str(place / "hub")}
    file = place / "experiments.toml"
    answer = gatescope(place / "elsewhere", "doctor", "--config", file, **env)
    expected = said.format(place)
    line = next((x for x in answer.out.splitlines() if x[2:].startswith(subject)), "")
    return wrong({expected: expected in line}, answer)


FLAGS = ["--port 9", "--port=9", "--served-model-name x", "--tensor-parallel-size 2", "-tp 2"]


def owned(flag: str, place: Path) -> str:
    configure(place, extra=json.dumps(flag.split()))
    answer = gatescope(place, "--batch")
    said = f"extra_args: expected no {flag.split('=')[0].split()[0]}; "
    return wrong({"exit code 2": answer.code == 2, said: said in answer.err}, answer)


def shape(config: object, expected: tuple[int, int] | None, place: Path) -> str:
    """What `doctor` says of a config.json."""
    (place / "model").mkdir()
    (place / "model/config.json").write_text(json.dumps(config))
    configure(place, model="./model")
    answer = gatescope(place, "doctor")
    said = "its config.json does not name its experts and top-k"
    if expected:
        said = "{} experts a layer, top-{}".format(*expected)
    return wrong({said: said in answer.out}, answer)


def numbered(place: Path) -> str:
    write_gate_log(place / "gate_logs", DENSE_FIRST)
    answer = gatescope(place, "imbalance", "gate_logs", "--json")
    found = [measured["layer_numbers"] for measured in (answer.data or {}).values()]
    return wrong({"layers 3 and 4": found == [[3, 4]]}, answer)


THROUGH_DOCTOR = ("Mixtral", "Qwen3-Omni", "Hunyuan", "ERNIE 4.5", "dense")
HAS_CC = shutil.which("cc") is not None
CASES = [
    *(Case("B1", f"NVML: {name}", partial(sampled, gpus, more)) for name, gpus, more in NVMLS),
    *(
        Case("B1", f"doctor: {name}", partial(examined, gpus, visible, ranks, said, unsaid))
        for name, gpus, visible, ranks, said, unsaid in GPUS
    ),
    *(Case("B3", name, partial(versioned, version)) for name, version in VERSIONS),
    *(Case("B5", name, partial(died, *of)) for name, of in ENDINGS.items()),
    *(
        Case("B6", f"{what.lower()}: {number}", partial(preloaded, what, number, said))
        for what, number, said in FILE_SYSTEMS
        if HAS_CC
    ),
    *(
        Case("B7", f"a model {name}", partial(found_model, model, subject, said))
        for name, model, subject, said in MODELS
    ),
    *(Case("B7", f"extra_args {flag}", partial(owned, flag)) for flag in FLAGS),
    *(
        Case("B8", name, partial(shape, *of))
        for name, of in FAMILIES.items()
        if name in THROUGH_DOCTOR
    ),
    Case("B9", "imbalance names the model's own layers", numbered),
]
