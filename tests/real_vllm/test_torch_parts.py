"""Runs the checks of torch_parts.py in the vLLM environment: our own has no PyTorch."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from core import gatelog
from core.backends import vllm

CHECKS = Path(__file__).with_name("torch_parts.py")


def test_torch_parts(vllm_python: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [vllm_python, str(CHECKS), str(vllm.RECORDER), str(tmp_path)],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.count("ok check_") == CHECKS.read_text().count("\ndef check_") - 1  # all but the shared one


def test_the_log_of_the_checks_reads_back_without_dummies_and_padding(vllm_python: str, tmp_path: Path) -> None:
    test_torch_parts(vllm_python, tmp_path)
    log = gatelog.read(tmp_path / "steps.gatelog")
    assert log.columns["index"].tolist() == [0, 1, 2]
    assert log.tokens.tolist() == [4, 0, 3]
    assert log.loads.sum(axis=2).tolist() == [[8, 8], [0, 0], [6, 6]]
    assert log.segments["001"].tolist() == [4, 0, 3]
