"""Runs the checks of torch_parts.py in the vLLM environment, since our own has no PyTorch."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from core.backends import vllm
from core.routing import gatelog

Checked = tuple[subprocess.CompletedProcess[str], Path]
CHECKS = Path(__file__).parents[1] / "support" / "torch_parts.py"


@pytest.fixture(scope="module")
def checked(vllm_python: str, tmp_path_factory: pytest.TempPathFactory) -> Checked:
    folder = tmp_path_factory.mktemp("torch-parts")
    done = subprocess.run(
        [vllm_python, str(CHECKS), str(vllm.RECORDER), str(folder)],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done, folder


def test_every_check_passes(checked: Checked) -> None:
    done, _ = checked
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    checks = CHECKS.read_text().count("\ndef check_") - 1  # one is shared by others
    assert done.stdout.count("ok check_") == checks


def test_the_log_reads_back_without_dummies_and_padding(
    checked: Checked,
) -> None:
    log = gatelog.read(checked[1] / "steps.gatelog")
    assert log.columns["index"].tolist() == [0, 1, 2]
    assert log.tokens.tolist() == [4, 0, 3]
    assert log.loads.sum(axis=2).tolist() == [[8, 8], [0, 0], [6, 6]]
    assert log.segments["001"].tolist() == [4, 0, 3]


def test_one_step_in_three(checked: Checked) -> None:
    log = gatelog.read(checked[1] / "sampled.gatelog")
    assert log.columns["index"].tolist() == [0, 3, 6, 9]
    # the first was the prompt: requests are followed in the steps that are not recorded too
    assert log.columns["prefill_tokens"].tolist() == [5, 0, 0, 0]
    assert log.loads[:, 0].sum(axis=1).tolist() == [10, 10, 0, 0]


def test_a_full_disk_leaves_whole_blocks(checked: Checked) -> None:
    log = gatelog.read(checked[1] / "disk.gatelog")
    assert (log.tokens.tolist(), log.lost) == ([3], "")


def test_passes_timed_by_events_start_by_the_hosts_clock(checked: Checked) -> None:
    """The events' clock is a tenth too fast: a step starts at most that share of 0.4 s late."""
    done, folder = checked
    log = gatelog.read(folder / "events.gatelog")
    line = next(line for line in done.stdout.splitlines() if line.startswith("launched "))
    launched = [int(at) for at in line.split()[1:]]
    late = log.columns["start_ns"] - launched
    assert len(late) == 6
    assert late.min() >= 0
    assert 0 <= late[0] < 20_000_000
    assert late.max() < 100_000_000
    assert (log.columns["duration_ns"] > 0).all()
