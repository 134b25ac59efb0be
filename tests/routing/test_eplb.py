"""Rank imbalance where EPLB moves experts: by the map that was logged when a step ran, worked out
by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.synthetic import write_log

from core import cli
from core.analysis import step_sample
from core.errors import GateLogError
from core.recorder.gatescope_recorder.gatelog import GateLogWriter, Header, Step
from core.routing import imbalance, measured_folder
from core.routing.folder import GateFolder

# Two ranks with three slots each: 0 1 2 | 3 4 5. Four experts, so two have a second replica.
BEFORE = [
    [0, 4],
    [1, 5],
    [2, -1],
    [3, -1],
]  # experts 0 and 1 on both ranks, 2 on the first, 3 on the second
AFTER = [[0, 1], [3, -1], [4, -1], [2, 5]]  # expert 0 twice on the first, 3 on both


def note(
    folder: Path, maps: list[tuple[int, list[list[list[int]]]]], name: str = "dp0_pp0"
) -> None:
    lines = [
        json.dumps({"index": i, "wall_ns": 0, "logical_to_physical": m}) + "\n" for i, m in maps
    ]
    (folder / f"{name}.eplb.jsonl").write_text("".join(lines))


def measured(folder: Path) -> imbalance.Imbalance:
    found, problems = measured_folder.measure_folder(folder)
    assert problems == []
    return found["gates_logs_001"]


def test_each_step_counts_under_the_map_of_its_time(tmp_path: Path) -> None:
    # step 0, BEFORE: 8/2 + 2/2 + 4 + 0 = 9 of 14 | 4 + 1 + 0 = 5: 9/7; step 1, AFTER: 8 | 2 + 4:
    # 8/7
    write_log(tmp_path / "dp0_pp0.gatelog", np.array([[[8, 2, 4, 0]]] * 2), ranks=2)
    note(tmp_path, [(0, [BEFORE]), (1, [AFTER])])
    found = measured(tmp_path)
    assert found.rank_imbalance == pytest.approx((9 / 7 + 8 / 7) / 2)
    assert found.rank_loads == pytest.approx([9 + 8, 5 + 6])
    assert found.placement == "EPLB"


def test_steps_before_the_first_map_count_under_it(tmp_path: Path) -> None:
    write_log(tmp_path / "dp0_pp0.gatelog", np.array([[[8, 2, 4, 0]]] * 2), ranks=2)
    note(tmp_path, [(1, [BEFORE])])
    assert measured(tmp_path).rank_imbalance == pytest.approx(9 / 7)


def test_without_a_map_there_is_no_rank_imbalance_and_it_is_said_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_log(tmp_path / "dp0_pp0.gatelog", np.array([[[8, 2, 4, 0]]] * 2), ranks=2)
    found = measured(tmp_path)
    assert found.rank_imbalance is None
    assert found.rank_loads == []
    assert cli.main(["imbalance", str(tmp_path)]) == 0
    assert "rank max/mean – (EPLB, but no map of it was logged)" in capsys.readouterr().out


def test_placements_that_do_not_move_are_named(tmp_path: Path) -> None:
    for name, placement in (("linear", (0, 0, 1, 1)), ("round robin", (0, 1, 0, 1))):
        folder = tmp_path / name
        write_log(
            folder / "dp0_pp0.gatelog", np.array([[[8, 2, 4, 0]]]), ranks=2, placement=placement
        )
        assert measured(folder).placement == name


def test_ranks_are_summed_before_the_map_and_stages_have_their_own(tmp_path: Path) -> None:
    for dp in (0, 1):
        for pp in (0, 1):
            header = Header(
                "test", "test", 1, 4, 2, dp=dp, dp_size=2, pp=pp, pp_size=2, ranks=2
            )  # two stages of a layer
            log = GateLogWriter(tmp_path / f"dp{dp}_pp{pp}.gatelog", header)
            log.append(
                Step(
                    0,
                    0,
                    10,
                    4,
                    0,
                    4,
                    4,
                    {"001": 4},
                    np.array([[4, 2, 2, 0] if dp else [4, 0, 2, 2]]),
                )
            )
            log.close()
    note(tmp_path, [(0, [BEFORE])])
    note(tmp_path, [(0, [AFTER])], "dp0_pp1")
    # both layers: 8 2 4 2; BEFORE: 4 + 1 + 4 = 9 | 4 + 1 + 2 = 7; AFTER: 8 + 1 = 9 | 2 + 4 + 1 = 7
    assert measured(tmp_path).rank_imbalance == pytest.approx(9 / 8)
    assert measured(tmp_path).rank_loads == pytest.approx([18, 14])


def test_a_map_that_grows_while_it_is_read(tmp_path: Path) -> None:
    header = Header("test", "test", 1, 4, 2, ranks=2)
    log, reader = GateLogWriter(tmp_path / "dp0_pp0.gatelog", header), GateFolder(tmp_path)
    step = np.array([[8, 2, 4, 0]])
    note(tmp_path, [(0, [BEFORE])])
    log.append(Step(0, 0, 10, 7, 0, 7, 7, {"001": 7}, step))
    log.flush()
    first = reader.read().by_rank
    with open(tmp_path / "dp0_pp0.eplb.jsonl", "a") as file:
        file.write(
            json.dumps({"index": 1, "logical_to_physical": [AFTER]}) + "\n" + '{"index": 2, "log'
        )
    log.append(Step(1, 10, 10, 7, 0, 7, 7, {"001": 7}, step))
    log.close()
    second = reader.read().by_rank
    assert first is not None
    assert second is not None
    assert (first.tolist(), second.tolist()) == ([[[9, 5]]], [[[8, 6]]])


def test_a_line_that_is_no_map_is_named(tmp_path: Path) -> None:
    write_log(tmp_path / "dp0_pp0.gatelog", np.array([[[8, 2, 4, 0]]]), ranks=2)
    (tmp_path / "dp0_pp0.eplb.jsonl").write_text('{"index": 0}\n')
    with pytest.raises(GateLogError, match=r"dp0_pp0\.eplb\.jsonl: a line is not a map of experts"):
        GateFolder(tmp_path).read()


def test_the_extra_load_is_of_ranks_as_they_were(tmp_path: Path) -> None:
    write_log(tmp_path / "dp0_pp0.gatelog", np.array([[[8, 2, 4, 0]]] * 2), ranks=2)
    note(tmp_path, [(0, [BEFORE]), (1, [AFTER])])
    sample = step_sample.read([tmp_path])
    assert sample["extra"].tolist() == [2, 1]
    assert sample["mean_load"].tolist() == [7, 7]
    assert (sample.ranks, sample.placed) == (2, "EPLB")
