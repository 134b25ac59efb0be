"""A sweep on a Ray cluster of two nodes on this machine, with real raylets and built-in servers."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.swept import LIMIT_S, check_done_once, eventually, head, is_told, long, results, told

from core.experiment import events
from core.rundir import tasks

pytestmark = pytest.mark.cluster
CLUSTER = 'address = "{address}"\nresources = {{ cells = 1 }}'


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that runs no cell, and two nodes that run one each."""
    pytest.importorskip("ray", reason="needs Ray: the extra gatescope[ray]")
    from ray.cluster_utils import Cluster

    handler = signal.getsignal(signal.SIGTERM)
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    signal.signal(signal.SIGTERM, handler)  # Ray's own would keep the tests from ending
    try:
        yield found
    finally:
        found.shutdown()


def added(cluster: Any) -> Any:
    return cluster.add_node(num_cpus=1, resources={"cells": 1})


def test_a_node_that_dies_loses_its_unfinished_runs_only(cluster: Any, tmp_path: Path) -> None:
    """Two tasks on two nodes; the second node is killed while both run."""
    added(cluster)
    dying = added(cluster)
    place = long(tmp_path, [4, 8], CLUSTER.format(address=cluster.address))
    with head(place, "--executor", "ray", "--out", "made") as process:
        eventually(lambda: told(place, events.RunFinished) > 1, "finished runs", tmp_path)
        before = results(place)
        cluster.remove_node(dying, allow_graceful=False)
        assert process.wait(LIMIT_S) == 0, (tmp_path / "head.txt").read_text()
    assert before.items() <= results(place).items()
    check_done_once(place, 2)


def test_the_tasks_end_with_the_head_and_by_command(cluster: Any, tmp_path: Path) -> None:
    added(cluster)
    place = long(tmp_path, [4], CLUSTER.format(address=cluster.address))
    with head(place, "--executor", "ray", "--out", "made") as process:
        eventually(lambda: is_told(place, events.RunStarted), "a run", tmp_path)
        process.send_signal(signal.SIGKILL)
        process.wait()
    eventually(lambda: not _of(place.made), "no process left", tmp_path)
    with head(place, "--resume", "made") as process:
        eventually(lambda: told(place, events.RunStarted) > 1, "the run again", tmp_path)
        assert place.gatescope("sweep", "cancel", "made").returncode == 0
        assert process.wait(LIMIT_S) == 1
    assert not _of(place.made)
    assert "stopped by SIGTERM" in place.gatescope("sweep", "logs", "made").stdout
    assert len(tasks.read(place.made)) == 2
    again = place.gatescope("--batch", "--resume", "made")
    assert again.returncode == 0, again.stderr
    check_done_once(place, 2)


def _of(made: Path) -> list[psutil.Process]:
    """Processes that run this sweep's cells."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or ())
        if str(made) in words and "--batch" not in words:
            found.append(process)
    return found
