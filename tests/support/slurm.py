"""A Slurm of two nodes on this machine: slurmctld and two slurmd, without systemd and munge, ended
by pid."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.watched import free_port

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
KillWait=15
SlurmdTimeout=5
InactiveLimit=0
MinJobAge=2
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,sched_min_interval=0
{nodes}
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 State=UNKNOWN"
START_S = 30.0


def needed() -> None:
    """Skip the test where Slurm's daemons are not installed, or we may not start them."""
    missing = [name for name in ("slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]
    if missing or os.geteuid():
        pytest.skip(f"needs {', '.join(missing) or 'root'}: apt-get install slurmctld slurmd")
    pytest.importorskip("submitit", reason="needs submitit: the extra gatescope[slurm]")


class Slurm:
    """The running daemons."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "slurm.conf"
        host = os.uname().nodename.partition(".")[0]
        nodes = "\n".join(NODE.format(name=n, host=host, port=free_port()) for n in ("n1", "n2"))
        (folder / "state").mkdir()
        self.file.write_text(CONFIG.format(host=host, port=free_port(), folder=folder, nodes=nodes))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.start("slurmctld")
        for name in ("n1", "n2"):
            self.start(name)

    def start(self, name: str) -> None:
        """A daemon in the foreground: slurmctld, or the slurmd of a node."""
        (self.folder / f"spool-{name}").mkdir(exist_ok=True)
        words = ["slurmctld"] if name == "slurmctld" else ["slurmd", "-N", name]
        with open(self.folder / f"{name}.log", "ab") as log:
            self._processes[name] = subprocess.Popen(
                [*words, "-D", "-f", str(self.file)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while self.ask("sinfo", "-h", "-o", "%D %T").split() != ["2", "idle"]:
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.2)

    def ask(self, *command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    def node_dies(self, name: str) -> None:
        """The node's slurmd and every process of its jobs at once, as when its power fails:
        slurmstepd before the job, whose end it would report."""
        ours = [p for p in self.processes() if p.environ().get("SLURMD_NODENAME") == name]
        self._processes[name].kill()
        for process in (*self.steps(ours), *ours):
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._processes.pop(name).wait()

    def steps(self, ours: list[psutil.Process]) -> list[psutil.Process]:
        """The slurmstepd of each job that these processes are of."""
        found = []
        for pid in {p.ppid() for p in ours} - {p.pid for p in ours} - {1}:
            with contextlib.suppress(psutil.Error):
                if (process := psutil.Process(pid)).name() == "slurmstepd":
                    found.append(process)
        return found

    def processes(self) -> list[psutil.Process]:
        """What runs in jobs of this Slurm."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("SLURM_CONF") == str(self.file) and (
                    "SLURM_JOB_ID" in process.environ()
                ):
                    found.append(process)
        return found

    def stop(self) -> None:
        self.ask("scancel", "--user=root")
        for left in self.processes():
            with contextlib.suppress(psutil.Error):
                left.kill()
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def logs(self) -> str:
        return "\n".join(f"{f}:\n{f.read_text()[-2000:]}" for f in self.folder.glob("*.log"))


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Slurm]:
    """Slurm, named to its commands by SLURM_CONF."""
    before = os.environ.get("SLURM_CONF")
    slurm = Slurm(folder)
    os.environ["SLURM_CONF"] = str(slurm.file)
    try:
        slurm.wait_ready()
        yield slurm
    finally:
        slurm.stop()
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before
