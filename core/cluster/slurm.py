"""Tasks as an array of Slurm jobs, which submitit submits. Needs the extra gatescope[slurm]."""

from __future__ import annotations

import secrets
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.cluster.work import TaskState, Work
from core.errors import ConfigError, GatescopeError
from core.experiment.cluster import Cluster
from core.rundir import tasks
from core.rundir.sweep import SweepFile
from core.rundir.tasks import Submission

SIGNAL = "B:USR1@120"  # to the batch process alone, two minutes before the time is up
REQUEUES = 1_000_000  # a task that gets nowhere ends itself
COMMAND_S = 60.0
# submitit's task takes USR1; and a folder `datasets` or `core` of the user's is no package.
SETUP = ["export SUBMITIT_PREEMPT_SIGNAL=USR1", "export PYTHONSAFEPATH=1"]


class SlurmError(GatescopeError):
    """Slurm could not be asked, or refused; the text has its words."""


def submit(path: Path, asked: SweepFile, groups: Sequence[Sequence[str]]) -> str:
    """One array with a task for each group of cells; the job's name. The batch script stays in the
    sweep's folder `tasks/`. ConfigError without submitit or Slurm, SlurmError where it refuses."""
    submitit = _submitit()
    name = f"gatescope-{secrets.token_hex(4)}"
    tasks.add(path, Submission(name=name, tasks=[list(group) for group in groups]))
    try:
        executor = submitit.SlurmExecutor(
            tasks.folder(path).absolute(), max_num_timeout=REQUEUES, python=_python()
        )
    except RuntimeError:
        raise ConfigError(
            "--executor slurm: no srun in PATH; start the sweep on a node that can submit jobs"
        ) from None
    parameters = _parameters(path, asked.cluster, name, len(groups))
    nodes = max(_nodes(asked, group) for group in groups)
    parameters["additional_parameters"] |= _spread(nodes)
    executor.update_parameters(**parameters)
    own = str(path.absolute())
    container = tuple(asked.cluster.container)
    try:
        with executor.batch():
            for group in groups:
                executor.submit(Work(own, tuple(group), container))
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        raise SlurmError(f"sbatch refused: {str(error).strip()}") from None
    return name


def queue(path: Path) -> list[TaskState]:
    """The sweep's tasks that wait or run now. SlurmError where Slurm does not answer."""
    known = {one.name: one for one in tasks.read(path)}
    if not known:
        return []
    form = "%j|%K|%T|%N|%r"
    lines = _asked("squeue", "-h", "-r", "-o", form, f"--name={','.join(known)}").splitlines()
    found = []
    for line in lines:
        name, index, state, node, reason = line.split("|", 4)
        number = int(index) if index.isdecimal() else 0
        if name in known and number < len(known[name].tasks):
            cells = tuple(known[name].tasks[number])
            found.append(TaskState(cells, state.lower(), node, "" if node else reason))
    return found


def cancel(path: Path) -> None:
    """End every task of the sweep, waiting or running. SlurmError where Slurm does not answer."""
    if names := [one.name for one in tasks.read(path)]:
        for name in names:
            _asked("scancel", f"--name={name}")


def _python() -> str:
    """`exec`: the batch shell becomes submitit's process, and so gets the signal of --signal=B:."""
    return f"exec {shlex.quote(sys.executable)}"


def check() -> None:
    """ConfigError without submitit, SlurmError where Slurm does not answer."""
    _submitit()
    _asked("sinfo", "-h", "-o", "%P")


def would_take(cluster: Cluster) -> str:
    """When, and where, by Slurm's own estimate, a task would start. SlurmError in its words if it
    would refuse it: for its partition, account, time, …"""
    words = ["sbatch", "--test-only", *_flags(cluster), "--wrap", "true"]
    return _done(*words).stderr.strip().removeprefix("sbatch: ")


def on_node(cluster: Cluster, command: Sequence[str], wait_s: int, run_s: float) -> str:
    """What a command prints on a node such as a task gets, if one comes free in time. SlurmError
    if none does, or the command fails."""
    flags = [flag for flag in _flags(cluster) if not flag.startswith("--time=")]
    words = ["srun", f"--immediate={wait_s}", "--time=5", *flags, *command]
    return _asked(*words, timeout_s=wait_s + run_s)


def _flags(cluster: Cluster) -> list[str]:
    return [
        f"--{key}" if value is True else f"--{key}={value}"
        for key, value in _options(cluster).items()
    ]


def _nodes(asked: SweepFile, group: Sequence[str]) -> int:
    """The nodes that a task of these cells needs."""
    return max(asked.cell(slug).config.backends[0].nodes for slug in group)


def _spread(nodes: int) -> dict[str, str | int | bool]:
    """A task's nodes, whole processes for one supervisor on each; nothing for one."""
    return {"nodes": nodes, "ntasks-per-node": 1} if nodes > 1 else {}


def _options(cluster: Cluster) -> dict[str, str | int | bool]:
    """What a task asks for, as options of sbatch and srun."""
    asked: dict[str, str | int | bool] = {
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "time": cluster.time,
        "gres": cluster.gres,
        "constraint": cluster.constraint,
        "gpus-per-node": cluster.gpus_per_node,
        "cpus-per-task": cluster.cpus,
        **cluster.sbatch,
    }
    return {key: value for key, value in asked.items() if value}


def _parameters(path: Path, cluster: Cluster, name: str, count: int) -> dict[str, Any]:
    log = f"{name}-{'%a' if count > 1 else '0'}.log"
    return {
        "job_name": name,
        "array_parallelism": cluster.parallel or count,
        "setup": [*SETUP, *cluster.setup],
        "stderr_to_stdout": True,
        "use_srun": False,
        "wckey": None,
        "additional_parameters": {
            "signal": SIGNAL,
            "requeue": True,
            "open-mode": "append",
            "output": str(tasks.folder(path).absolute() / log),
            **_options(cluster),
        },
    }


def _submitit() -> Any:
    try:
        import submitit
    except ModuleNotFoundError:
        raise ConfigError(
            "--executor slurm needs submitit; install it with: pip install gatescope[slurm]"
        ) from None
    return submitit


def _asked(*command: str, timeout_s: float = COMMAND_S) -> str:
    """What one of Slurm's commands prints. SlurmError in its own words."""
    return _done(*command, timeout_s=timeout_s).stdout


def _done(*command: str, timeout_s: float = COMMAND_S) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlurmError(f"{command[0]}: {error}") from None
    if done.returncode:
        raise SlurmError(f"{command[0]}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done
