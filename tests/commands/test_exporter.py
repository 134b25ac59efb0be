"""`gatescope record --metrics-port`: what a scrape reads, and when the port closes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from support.running import eventually
from support.watched import free_port

from core.recorder.gatescope_recorder.gatelog import GateLogWriter, Header, Step

prometheus_client = pytest.importorskip("prometheus_client")
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402 - as above

ROOT = Path(__file__).parents[2]
LAYERS, EXPERTS = 3, 4
RECORDER = ROOT / "core" / "recorder"
# Writes a log as a server's recorder does, and waits; on SIGTERM it exits with 9.
COMMAND = f"""
import os, signal, sys, time
import numpy as np
from pathlib import Path
from gatescope_recorder.gatelog import GateLogWriter, Header, Step
header = Header("vllm 1", "tiny", {LAYERS}, {EXPERTS}, 1, ranks=2, placement=(0, 0, 1, 1))
log = GateLogWriter(Path(os.environ["GATESCOPE_GATE_LOGS"]) / "dp0_pp0.gatelog", header)
for index in range(10):
    counts = np.array([[6, 1, 1, 0], [2, 2, 2, 2], [0, 0, 0, 8]])
    log.append(Step(index, time.perf_counter_ns(), 2_000_000, 8, 0, 8, 1, {{}}, counts))
log.flush()
signal.signal(signal.SIGTERM, lambda *_: os._exit(9))
print("up", flush=True)
while True: signal.pause()
"""


def record(out: Path, port: int, *options: str) -> list[str]:
    program = [sys.executable, "-m", "core.cli", "record", "--out", str(out)]
    return [*program, "--metrics-port", str(port), *options, "--"]


class Recorded:
    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port = process, port

    def scrape(self) -> dict[tuple[str, ...], float]:
        """Every sample, by name and label values, in the order of the labels' names."""
        text = httpx.get(f"http://127.0.0.1:{self.port}/metrics", trust_env=False).text
        return {
            (sample.name, *(sample.labels[label] for label in sorted(sample.labels))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def has_steps(self) -> bool:
        return self.scrape().get(("gatescope_steps_total", "decode")) == 10

    def answers(self) -> bool:
        try:
            return bool(self.scrape())
        except httpx.HTTPError:
            return False


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[Recorded]:
    port = free_port()
    command = [*record(tmp_path / "logs", port), sys.executable, "-c", COMMAND]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        assert process.stdout.readline() == "up\n"
        yield Recorded(process, port)
    finally:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


def test_a_scrape_by_hand_and_the_end(recorded: Recorded) -> None:
    eventually(recorded.has_steps)
    found = recorded.scrape()
    assert found["gatescope_recorder_up",] == 1
    assert found["gatescope_tokens_total", "decode"] == 80
    assert found["gatescope_step_seconds_total", "decode"] == pytest.approx(0.02)
    assert found["gatescope_steps_total", "prefill"] == 0
    assert [found["gatescope_rank_max_mean", str(n), "decode"] for n in range(3)] == [1.75, 1, 2]
    assert [found["gatescope_active_experts", str(n), "decode"] for n in range(3)] == [3, 4, 1]
    assert found["gatescope_rank_load_share", "0", "decode", "1"] == 1 / 8
    assert ("gatescope_excess_cv", "1", "decode") not in found  # even: nothing above chance
    assert not any(name[0] == "gatescope_expert_load_share" for name in found)
    assert len(found) < LAYERS * (2 + 5) + 10
    recorded.process.send_signal(signal.SIGTERM)
    assert recorded.process.wait(30) == 9
    eventually(lambda: not recorded.answers())


def test_the_command_has_no_child_of_ours_and_its_output_ends_with_it(tmp_path: Path) -> None:
    script = "sleep 1; cat /proc/$$/task/$$/children; echo end"
    command = [*record(tmp_path, free_port()), "sh", "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    # the only child is the `cat` itself
    assert (len(done.stdout.split()), done.stdout.split()[-1], done.stderr) == (2, "end", "")


def test_experts_on_request(tmp_path: Path) -> None:
    from core.commands.exporter import Metrics
    from core.routing.windows import Watched

    log = GateLogWriter(tmp_path / "dp0_pp0.gatelog", Header("e", "m", 1, EXPERTS, 1))
    counts = np.array([[6, 1, 1, 0]])
    log.append(Step(0, time.perf_counter_ns(), 1, 8, 0, 8, 1, {}, counts))
    log.close()
    metrics = Metrics(experts=True)
    metrics.look(Watched(tmp_path))
    families = {family.name: family for family in metrics.collect()}
    shares = families["gatescope_expert_load_share"].samples
    assert [sample.value for sample in shares] == [6 / 8, 1 / 8, 1 / 8, 0]
    assert families["gatescope_rank_load_share"].samples == []  # no expert parallelism


def test_the_dashboard_and_the_page_name_what_there_is() -> None:
    from core.commands.exporter import Metrics

    families = {family.name for family in Metrics(experts=True).collect()}
    for name in ("grafana.json", "record.md"):
        named = set(re.findall(r"gatescope_[a-z_]+", (ROOT / "docs" / name).read_text()))
        named -= {"gatescope_recorder"}
        assert {n.removesuffix("_total") for n in named} <= families
    assert families <= {n.removesuffix("_total") for n in named}
    board = json.loads((ROOT / "docs" / "grafana.json").read_text())
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_a_port_that_is_taken_is_said_and_the_command_runs(
    recorded: Recorded, tmp_path: Path
) -> None:
    command = [*record(tmp_path / "other", recorded.port), "echo", "hi"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "hi\n")
    taken = f"gatescope: no metrics: 127.0.0.1:{recorded.port}: Address already in use\n"
    assert done.stderr == taken


def test_without_prometheus_client_it_is_said_and_the_command_runs(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfound = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'prometheus_client' else found(name, *a)\n"
    )
    command = [*record(tmp_path / "logs", free_port()), "echo", "hi"]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env, timeout=60)
    assert (done.returncode, done.stdout) == (0, "hi\n")
    assert "prometheus-client is missing" in done.stderr
    assert (tmp_path / "logs" / "gate_logs").is_dir()


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
def test_a_real_prometheus_scrapes_it(recorded: Recorded, tmp_path: Path) -> None:
    port = free_port()
    target = f"127.0.0.1:{recorded.port}"
    (tmp_path / "prometheus.yml").write_text(
        "scrape_configs:\n- job_name: gatescope\n  scrape_interval: 1s\n  scrape_timeout: 1s\n"
        f"  static_configs:\n  - targets: ['{target}']\n"
    )
    flags = {
        "config.file": tmp_path / "prometheus.yml",
        "storage.tsdb.path": tmp_path / "data",
        "web.listen-address": f"127.0.0.1:{port}",
    }
    words = [f"--{name}={value}" for name, value in flags.items()]
    server = subprocess.Popen(["prometheus", *words], stderr=subprocess.DEVNULL)

    def value(query: str) -> list[str]:
        url = f"http://127.0.0.1:{port}/api/v1/query"
        try:
            said = httpx.get(url, params={"query": query}, trust_env=False).json()
        except (httpx.HTTPError, ValueError):
            return []
        return [series["value"][1] for series in said["data"]["result"]]

    try:
        eventually(lambda: value('gatescope_steps_total{phase="decode"}') == ["10"])
        assert value('gatescope_rank_max_mean{phase="decode",layer="0"}') == ["1.75"]
        assert value("up") == ["1"]
    finally:
        server.kill()
        server.wait()
