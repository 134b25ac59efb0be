"""What run.json says before the first server starts; what really ran joins it once one is up."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from core.backends import nvml
from core.experiment import registration
from core.experiment.config import Config
from core.experiment.plan import Run
from core.rundir.about import About, Git, Host

PACKAGES = ("gatescope", "numpy", "httpx", "httptools", "uvloop", "msgspec", "uvicorn")


def describe(
    config: Config, runs: Sequence[Run], kind: Literal["vllm", "builtin"], label: str
) -> About:
    """The resolved configuration, versions, host, GPUs, driver and git state; `kind` as decided."""
    backends = list(dict.fromkeys(run.backend for run in runs))
    return About(
        config=config,
        engine=label,
        engine_kind=kind,
        backends=backends,
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        versions={name: _version(name) for name in PACKAGES},
        python=platform.python_version(),
        host=Host(name=node(), system=platform.platform(), cpus=os.cpu_count()),
        gpus=nvml.described(),
        git=_git(config.path.parent),
        runs=list(runs),
        registered=registration.of(config, backends),
    )


def node() -> str:
    """This machine: as Slurm calls it inside its jobs, else by its own name."""
    return os.environ.get("SLURMD_NODENAME") or platform.node()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _git(folder: Path) -> Git:
    commit = _lines(["git", "-C", str(folder), "rev-parse", "HEAD"])
    changed = _lines(["git", "-C", str(folder), "status", "--porcelain"])
    return Git(commit=commit[0] if commit else None, changed_files=len(changed))


def _lines(command: list[str]) -> list[str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []
