"""Logs that go on in further files: bounded, read as one, and ended whole by a full disk."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from core.recorder.gatescope_recorder import beside, parts
from core.recorder.gatescope_recorder.gatelog import GateLogWriter, Header, Step
from core.recorder.gatescope_recorder.limits import Limits
from core.recorder.gatescope_recorder.parts import part_files
from core.routing import folder as gate_folder
from core.routing.folder import GateFolder

EXPERTS = 64


def writer(folder: Path, limits: Limits, dp: int = 0, dp_size: int = 1) -> GateLogWriter:
    header = Header("test", "m", 2, EXPERTS, 1, dp=dp, dp_size=dp_size, ranks=2)
    return GateLogWriter(folder / f"dp{dp}_pp0.gatelog", header, limits)


def write(log: GateLogWriter, indices: range, seed: int = 0) -> None:
    """A block of each step: random loads, which do not compress."""
    for index in indices:
        draw = np.random.default_rng([seed, index])
        loads = draw.multinomial(5000, np.full(EXPERTS, 1 / EXPERTS))
        counts = np.array([loads, loads[::-1]])
        log.append(Step(index, index, 1, 5000, 0, 5000, 9, {"": 5000}, counts))
        log.flush()


def on_disk(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.gatelog"))


def test_a_log_in_parts_reads_as_one(tmp_path: Path) -> None:
    log = writer(tmp_path / "parts", Limits(part_bytes=1200))
    reader, found = GateFolder(tmp_path / "parts"), []
    for first in range(0, 40, 8):
        write(log, range(first, first + 8))
        found.append(reader.read())
    log.close()
    whole = writer(tmp_path / "whole", Limits())
    write(whole, range(40))
    whole.close()
    want = gate_folder.read(tmp_path / "whole").loads
    assert len(part_files(tmp_path / "parts" / "dp0_pp0.gatelog")) > 5
    assert max(file.stat().st_size for file in (tmp_path / "parts").glob("*.gatelog")) <= 1200
    assert np.array_equal(np.concatenate([part.loads for part in found]), want)
    assert np.array_equal(gate_folder.read(tmp_path / "parts").loads, want)
    blocks = list(GateFolder(tmp_path / "parts").blocks())
    assert np.array_equal(np.concatenate([part.loads for part in blocks]), want)


def test_a_part_ends_after_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    log = writer(tmp_path, Limits(part_s=600.0))
    write(log, range(2))
    now[0] += 599.0
    write(log, range(2, 3))
    assert list(part_files(log.path)) == [1]
    now[0] += 1.0
    write(log, range(3, 4))
    log.close()
    assert list(part_files(log.path)) == [1, 2]
    assert gate_folder.read(tmp_path).columns["index"].tolist() == [0, 1, 2, 3]


def test_the_oldest_parts_go_and_what_is_left_is_a_log(tmp_path: Path) -> None:
    """Two ranks whose parts end at different steps: the log begins where both have steps."""
    logs = [writer(tmp_path, Limits(keep_bytes=16_000), dp, 2) for dp in (0, 1)]
    for index in range(200):
        write(logs[0], range(index, index + 1))
        # the second rank's steps are empty now and then, so its files end elsewhere
        if index % 3:
            write(logs[1], range(index, index + 1), seed=1)
        else:
            logs[1].append(Step(index, index, 1, 0, 0, 0, 0, {}, np.zeros((2, EXPERTS), int)))
        assert on_disk(tmp_path) <= 16_000
    for log in logs:
        log.close()
    firsts = [min(part_files(log.path)) for log in logs]
    assert firsts[0] != firsts[1]
    assert min(firsts) > 1
    reader = GateFolder(tmp_path)
    read = reader.read()
    left = read.columns["index"].tolist()
    assert left == list(range(left[0], 200))
    assert len(left) > 20
    assert (reader.incomplete, reader.left_out) == (0, "")
    assert read.tokens.tolist() == [10_000 if n % 3 else 5_000 for n in left]


def test_a_reader_that_falls_behind_goes_on_at_the_oldest_part(tmp_path: Path) -> None:
    log = writer(tmp_path, Limits(keep_bytes=8_000))
    write(log, range(5))
    reader = GateFolder(tmp_path)
    assert reader.read().columns["index"].tolist() == [0, 1, 2, 3, 4]
    write(log, range(5, 300))
    index = reader.read().columns["index"]
    assert index.tolist() == list(range(index[0], 300))
    assert index[0] > 5


def test_maps_go_on_and_go_with_their_part(tmp_path: Path) -> None:
    log = writer(tmp_path, Limits(keep_bytes=16_000))
    maps = {False: [[e] for e in range(EXPERTS)], True: [[EXPERTS - 1 - e] for e in range(EXPERTS)]}
    seen = 0
    for index in range(120):
        write(log, range(index, index + 1))
        if log.parts.number != seen:  # as the recorder's MapLog does
            seen = log.parts.number
            slots = [maps[seen % 2 == 0]] * 2
            line = json.dumps({"index": index, "logical_to_physical": slots})
            parts.part_path(log.path, seen, parts.MAPS).write_text(line + "\n")
    log.close()
    assert list(part_files(log.path)) == list(part_files(log.path, parts.MAPS))
    assert min(part_files(log.path)) > 2
    read = gate_folder.read(tmp_path)
    first_half = read.loads[:, :, : EXPERTS // 2].sum(axis=2).astype(float)
    assert read.by_rank is not None
    on_first = read.by_rank[:, :, 0]
    assert ((on_first == first_half) | (on_first == 5000 - first_half)).all()
    assert (on_first[-1] == 5000 - first_half[-1]).all() == (seen % 2 == 0)


FULL = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import numpy as np
from gatescope_recorder.gatelog import GateLogWriter, Header, Step
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
log = GateLogWriter(Path(sys.argv[2]) / "dp0_pp0.gatelog", Header("e", "m", 2, 64, 1))
draw = np.random.default_rng(0)
for index in range(10_000):
    loads = draw.multinomial(5000, np.full(64, 1 / 64))
    log.append(Step(index, index, 1, 5000, 0, 5000, 9, {}, np.array([loads, loads])))
    try:
        log.flush()
    except OSError as error:
        print(error.errno, log.steps)
        break
"""


