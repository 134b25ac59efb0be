"""Tasks of a Ray cluster. They live as long as the process that asked for them. Needs the extra
gatescope[ray]."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from core.cluster.work import TaskState, Work
from core.errors import ConfigError, GatescopeError
from core.experiment.cluster import Cluster
from core.rundir import tasks
from core.rundir.sweep import SweepFile
from core.rundir.tasks import Submission

END_S = 30.0  # for tasks that were cancelled to end their servers


@contextlib.contextmanager
def running(
    path: Path, asked: SweepFile, groups: Sequence[Sequence[str]]
) -> Iterator[Callable[[], list[TaskState]]]:
    """A task for each group of cells, `parallel` at once; inside, what says which are left, and
    keeps them coming. Leaving ends those that run. ConfigError without Ray, GatescopeError without
    a cluster."""
    ray = _connected(asked.cluster)
    submission = Submission(
        name=f"ray-{secrets.token_hex(4)}", tasks=[list(group) for group in groups]
    )
    tasks.add(path, submission)
    (tasks.folder(path) / tasks.CANCEL).unlink(missing_ok=True)
    work = [
        Work(
            str(path.absolute()),
            tuple(group),
            tuple(asked.cluster.container),
            log=str(submission.log(path, index).absolute()),
        )
        for index, group in enumerate(groups)
    ]
    pool = _Pool(ray, asked.cluster, path, work)
    try:
        yield pool.queue
    finally:
        pool.cancel()
        ray.shutdown()


class _Pool:
    """The tasks that wait here, and those that Ray has."""

    def __init__(self, ray: Any, cluster: Cluster, path: Path, work: list[Work]) -> None:
        self._ray, self._path = ray, path
        self._waiting, self._most = work, cluster.parallel or len(work)
        self._live: dict[Any, Work] = {}
        # A worker or a node that dies is no end: the task is run again, and goes on.
        self._task = ray.remote(_run).options(
            num_cpus=cluster.cpus or 1,
            num_gpus=cluster.gpus_per_node,
            resources=cluster.resources or None,
            max_retries=-1,
        )

    def queue(self) -> list[TaskState]:
        if (self._path / tasks.FOLDER / tasks.CANCEL).exists():
            self.cancel()
        if self._live:
            ended, _ = self._ray.wait(list(self._live), num_returns=len(self._live), timeout=0)
            for reference in ended:
                del self._live[reference]
        while self._waiting and len(self._live) < self._most:
            work = self._waiting.pop(0)
            self._live[self._task.remote(work)] = work
        return [
            *(TaskState(work.cells, "submitted") for work in self._live.values()),
            *(TaskState(work.cells, "waiting") for work in self._waiting),
        ]

    def cancel(self) -> None:
        """End all, and wait until their servers are down."""
        self._waiting.clear()
        for reference in self._live:
            self._ray.cancel(reference)
        if self._live:
            self._ray.wait(list(self._live), num_returns=len(self._live), timeout=END_S)
        self._live.clear()


def _run(work: Work) -> int:
    return work()


def cancel(path: Path) -> None:
    """Ask the process that has the sweep's tasks, on any machine, to end them."""
    (tasks.folder(path) / tasks.CANCEL).touch()


def _connected(cluster: Cluster) -> Any:
    try:
        import ray
    except ModuleNotFoundError:
        raise ConfigError(
            "--executor ray needs Ray; install it with: pip install gatescope[ray]"
        ) from None
    try:
        ray.init(address=cluster.address, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise GatescopeError(
            f"no Ray at [cluster] address {cluster.address!r}: {error}; start one with: ray start"
        ) from None
    return ray
