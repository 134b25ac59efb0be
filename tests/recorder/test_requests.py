from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from core.recorder.gatescope_recorder.requests import Batch, Requests, segment_of


def scheduled(
    tokens: dict[str, int],
    new: dict[str, tuple[int, int]] | None = None,
    cached: dict[str, int] | None = None,
    finished: set[str] | None = None,
) -> Any:
    """A SchedulerOutput. `new`: id → (prompt length, computed tokens); `cached`: id → computed
    tokens."""
    return SimpleNamespace(
        scheduled_new_reqs=[
            SimpleNamespace(req_id=i, prompt_token_ids=[0] * length, num_computed_tokens=computed)
            for i, (length, computed) in (new or {}).items()
        ],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=list(cached or {}), num_computed_tokens=list((cached or {}).values())
        ),
        num_scheduled_tokens=tokens,
        total_num_scheduled_tokens=sum(tokens.values()),
        finished_req_ids=finished or set(),
    )


@pytest.mark.parametrize(
    ("request_id", "segment"),
    [
        ("seg.001.0", "001"),
        ("cmpl-seg.001-r2.17-0-9f3a", "001-r2"),
        ("chatcmpl-seg.a.b.3", "a.b"),
        ("cmpl-seg.001~hot-rank~0.5.3-0-9f3a", "001~hot-rank~0.5"),
        ("cmpl-5f", ""),
    ],
)
def test_the_segment_is_found_inside_vllms_request_id(request_id: str, segment: str) -> None:
    assert segment_of(request_id) == segment


def test_a_prompt_in_chunks_beside_a_decoding_request() -> None:
    requests = Requests()
    first = scheduled({"seg.a.0": 5, "seg.b.0": 6}, new={"seg.a.0": (5, 0), "seg.b.0": (10, 0)})
    assert requests.read(first) == Batch(11, 11, 2, {"a": 5, "b": 6})
    second = scheduled({"seg.a.0": 1, "seg.b.0": 4}, cached={"seg.a.0": 5, "seg.b.0": 6})
    assert requests.read(second) == Batch(5, 4, 2, {"a": 1, "b": 4})
    third = scheduled({"seg.a.0": 1, "seg.b.0": 1}, cached={"seg.a.0": 6, "seg.b.0": 10})
    assert requests.read(third) == Batch(2, 0, 2, {"a": 1, "b": 1})


def test_a_cached_prefix_is_not_prefill() -> None:
    assert Requests().read(scheduled({"x": 3}, new={"x": (10, 7)})) == Batch(3, 3, 1, {"": 3})


def test_a_preempted_request_computes_its_prompt_and_its_own_tokens_again() -> None:
    requests = Requests()
    requests.read(scheduled({"x": 4}, new={"x": (4, 0)}))
    assert requests.read(scheduled({"x": 9}, cached={"x": 0})) == Batch(9, 4, 1, {"": 9})


def test_a_finished_request_is_forgotten_after_its_last_step() -> None:
    requests = Requests()
    requests.read(scheduled({"x": 4}, new={"x": (4, 0)}))
    assert requests.read(scheduled({}, finished={"x"})) == Batch(0, 0, 0, {})
    assert requests.read(scheduled({"x": 2}, new={"x": (8, 0)})).prefill_tokens == 2
