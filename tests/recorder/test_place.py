from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from core.recorder.gatescope_recorder import place
from core.recorder.gatescope_recorder.place import RefusedError


def config(speculative: Any = None, **parallel: Any) -> Any:
    sizes = {"tensor_parallel_size": 1, "data_parallel_size": 1, **parallel}
    return SimpleNamespace(speculative_config=speculative, parallel_config=SimpleNamespace(**sizes))


EP = {"enable_expert_parallel": True}


@pytest.mark.parametrize(
    ("parallel", "experts", "ranks"),
    [
        ({"tensor_parallel_size": 2}, 8, ()),
        ({"data_parallel_size": 2, **EP}, 8, (0, 0, 0, 0, 1, 1, 1, 1)),
        ({"tensor_parallel_size": 2, "data_parallel_size": 2, **EP}, 6, (0, 0, 1, 1, 2, 3)),
        (
            {"data_parallel_size": 2, "expert_placement_strategy": "round_robin", **EP},
            4,
            (0, 1, 0, 1),
        ),
        ({"data_parallel_size": 2, "enable_eplb": True, **EP}, 4, ()),
        ({"data_parallel_size": 2, "all2all_backend": "moonep", **EP}, 4, ()),
    ],
)
def test_placement_is_vllms(parallel: dict[str, Any], experts: int, ranks: tuple[int, ...]) -> None:
    assert place.placement(config(**parallel), experts) == ranks


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        (config(speculative=object()), "speculative decoding"),
        (config(enable_dbo=True), "dual batch overlap"),
        (config(use_sequence_parallel_moe=True), "each rank routes a shard"),
        (config(prefill_context_parallel_size=2), "prefill context parallel"),
    ],
)
def test_layouts_that_hide_rows_are_refused(refused: Any, reason: str) -> None:
    with pytest.raises(RefusedError, match=reason):
        place.check(refused)


def test_plain_layouts_are_not() -> None:
    place.check(config(tensor_parallel_size=4))
    place.check(config(data_parallel_size=4, **EP))
