"""The gate logs of one server start: ranks are summed, stages put together, what a rank lost is
left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.gate_logs import step, writer

from core.analysis import step_sample
from core.errors import GateLogError
from core.routing import folder as gate_folder
from core.routing import imbalance, measured_folder
from core.routing.folder import GateFolder
from core.routing.nodes import NodeImbalance
from core.routing.run import LongestStep, RunRouting


class TestInParts:
    def test_parts_are_what_one_read_gives(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gate_folder, "PART_COUNTS", 600)
        ranks = [writer(tmp_path, dp, dp_size=2) for dp in (0, 1)]
        for index in range(1, 700):
            for dp, log in enumerate(ranks):
                if (index + dp) % 5:
                    log.append(step(index, [index % 7, 1 + dp]))
        for log in ranks:
            log.close()
        whole, parts = gate_folder.read(tmp_path), list(GateFolder(tmp_path).blocks())
        assert len(parts) > 1
        assert np.concatenate([p.loads for p in parts]).tolist() == whole.loads.tolist()
        assert [i for p in parts for i in p.columns["index"]] == whole.columns["index"].tolist()


class TestWhole:
    def test_data_parallel_ranks_are_summed_by_forward_index(self, tmp_path: Path) -> None:
        one, two = writer(tmp_path, 0, dp_size=2), writer(tmp_path, 1, dp_size=2)
        for index, loads in enumerate(([3, 1], [0, 0], [1, 0])):
            one.append(step(index, loads, start=100 * index, duration=10))
        for index, loads in enumerate(([1, 1], [2, 2], [0, 0])):
            two.append(step(index, loads, "002", start=100 * index + 5, duration=20))
        one.close()
        two.close()
        log = gate_folder.read(tmp_path)
        assert log.loads.tolist() == [[[4, 2]], [[2, 2]], [[1, 0]]]
        assert log.tokens.tolist() == [6, 4, 1]
        assert log.columns["requests"].tolist() == [2, 2, 2]
        assert log.columns["start_ns"].tolist() == [
            0,
            105,
            200,
        ]  # an idle rank's times do not count
        # the longest rank's own, not from one rank's clock to the other's
        assert log.columns["duration_ns"].tolist() == [20, 20, 10]
        assert {k: v.tolist() for k, v in log.segments.items()} == {
            "001": [4, 0, 1],
            "002": [2, 4, 0],
        }

    def test_pipeline_stages_are_put_together_by_layer(self, tmp_path: Path) -> None:
        first, second = (
            writer(tmp_path, pp=0, layers=2, pp_size=2),
            writer(tmp_path, pp=1, pp_size=2),
        )
        first.append(step(0, [3, 1], layers=2))
        second.append(step(0, [0, 4], start=20))
        first.close()
        second.close()
        log = gate_folder.read(tmp_path)
        assert log.loads.tolist() == [[[3, 1], [3, 1], [0, 4]]]
        assert log.tokens.tolist() == [4]
        assert log.columns["duration_ns"].tolist() == [30]

    def test_stages_of_data_parallel_ranks_span_within_their_rank_only(
        self, tmp_path: Path
    ) -> None:
        times = {(0, 0): (0, 10), (0, 1): (20, 10), (1, 0): (900, 10), (1, 1): (915, 20)}
        for (dp, pp), (start, took) in times.items():
            log = writer(tmp_path, dp, pp, dp_size=2, pp_size=2)
            log.append(step(0, [1, 0], start=start, duration=took))
            log.close()
        merged = gate_folder.read(tmp_path)
        assert merged.columns["start_ns"].tolist() == [0]
        assert merged.columns["duration_ns"].tolist() == [35]  # 30 and 35

    def test_a_step_waits_for_every_rank(self, tmp_path: Path) -> None:
        one, two = writer(tmp_path, 0, dp_size=2), writer(tmp_path, 1, dp_size=2)
        log = GateFolder(tmp_path)
        one.append(step(0, [1, 0]))
        one.append(step(1, [1, 0]))
        one.flush()
        assert not len(log.read().tokens)
        two.append(step(0, [0, 1]))
        two.flush()
        assert log.read().loads.tolist() == [[[1, 1]]]
        two.append(step(1, [0, 1]))
        two.flush()
        assert log.read().columns["index"].tolist() == [1]
        one.close()
        two.close()

    def test_a_step_that_one_rank_lost_is_left_out_and_counted(self, tmp_path: Path) -> None:
        one, two = writer(tmp_path, 0, dp_size=2), writer(tmp_path, 1, dp_size=2)
        for index in range(3):
            one.append(step(index, [1, 0]))
        for index in (0, 2):
            two.append(step(index, [0, 1]))
        one.close()
        two.close()
        log = GateFolder(tmp_path)
        assert log.read().columns["index"].tolist() == [0, 2]
        assert log.incomplete == 1

    def test_ranks_that_end_at_different_steps_are_reported(self, tmp_path: Path) -> None:
        """A rank that was killed loses its last block: the sums of those steps would be too
        small."""
        one, two = writer(tmp_path, 0, dp_size=2), writer(tmp_path, 1, dp_size=2)
        for index in range(5):
            one.append(step(index, [1, 0] if index != 3 else [0, 0]))
        for index in range(2):
            two.append(step(index, [0, 1]))
        one.close()
        two.close()
        log = GateFolder(tmp_path)
        assert [i for part in log.blocks() for i in part.columns["index"]] == [0, 1]
        assert log.left_out == (
            f"{tmp_path}: left out: 2 steps after forward pass 1, where dp1_pp0 ends"
        )
        found, problems = measured_folder.measure_folder(tmp_path)
        assert (problems, found["gates_logs_001"].files) == ([log.left_out], 2)

    def test_a_log_met_while_its_header_is_written_is_read_once_it_is_whole(
        self, tmp_path: Path
    ) -> None:
        """Of two ranks, the second is met at every length that its first write can have."""
        one, two = writer(tmp_path, 0, dp_size=2), writer(tmp_path, 1, dp_size=2)
        header = two.path.stat().st_size
        for rank in (one, two):
            rank.append(step(0, [1, 0]))
            rank.close()
        whole = two.path.read_bytes()
        log = GateFolder(tmp_path)
        for size in range(header):
            two.path.write_bytes(whole[:size])
            with pytest.raises(GateLogError, match=r"dp1_pp0\.gatelog: the header is cut off"):
                log.read()
        two.path.write_bytes(whole[:header])
        assert not len(log.read().tokens)
        two.path.write_bytes(whole)
        assert log.read().loads.tolist() == [[[2, 0]]]
        assert log.left_out == ""

    def test_ranks_of_two_nodes_are_on_the_first_one_s_clock_and_loads_are_by_node(
        self, tmp_path: Path
    ) -> None:
        """The second node booted earlier, and its wall clock is 5 s behind. Experts 0 and 1 are on
        the two nodes."""
        wall, offset = 10**18, 5 * 10**9
        also: dict[str, Any] = {"dp_size": 2, "ranks": 2, "placement": (0, 1), "nodes": 2}
        first: dict[str, Any] = {"host": "n1", "wall_ns": wall, "monotonic_ns": 1000}
        second: dict[str, Any] = {"host": "n2", "node": 1, "monotonic_ns": 7_001_000}
        second |= {"wall_ns": wall - offset, "clock_offset_ns": offset}
        ranks = [
            writer(tmp_path, 0, **also, **first),
            writer(tmp_path, 1, **also, **second),
        ]
        for index in range(2):
            ranks[0].append(step(index, [3, 1], start=2000 + index, duration=10))
            ranks[1].append(step(index, [2, 0], start=7_001_990 + index, duration=20))
        for rank in ranks:
            rank.close()
        log = gate_folder.read(tmp_path)
        assert log.columns["start_ns"].tolist() == [1990, 1991]
        assert log.left_node is not None
        assert log.left_node.tolist() == [3, 3]
        found = imbalance.measure_segment(log, "001").by_node
        assert found == NodeImbalance(imbalance=5 / 3, loads=[10, 2], busiest=0, left=0.5)

    def test_a_missing_rank_is_an_error_that_says_why(self, tmp_path: Path) -> None:
        writer(tmp_path, 0, dp_size=2).close()
        (tmp_path / "dp1_pp0.gatelog.json").write_text(
            '{"refused": "a monolithic kernel routes inside"}'
        )
        with pytest.raises(
            GateLogError,
            match=r"without that of dp1_pp0: dp1_pp0: a monolithic kernel routes inside",
        ):
            gate_folder.read(tmp_path)


MS = 1_000_000
STEP, STEPS = 15 * MS, 40_000  # ten minutes


@pytest.fixture(params=[2e-6, -2e-6], ids=["faster", "slower"])
def drifting(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, float]:
    """Two ranks that end every step together after 14 ms, the second one's clock off by 2 µs a
    second; in every tenth step the second is idle, in every tenth the first."""
    drift: float = request.param
    ranks = [writer(tmp_path, dp, dp_size=2) for dp in (0, 1)]
    for index in range(STEPS):
        seen = (index * STEP, index * STEP + round(index * STEP * drift))
        for dp, log in enumerate(ranks):
            is_idle = index % 10 == 3 + dp
            loads = [0, 0] if is_idle else [3, 1]
            log.append(step(index, loads, start=seen[dp], duration=0 if is_idle else 14 * MS - dp))
    for log in ranks:
        log.close()
    return tmp_path, drift


def test_drifting_clocks_do_not_make_steps_longer(drifting: tuple[Path, float]) -> None:
    folder, drift = drifting
    merged = gate_folder.read(folder)
    index = np.arange(STEPS)
    first_idle, second_idle = index % 10 == 3, index % 10 == 4
    want = np.where(first_idle, 14 * MS - 1, 14 * MS)
    assert np.array_equal(merged.columns["duration_ns"], want)
    one = index * STEP
    other = one + np.rint(one * drift).astype(np.int64)
    start = np.where(first_idle, other, np.where(second_idle, one, np.minimum(one, other)))
    assert np.array_equal(merged.columns["start_ns"], start)
    assert (np.diff(merged.columns["start_ns"]) > 0).all()
    assert merged.tokens.tolist() == [4 if i % 10 in (3, 4) else 8 for i in range(STEPS)]


def test_what_reads_the_steps_sees_no_drift(drifting: tuple[Path, float]) -> None:
    folder, _ = drifting
    late, early = RunRouting("001"), RunRouting("001")
    for part in GateFolder(folder).blocks():
        late.add(part)
        early.add(part.where(part.columns["index"] < STEPS // 10))
    assert late.longest_step == early.longest_step == LongestStep(14.0, 8)
    sample = step_sample.read([folder])
    longer = sample["duration_us"] - 14_000
    assert set(longer.round(3)) == {-0.001, 0.0}
    assert len(longer) == STEPS
    due, end = 8 * STEPS - 2 * 4 * STEPS // 10, (STEPS - 1) * STEP + 14 * MS
    lag = late.delivery_lag_ms(due, 0, end + 5 * MS)
    assert lag == pytest.approx(5, abs=1.3)  # the second clock is 1.2 ms off, the steps are not
