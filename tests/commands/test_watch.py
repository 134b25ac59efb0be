"""`gatescope watch` over logs worked out by hand, and while they grow."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from core import cli
from core.commands import watch_table
from core.recorder.gatescope_recorder.gatelog import GateLogWriter, Header, Step
from core.recorder.gatescope_recorder.limits import Limits
from core.routing import layers, rank_nodes
from core.routing.gatelog import GateLog
from core.routing.layers import Totals
from core.routing.recurrence import Recurrence
from core.routing.windows import HOUR_S, MINUTE_S, Watched

NOW_S = 1_700_000_019.0  # at the end of a slice, so that windows are whole


class Traffic:
    """A log of one layer on two ranks, whose steps are written as so many seconds before NOW_S."""

    def __init__(self, folder: Path, limits: Limits | None = None) -> None:
        header = Header(
            "vllm 1", "tiny", 1, 4, 1, ranks=2, placement=(0, 0, 1, 1), sample=10,
            wall_ns=int(NOW_S * 1e9), monotonic_ns=7_000 * 10**9,
        )  # fmt: skip
        self.log = GateLogWriter(folder / "dp0_pp0.gatelog", header, limits)
        self.index = 0

    def step(self, before_s: float, loads: list[int], prefill: int = 0) -> None:
        start, tokens = int((7_000 - before_s) * 1e9), sum(loads)
        counts = np.array([loads])
        self.log.append(
            Step(self.index, start, 2_000_000, tokens, prefill, tokens - prefill, 1, {}, counts)
        )
        self.log.flush()
        self.index += 1


def traffic(folder: Path) -> Traffic:
    found = Traffic(folder)
    found.step(4000, [9, 0, 0, 0])  # more than an hour ago
    for before in (1800, 1700):
        found.step(before, [2, 2, 2, 2])
    found.step(100, [4, 4, 0, 0], prefill=8)
    for before in (30, 5):
        found.step(before, [6, 1, 1, 0])
    return found


def test_windows_and_phases_by_hand(tmp_path: Path) -> None:
    traffic(tmp_path)
    watched = Watched(tmp_path)
    watched.read(NOW_S)
    minute = watched.windows.last("decode", MINUTE_S, NOW_S)
    hour = watched.windows.last("decode", HOUR_S, NOW_S)
    prompt = watched.windows.last("prefill", HOUR_S, NOW_S)
    assert (minute.steps, hour.steps, prompt.steps) == (2, 4, 1)
    assert watched.windows.last("prefill", MINUTE_S, NOW_S).steps == 0
    (layer,) = minute.layers()
    assert layer.rank_shares == (7 / 8, 1 / 8)
    assert layer.rank == pytest.approx(7 / 4)  # 7 tokens on a mean of 4
    assert layer.active == 3.0
    (layer,) = hour.layers()
    assert layer.rank == pytest.approx((7 / 4 + 7 / 4 + 1 + 1) / 4)
    assert layer.active == 3.5
    assert layer.shares == (16 / 32, 6 / 32, 6 / 32, 4 / 32)


def test_a_log_that_grows_and_what_falls_out_of_the_hour(tmp_path: Path) -> None:
    log, watched = traffic(tmp_path), Watched(tmp_path)
    watched.read(NOW_S)
    log.step(-40, [0, 0, 0, 8])
    watched.read(NOW_S + 60)
    minute = watched.windows.last("decode", MINUTE_S, NOW_S + 60)
    assert (minute.steps, minute.layers()[0].hottest) == (1, 3)
    watched.read(NOW_S + 3500)
    assert watched.windows.last("decode", HOUR_S, NOW_S + 3500).steps == 3
    watched.read(NOW_S + 10_000)
    assert watched.windows.last("decode", HOUR_S, NOW_S + 10_000).steps == 0


def test_a_later_start_takes_the_place(tmp_path: Path) -> None:
    traffic(tmp_path / "gate_logs")
    watched = Watched(tmp_path)
    watched.read(NOW_S)
    time.sleep(0.01)  # so that its files are newer
    Traffic(tmp_path / "gate_logs-start2").step(1, [8, 0, 0, 0])
    watched.read(NOW_S)
    assert watched.logs == tmp_path / "gate_logs-start2"
    assert watched.windows.last("decode", HOUR_S, NOW_S).steps == 1


def test_a_log_in_parts(tmp_path: Path) -> None:
    log, watched = Traffic(tmp_path, Limits(keep_bytes=4000)), Watched(tmp_path)
    for n in range(200):
        log.step(50, [2, 2, 2, n % 3])
        if n == 100:
            watched.read(NOW_S)
    watched.read(NOW_S)
    seen = watched.windows.last("decode", MINUTE_S, NOW_S).steps
    assert log.log.parts.number > 4
    assert 10 < seen < 200
    assert watched.problem == ""


DECODE = [
    "decode   minute  2 steps, 16 tokens, 2.00 ms a step; r0 88%  r1 12%",
    "         hour    4 steps, 32 tokens, 2.00 ms a step; r0 69%  r1 31%",
    "layer  max/mean   excess CV  active   hottest expert  busiest rank",
    "L00    1.75 1.38  1.069 –    3.0 3.5  e0 75% e0 50%   r0 88% r0 69%",
]


def test_the_text(tmp_path: Path) -> None:
    traffic(tmp_path)
    watched = Watched(tmp_path)
    watched.read(NOW_S)
    lines = watch_table.lines(watched, NOW_S)
    about = "vllm 1, tiny: 1 layers × 4 experts, top-1, 2 ranks; one step in 10"
    assert lines[:2] == [str(tmp_path), about]
    prefill = lines.index("prefill  minute  no step")
    assert (
        lines[prefill + 1] == "         hour    1 step, 8 tokens, 2.00 ms a step; r0 100%  r1 0.0%"
    )
    assert lines[-5:-1] == DECODE


def spread(folder: Path, layers: int = 8, nodes: int = 2) -> Watched:
    """256 experts on 64 ranks, the first half of which is on another node."""
    places = tuple(expert // 4 for expert in range(256))
    header = Header(
        "vllm 0.30.0", "org/a-model", layers, 256, 8, ranks=64, dp_size=1, placement=places,
        wall_ns=int(NOW_S * 1e9), monotonic_ns=0,
    )  # fmt: skip
    log = GateLogWriter(folder / "dp0_pp0.gatelog", header)
    chances = np.arange(1, 257) / 32_896
    counts = np.random.default_rng(0).multinomial(60_000, chances, size=layers)
    log.append(Step(0, -(10**9), 98_765_432, 7500, 0, 7500, 64, {}, counts))
    log.close()
    for rank in range(64):
        about = {"node": f"gpu-{rank * nodes // 64}"}
        (folder / f"dp0_pp0_tp{rank}.gatelog.about.json").write_text(json.dumps(about))
    watched = Watched(folder)
    watched.read(NOW_S)
    return watched


def test_many_experts_on_many_ranks_fit_into_80_columns(tmp_path: Path) -> None:
    lines = watch_table.lines(spread(tmp_path, nodes=1), NOW_S)
    assert max(map(len, lines[1:])) < 80
    assert any("r63 3.1%  r62 " in line for line in lines)
    assert not any("gpu-0" in line for line in lines)


def test_nodes_are_named_where_there_are_several(tmp_path: Path) -> None:
    """Σ 1…128 of Σ 1…256 is a quarter."""
    watched = spread(tmp_path)
    assert watched.nodes == ("gpu-0",) * 32 + ("gpu-1",) * 32
    lines = watch_table.lines(watched, NOW_S)
    assert "64 ranks on 2 nodes" in lines[1]
    assert any("; r63 3.1% …; gpu-1 75% …" in line for line in lines)
    (row,) = [line for line in lines if line.startswith("L00")]
    assert row.endswith("gpu-1 75% gpu-1 75%")
    (tmp_path / "dp0_pp0_tp7.gatelog.about.json").unlink()  # one rank did not say
    assert rank_nodes.of_ranks(tmp_path, watched.header) == ()  # type: ignore[arg-type]


def test_the_command_prints_once_without_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["watch", str(tmp_path)]) == 1
    assert "no gate log here yet" in capsys.readouterr().out
    (tmp_path / "dp0_pp0.gatelog.json").write_text(
        json.dumps({"closed": True, "refused": "speculative decoding"})
    )
    assert cli.main(["watch", str(tmp_path)]) == 1
    assert "dp0_pp0: speculative decoding" in capsys.readouterr().out
    traffic(tmp_path)
    assert cli.main(["watch", str(tmp_path)]) == 0
    assert "hour    no step" in capsys.readouterr().out  # all of it was long ago
    assert cli.main(["watch", str(tmp_path / "nothing")]) == 2


def test_stretches_join_as_the_whole(tmp_path: Path) -> None:
    draw = np.random.default_rng(5)
    loads = draw.integers(0, 50, (300, 2, 8))
    columns = {"tokens": np.full(300, 200), "duration_ns": np.full(300, 5)}
    log = GateLog(loads, columns, {}, 1, placement=(0, 0, 0, 0, 1, 1, 1, 1))
    shared = Recurrence(2, 8)
    whole, parts = Totals(), [Totals(recurrence=shared) for _ in range(3)]
    whole.add(log)
    for n, part in enumerate(parts):
        part.add(log.where(np.arange(300) // 100 == n))
    found = layers.joined(parts)
    for one, other in zip(found.layers(), whole.layers(), strict=True):
        assert one.cv == pytest.approx(other.cv)
        assert one.excess == pytest.approx(other.excess, rel=1e-6)
        assert one.rank_shares == pytest.approx(other.rank_shares)
    assert (found.steps, found.duration_ns) == (300, 1500)
