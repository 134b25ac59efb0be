"""A folder of run directories, listed by `gatescope runs`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from core import cli
from core.rundir import past

RECORDED = Path(__file__).parents[1] / "tui" / "runs"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RECORDED, tmp_path / "runs"))


def test_what_each_run_directory_came_to(folder: Path) -> None:
    found, wrong = past.of_folder(folder)
    assert wrong == []
    assert [Path(p.path).name for p in found] == ["live", "demo", "failed"]  # the newest first
    live, demo, failed = found
    assert (live.state, live.done, live.runs) == ("unfinished", 1, 2)
    assert (demo.state, demo.done, demo.failed) == ("finished", 4, 0)
    assert demo.headline == "TPOT ms: baseline 70.68, all2all 17.05"
    assert (failed.done, failed.failed) == (1, 1)
    assert failed.tpot_ms["all2all"] is None


def test_the_command_lists_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["runs", str(folder)]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 3
    assert "finished" in rows[1]
    assert "4/4" in rows[1]
    assert rows[2].endswith(f"{folder}/failed  TPOT ms: baseline 46.63")
    assert cli.main(["runs", str(folder), "--json"]) == 0
    assert [row["done"] for row in json.loads(capsys.readouterr().out)] == [1, 4, 1]


def test_a_broken_journal_is_named_and_the_rest_listed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "demo" / "events.jsonl").write_text("{broken\n")
    assert cli.main(["runs", str(folder)]) == 1
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 2
    assert "demo/events.jsonl: not a journal" in said.err
    assert cli.main(["runs", str(folder / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err
