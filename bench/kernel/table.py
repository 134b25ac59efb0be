"""What the time of the MoE kernel depends on: R² by step size, of the kernel timed alone.

    python3 bench/kernel/table.py OUT [SHAPE…]      # on one GPU, about 2 minutes a shape

A shape is TP1, TP2 or TP4 (that slice of all eight experts of Mixtral-8x7B) or EP2 or EP4 (whole
experts of one rank); all, if none is named. Each price list is written to OUT/SHAPE.json; one that
is there already is read instead, so that the table can be made again without a GPU. R² is of a line
in one measure, and of the price list itself: active experts and waves of both GEMMs.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from core import files
from core.recorder.gatescope_recorder import kernel_times
from core.routing import price, work
from core.routing.price import PriceList, Timed
from core.stats.arrays import Floats

SHAPES = {
    "TP1": (8, 14336),
    "TP2": (8, 7168),
    "TP4": (8, 3584),
    "EP2": (4, 14336),
    "EP4": (2, 14336),
}
EXPERTS, TOP_K, HIDDEN, LARGEST = 8, 2, 4096, 1024
HEAD = ("tokens", "tiling", "µs", "CV", "load", "active", "tiles", "active + waves")


def listed(out: Path, name: str) -> PriceList:
    """The list of one shape: measured, if it is not there."""
    file = out / f"{name}.json"
    if not file.exists():
        local, inter = SHAPES[name]
        options = {"experts": EXPERTS, "local": local, "top-k": TOP_K, "hidden": HIDDEN}
        options |= {"inter": inter, "largest": LARGEST}
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        command = [
            sys.executable,
            "-m",
            kernel_times.__name__,
            *words,
            "--out",
            str(file.resolve()),
        ]
        subprocess.run(command, check=True, stdout=sys.stderr, cwd=ROOT)
    return files.read(file, PriceList)


def rows(given: PriceList) -> list[tuple[str, ...]]:
    """One for each timed size."""
    return [_row(given, timed) for timed in given.sizes]


def _row(given: PriceList, timed: Timed) -> tuple[str, ...]:
    loads, y = np.array(timed.loads), np.array(timed.us)
    sizes = np.full(len(loads), timed.tokens)
    done = work.of_steps(loads[:, None], sizes, (), given.kernel)
    found = price.fit(given).us(done, sizes)[:, 0, 0]
    tiling = given.kernel.tiling(timed.tokens)
    assert done.tiles is not None
    assert tiling is not None
    measures = [loads.std(axis=1) / np.maximum(loads.mean(axis=1), 1e-9), loads.sum(axis=1)]
    measures += [done.active[:, 0, 0], done.tiles[:, 0, 0]]
    return (
        str(timed.tokens),
        f"{tiling.block_m}x{tiling.block_n}",
        f"{y.min():.0f}–{y.max():.0f}",
        *(_of_a_line(np.asarray(x, np.float64), y) for x in measures),
        f"{_r2(found, y):.3f}",
    )


def _of_a_line(x: Floats, y: Floats) -> str:
    if not np.ptp(x):
        return "–"
    design = np.column_stack([np.ones(len(x)), x])
    return f"{_r2(design @ np.linalg.lstsq(design, y, rcond=None)[0], y):.2f}"


def _r2(found: Floats, y: Floats) -> float:
    return 1 - float(((y - found) ** 2).sum() / ((y - y.mean()) ** 2).sum())


def main() -> None:
    if len(sys.argv) < 2 or not set(sys.argv[2:]) <= set(SHAPES):
        raise SystemExit(__doc__)
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[2:] or SHAPES:
        given = listed(out, name)
        print(f"\n{name}: {given.gpu}, {given.engine}, {given.kernel.source} tiling\n")
        for cells in (HEAD, ("---",) * len(HEAD), *rows(given)):
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