@pytest.mark.fault
def test_a_full_disk_ends_the_log_at_a_whole_block(tmp_path: Path) -> None:
    recorder = Path(parts.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(recorder), str(tmp_path)], capture_output=True, text=True
    )
    error, steps = map(int, done.stdout.split())
    assert error == 27  # EFBIG; a full disk's is 28
    read = gate_folder.read(tmp_path)
    assert len(read.tokens) == steps > 10
    assert read.lost == ""


@pytest.mark.fault
def test_a_file_that_was_removed_is_followed_by_another(tmp_path: Path) -> None:
    log = writer(tmp_path, Limits())
    write(log, range(3))
    log.path.unlink()
    write(log, range(3, 5))
    log.close()
    assert gate_folder.read(tmp_path).columns["index"].tolist() == [3, 4]


def test_a_log_goes_on_where_its_folder_leads_to_by_then(tmp_path: Path) -> None:
    """Steps before the link is moved are in one folder, those after it in the other; idle, the next
    part is begun at once."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "one")
    log = writer(link, Limits())
    write(log, range(3))
    (tmp_path / "new").symlink_to(tmp_path / "other")
    (tmp_path / "new").replace(link)
    log.flush()
    assert len(gate_folder.read(tmp_path / "other").tokens) == 0
    write(log, range(3, 5))
    log.close()
    assert gate_folder.read(tmp_path / "one").columns["index"].tolist() == [0, 1, 2]
    assert gate_folder.read(tmp_path / "other").columns["index"].tolist() == [3, 4]


@pytest.mark.fault
def test_a_folder_that_was_removed_is_an_error_and_not_silence(tmp_path: Path) -> None:
    log = writer(tmp_path / "logs", Limits())
    write(log, range(3))
    shutil.rmtree(tmp_path / "logs")
    with pytest.raises(FileNotFoundError):
        write(log, range(3, 4))
    with pytest.raises(FileNotFoundError):
        log.write_totals()


def test_what_stands_beside_a_log_is_written_without_room(tmp_path: Path) -> None:
    """The temporary file cannot be written, as on a full disk."""
    side = tmp_path / "dp0_pp0.gatelog.json"
    beside.write(side, "x" * 90)
    (tmp_path / "dp0_pp0.gatelog.json.tmp").mkdir()
    beside.write(side, "short")
    assert side.read_text() == "short"
    with pytest.raises(OSError, match="No such file"):
        beside.write(tmp_path / "gone" / "x.json", "text")
