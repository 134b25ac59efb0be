"""Random tokens among prompts are recognised, and text is not."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Sequence
from pathlib import Path

import pytest

from core.recorder.gatescope_recorder.prompts import MOST, Prompts
from core.routing import repeats

DATASETS = Path(__file__).parents[2] / "datasets"
BYTES = 258  # the built-in engine's vocabulary


def said(folder: Path, prompts: Sequence[Sequence[int]], vocabulary: int) -> str:
    seen = Prompts()
    for prompt in prompts:
        seen.add(prompt)
    side = {"closed": True, "steps": 1, "prompts": seen.noted(vocabulary)}
    (folder / "dp0_pp0.gatelog.json").write_text(json.dumps(side))
    return repeats.random_prompts(folder)


def test_pairs_by_hand() -> None:
    seen = Prompts()
    seen.add([1, 1, 2])
    seen.add(None)
    seen.add([1, 2, 3, 3])  # 1 with two others, 2 with one
    seen.add([3])  # with two
    assert seen.noted(9) == {"count": 3, "alike": 5, "pairs": 12 + 7, "vocabulary": 9}
    for _ in range(MOST):
        seen.add([3])
    assert seen.noted(9)["count"] == MOST


@pytest.mark.parametrize("vocabulary", [BYTES, 32_000, 151_936])
def test_random_tokens(tmp_path: Path, vocabulary: int) -> None:
    draw = random.Random(0)
    prompts = [draw.choices(range(vocabulary), k=256) for _ in range(MOST)]
    assert said(tmp_path, prompts, vocabulary).startswith("the prompts are random tokens")
    starts = [draw.randrange(vocabulary) for _ in range(MOST)]  # as vllm bench's random dataset
    rows = [[(start + n) % vocabulary for n in range(256)] for start in starts]
    assert said(tmp_path, rows, vocabulary)


def test_random_letters(tmp_path: Path) -> None:
    draw = random.Random(0)
    prompts = [draw.choices(string.printable.encode(), k=200) for _ in range(MOST)]
    assert said(tmp_path, prompts, BYTES)


def test_text_is_not_random(tmp_path: Path) -> None:
    for file in sorted(DATASETS.glob("*.jsonl")):
        texts = [json.loads(line)["text"] for line in file.read_text().splitlines()]
        assert said(tmp_path, [text.encode() for text in texts], BYTES) == "", file.name


def test_too_few_tokens_do_not_tell(tmp_path: Path) -> None:
    assert said(tmp_path, [[n, n + 1] for n in range(0, 80, 2)], 32_000) == ""
    assert said(tmp_path, [[1, 2, 3]] * 9, 0) == ""  # an older log
