"""Figures of single steps: against the definitions, one step and layer after the other."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.routing import steps
from core.stats.arrays import Floats


def by_definition(
    loads: Floats, tokens: npt.NDArray[np.int64], placement: tuple[int, ...]
) -> dict[str, Floats]:
    """top_k = 2; `tokens` [steps, layers]."""
    ranks = [
        [e for e, r in enumerate(placement) if r == rank] for rank in range(max(placement) + 1)
    ]
    names = (
        "layers",
        "cv",
        "cv_squared",
        "floor_squared",
        "expert_ratio",
        "rank_ratio",
        "rank_extra",
        "violations",
    )
    made: dict[str, Floats] = {name: np.zeros(len(loads)) for name in names}
    for s, layer in np.ndindex(*tokens.shape):
        x, n = loads[s, layer], float(tokens[s, layer])
        if not n:
            made["violations"][s] += float(x.sum() > 0)
            continue
        cv = float(x.std() / (x.mean() + 1e-10))
        made["layers"][s] += 1
        made["cv"][s] += cv
        made["violations"][s] += x.sum() != 2 * n
        if n >= 2:
            p = x / n
            made["cv_squared"][s] += cv**2
            made["floor_squared"][s] += len(x) / 4 * (p * (1 - p)).sum() / (n - 1)
        if x.sum():
            by_rank = np.array([x[own].sum() for own in ranks])
            made["expert_ratio"][s] += x.max() / x.mean()
            made["rank_ratio"][s] += by_rank.max() / by_rank.mean()
            made["rank_extra"][s] += by_rank.max() - by_rank.mean()
    return made


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    largest=st.sampled_from([1, 30, 255, 3_000, 60_000]),
    kind=st.sampled_from([np.uint8, np.uint16, np.int64, np.float64]),
    layered=st.booleans(),
    adds_up=st.booleans(),
)
def test_any_loads_in_any_type(
    seed: int, largest: int, kind: type, layered: bool, adds_up: bool
) -> None:
    rng = np.random.default_rng(seed)
    largest = min(largest, 255) if kind is np.uint8 else largest
    tokens = rng.integers(0, largest + 1, (5, 3 if layered or not adds_up else 1)) // 6
    tokens = np.broadcast_to(tokens, (5, 3))
    loads = (
        rng.multinomial(2 * tokens, np.full(6, 1 / 6))
        if adds_up
        else rng.integers(0, largest + 1, (5, 3, 6))
    )
    columns = rng.integers(0, 2, (5, 2)).astype(np.float64)
    given_tokens = tokens if layered or not adds_up else tokens[:, 0]
    placement = (0, 1, 1, 0, 2, 2)
    found, sums = steps.measure(loads.astype(kind), given_tokens, 2, placement, columns)
    for name, values in by_definition(loads.astype(np.float64), tokens, placement).items():
        assert np.asarray(getattr(found, name), float).astype(
            bool if name == "violations" else float
        ) == pytest.approx(
            values.astype(bool) if name == "violations" else values, rel=1e-9, abs=1e-9
        ), name
    assert sums == pytest.approx(np.einsum("sle,sc->cle", loads.astype(float), columns))


def test_a_whole_model_is_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = np.random.default_rng(1).integers(0, 9, (7, 3, 10)).astype(np.uint16)
    whole = steps.measure(loads, loads[:, 0].sum(axis=1), 1, (0,) * 5 + (1,) * 5, np.ones((7, 1)))
    monkeypatch.setattr(
        steps, "CHUNK", 3 * 7 * 3
    )  # three experts at a time: the last piece is smaller
    pieces = steps.measure(loads, loads[:, 0].sum(axis=1), 1, (0,) * 5 + (1,) * 5, np.ones((7, 1)))
    for name in whole[0].__slots__:
        assert getattr(whole[0], name).tolist() == getattr(pieces[0], name).tolist()
    assert whole[1].tolist() == pieces[1].tolist()


def test_a_part_without_steps_is_empty() -> None:
    none = np.zeros((0, 2, 4), np.uint16)
    figures, sums = steps.measure(none, np.zeros(0, np.int64), 2, (0, 0, 1, 1), np.zeros((0, 3)))
    assert figures.cv.shape == figures.rank_extra.shape == (0,)
    assert sums.shape == (3, 2, 4)
    assert not sums.any()
