"""The type that keeps a kernel's tiling."""

from __future__ import annotations

import json
from dataclasses import asdict

import msgspec

from core.recorder.gatescope_recorder.kernel import Kernel, Tiling, tilings

TRITON = Kernel(
    name="TRITON",
    dtype="bfloat16",
    sms=132,
    experts=8,
    local_experts=8,
    top_k=2,
    columns=(28672, 4096),
    tilings=(Tiling(32, 16, 64), Tiling(96, 32, 128), Tiling(512, 128, 256)),
    source="tuned",
    table="E=8,N=14336,device_name=NVIDIA_H200.json",
)


def test_a_tiling_applies_up_to_its_tokens_and_the_last_beyond() -> None:
    chosen = [TRITON.tiling(tokens) for tokens in (1, 32, 33, 96, 97, 512, 8192)]
    assert [one.block_m for one in chosen if one] == [16, 16, 32, 32, 128, 128, 128]
    assert Kernel("CPU").tiling(8) is None


def test_equal_neighbours_are_one_range() -> None:
    found = tilings(lambda tokens: (16 if tokens <= 3 else 32, 64 if tokens != 5 else 128), 7)
    assert found == (Tiling(3, 16, 64), Tiling(4, 32, 64), Tiling(5, 32, 128), Tiling(7, 32, 64))


def test_the_json_form_reads_back_and_lacks_nothing() -> None:
    text = json.dumps(asdict(TRITON))
    assert msgspec.json.decode(text, type=Kernel) == TRITON
    assert msgspec.json.decode(b'{"name": "CPU"}', type=Kernel) == Kernel("CPU")
    assert json.loads(text)["tilings"][0] == {"tokens": 32, "block_m": 16, "block_n": 64}
