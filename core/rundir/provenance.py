"""run.json: what was requested, with which versions, on which machine; what is running is added
once a server is up."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from core.backends import nvml
from core.experiment.config import Config
from core.experiment.plan import Run

PACKAGES = ("gatescope", "numpy", "httpx", "httptools", "uvloop", "msgspec", "uvicorn")


def describe(config: Config, runs: Sequence[Run], kind: str, label: str) -> dict[str, Any]:
    """The resolved configuration, versions, host, GPUs, driver, git state. `kind`: vllm or builtin,
    as decided."""
    return {
        "config": config,
        "engine": label,
        "engine_kind": kind,
        "backends": list(dict.fromkeys(run.backend for run in runs)),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "host": {"name": platform.node(), "system": platform.platform(), "cpus": os.cpu_count()},
        "gpus": nvml.described(),
        "git": _git(config.path.parent),
        "runs": list(runs),
        "servers": {},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _git(folder: Path) -> dict[str, Any]:
    commit = _lines(["git", "-C", str(folder), "rev-parse", "HEAD"])
    changed = _lines(["git", "-C", str(folder), "status", "--porcelain"])
    return {"commit": commit[0] if commit else None, "changed_files": len(changed)}


def _lines(command: list[str]) -> list[str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []
