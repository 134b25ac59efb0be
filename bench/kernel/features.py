"""Whether other figures of a load vector price a kernel better: mean error at points left out.

    uv run python bench/kernel/features.py PRICE_LIST…

At every size of the lists, least squares without negative coefficients, each load vector (with all
that equal it but for the order of experts) left out in turn.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from core import files
from core.recorder.gatescope_recorder.kernel import Kernel
from core.routing import price, work
from core.routing.price import PriceList, Timed
from core.routing.work import Work
from core.stats.arrays import Floats

ENOUGH = 12  # points of a size


def features(timed: Timed, kernel: Kernel) -> dict[str, list[Floats]]:
    """By name; `one`: waves if every active expert had one tile."""
    loads = np.array(timed.loads)[:, None]
    sizes = np.full(len(loads), timed.tokens)
    done = work.of_steps(loads, sizes, (), kernel)
    active, tiles = _flat(done.active), _flat(done.tiles)
    first, second = _waves(done)
    one_first, one_second = _waves(work.of_steps((loads > 0).astype(int), sizes, (), kernel))
    return {
        "active, waves (the price list's)": [active, first, second],
        "active, tiles": [active, tiles],
        "active, tiles, waves": [active, tiles, first, second],
        "active, waves, tiles - active": [active, first, second, tiles - active],
        "active, one tile's waves, tiles - active": [active, one_first, one_second, tiles - active],
        "active, one tile's waves, waves beyond": [
            active,
            one_first,
            one_second,
            first - one_first,
            second - one_second,
        ],
        "active up to half, active, waves": [
            active,
            np.minimum(active, loads.shape[2] / 2),
            first,
            second,
        ],
    }


def _flat(values: Floats | None) -> Floats:
    assert values is not None  # a price list names its tiling
    return np.asarray(values[:, 0, 0])


def _waves(done: Work) -> tuple[Floats, Floats]:
    return _flat(done.first_waves), _flat(done.second_waves)


def left_out(timed: Timed, columns: list[Floats], *, beyond: bool = False) -> float:
    """Mean error in %; `beyond`: with what others of equal figures took beyond the line, as in
    `Prices`."""
    from scipy.optimize import nnls

    y, alike = np.array(timed.us), np.sort(np.array(timed.loads), axis=1)
    design = np.column_stack([np.ones(len(y)), *columns])
    design = design / np.maximum(design.max(axis=0), 1)
    guess = np.empty(len(y))
    for point in range(len(y)):
        others = (alike != alike[point]).any(axis=1)
        found = nnls(design[others], y[others])[0]
        guess[point] = design[point] @ found
        if beyond:
            equal = others & (abs(design - design[point]) < 1e-9).all(axis=1)
            guess[point] += (y - design @ found)[equal].sum() / (equal.sum() + price.SHRINK)
    return 100 * float(abs(guess / y - 1).mean())


def main() -> None:
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    errors: dict[str, list[float]] = {}
    for file in sys.argv[1:]:
        given = files.read(Path(file), PriceList)
        for timed in given.sizes:
            if len(timed.us) >= ENOUGH:
                each = features(timed, given.kernel)
                for name, columns in each.items():
                    errors.setdefault(name, []).append(left_out(timed, columns))
                timed_too = left_out(timed, next(iter(each.values())), beyond=True)
                errors.setdefault("the first, with timed figures", []).append(timed_too)
    for name, found in errors.items():
        print(f"{name:42} {np.mean(found):.2f} %, worst size {max(found):.2f} % ({len(found)})")


if __name__ == "__main__":
    main()
