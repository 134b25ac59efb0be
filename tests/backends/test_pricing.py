"""One rank's part of the MoE layer, which is timed alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from core.backends import nvml, pricing
from core.experiment.tables import Backend, Model

MIXTRAL = Path(__file__).parents[2] / "bench" / "recorder" / "mixtral-8x7b"
MODEL = Model(id=str(MIXTRAL))


@pytest.mark.parametrize(
    ("tp", "dp", "ep", "local", "inter"),
    [
        (1, 1, False, 8, 14336),
        (4, 1, False, 8, 3584),
        (2, 2, False, 8, 3584),  # vLLM cuts experts over data-parallel ranks too
        (1, 4, True, 2, 14336),
        (2, 1, True, 4, 14336),
    ],
)
def test_a_rank_has_whole_experts_or_a_slice_of_each(
    tp: int, dp: int, ep: bool, local: int, inter: int
) -> None:
    """Steps are of all data-parallel ranks, whose rows are gathered; 2,048 are timed at most."""
    backend = Backend(
        name="b",
        tensor_parallel=tp,
        data_parallel=dp,
        expert_parallel=ep,
        max_num_batched_tokens=500,
        moe_backend="triton",
    )
    assert pricing.shape(backend, MODEL) == {
        "experts": 8,
        "local": local,
        "top-k": 2,
        "hidden": 4096,
        "inter": inter,
        "largest": 500 * dp,
    }


def test_what_is_not_shared_evenly_has_no_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "seen", lambda env: ["a GPU"])
    backend = Backend(
        name="b",
        tensor_parallel=1,
        data_parallel=3,
        expert_parallel=True,
        moe_backend="triton",
    )
    assert pricing.price_list(backend, MODEL) == (
        None,
        "8 experts are not shared evenly by 3 ranks",
    )
    slices = replace(backend, expert_parallel=False)
    assert pricing.price_list(slices, MODEL)[1] == "14336 columns are not shared evenly by 3 ranks"
