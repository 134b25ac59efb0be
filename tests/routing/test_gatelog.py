from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.gate_logs import step, writer

from core.errors import GateLogError
from core.recorder.gatescope_recorder.gatelog import GateLogWriter, Header, Step
from core.routing import folder as gate_folder
from core.routing import gatelog, measured_folder
from core.routing.gatelog import Follower


class TestOneFile:
    def test_steps_come_back_as_they_were_written(self, tmp_path: Path) -> None:
        log = writer(tmp_path)
        log.append(step(0, [3, 1], "001", start=5))
        log.append(step(1, [0, 2], "002", start=15))
        log.close()
        read = gatelog.read(log.path)
        assert read.loads.tolist() == [[[3, 1]], [[0, 2]]]
        assert read.columns["start_ns"].tolist() == [5, 15]
        assert {k: v.tolist() for k, v in read.segments.items()} == {"001": [4, 0], "002": [0, 2]}

    @pytest.mark.parametrize("largest", [255, 256, 65_535, 65_536, 1 << 20])
    def test_counts_of_any_width_come_back(self, tmp_path: Path, largest: int) -> None:
        log = GateLogWriter(
            tmp_path / "dp0_pp0.gatelog", Header("test", "tiny", 1, 2, 1, count_bytes=4)
        )
        loads = np.array([[largest, 1]], dtype=np.uint32)
        log.append(Step(0, 0, 10, largest + 1, 0, largest + 1, 1, {"001": largest + 1}, loads))
        log.close()
        assert gatelog.read(log.path).loads.tolist() == [[[largest, 1]]]

    def test_a_follower_gives_each_block_once(self, tmp_path: Path) -> None:
        log = writer(tmp_path)
        follower = Follower(log.path)
        assert not len(follower.read().tokens)
        for index in (0, 1):
            log.append(step(index, [1, 1]))
            log.flush()
            assert follower.read().columns["index"].tolist() == [index]
        log.close()

    def test_a_file_cut_anywhere_reads_up_to_its_last_whole_block(self, tmp_path: Path) -> None:
        log = writer(tmp_path)
        log.append(step(0, [1, 1]))
        log.flush()
        one_block = log.path.stat().st_size
        log.append(step(1, [2, 1]))
        log.close()
        data = log.path.read_bytes()
        for size in range(one_block, len(data)):
            log.path.write_bytes(data[:size])
            cut = gatelog.read(log.path)
            assert cut.tokens.tolist() == [2]
            assert bool(cut.lost) == (size > one_block)

    def test_a_damaged_block_ends_what_is_read_and_is_named(self, tmp_path: Path) -> None:
        log, ends = writer(tmp_path), []
        for index in range(3):
            log.append(step(index, [1, index]))
            log.flush()
            ends.append(log.path.stat().st_size)
        log.close()
        data = bytearray(log.path.read_bytes())
        data[ends[1] - 1] ^= 1
        log.path.write_bytes(data)
        read = gatelog.read(log.path)
        more = f"{ends[2] - ends[0]} bytes after the last whole block"
        assert read.tokens.tolist() == [1]
        assert read.lost == f"{more} (corrupt: a block of 1 steps has a wrong checksum)"
        found, problems = measured_folder.measure_folder(tmp_path)
        assert found["gates_logs_001"].tokens == 1
        assert problems == [
            f"{log.path}: {read.lost}: cut off; the whole blocks before it are used"
        ]
        follower = Follower(log.path)
        assert len(follower.read().tokens) == 1
        with pytest.raises(GateLogError, match="corrupt: a block of 1 steps has a wrong checksum"):
            follower.read()

    @pytest.mark.parametrize(
        ("damage", "said"),
        [
            (
                lambda data: b"GATELOG2" + data[8:],
                "version b'2' of the format: it does not start with GATELOG1",
            ),
            (
                lambda data: b"SQLite f" + data[8:],
                "not a gate log: it does not start with GATELOG1",
            ),
            (
                lambda data: data[:8] + (300).to_bytes(4, "big") + data[12:],
                "bytes: damaged, or written in another byte order",
            ),
            (lambda data: data[:40], "the header is cut off"),
            (lambda data: data[:10], "the header is cut off"),
            (
                lambda data: data.replace(b'"schema":1', b'"schema":2'),
                "schema 2, this version reads schema 1",
            ),
            (
                lambda data: data.replace(b'"layers":1', b'"layers":0'),
                "impossible sizes in the header",
            ),
            (
                lambda data: data.replace(b'"ranks":1', b'"ranks":x'),
                "the header cannot be read: JSON is malformed",
            ),
        ],
        ids=[
            "version",
            "other file",
            "byte order",
            "cut",
            "cut early",
            "schema",
            "sizes",
            "no JSON",
        ],
    )
    def test_a_header_that_cannot_be_read_is_named(
        self, tmp_path: Path, damage: Callable[[bytes], bytes], said: str
    ) -> None:
        log = writer(tmp_path)
        log.append(step(0, [1, 1]))
        log.close()
        log.path.write_bytes(damage(log.path.read_bytes()))
        with pytest.raises(GateLogError, match=re.escape(said)):
            gatelog.read(log.path)
        assert said in measured_folder.measure_folder(tmp_path)[1][0]

    @given(st.integers(0, 200), st.integers(1, 255))
    def test_a_damaged_byte_never_gives_other_numbers(self, place: int, change: int) -> None:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            log = writer(Path(folder))
            head = log.path.stat().st_size
            log.append(step(0, [5, 2]))
            log.close()
            data = bytearray(log.path.read_bytes())
            data[head + place % (len(data) - head)] ^= change
            log.path.write_bytes(data)
            try:
                read = gatelog.read(log.path)
            except GateLogError:
                return
            assert read.lost or read.loads.tolist() == [[[5, 2]]]

    def test_a_sum_that_does_not_fit_is_counted(self, tmp_path: Path) -> None:
        log = writer(tmp_path)
        wrong = step(0, [1, 1])
        log.append(Step(0, 0, 1, 3, 3, 0, 1, wrong.segments, wrong.counts))
        log.close()
        assert json.loads((tmp_path / "dp0_pp0.gatelog.json").read_text())["violations"] == 1
        assert gate_folder.problems(tmp_path) == [
            "dp0_pp0: in 1 step, loads do not add up to top_k × tokens"
        ]
