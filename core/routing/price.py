"""The price list of an MoE kernel: what it takes for any loads of a step, learned from times of the
kernel alone (core/recorder/gatescope_recorder/kernel_times.py writes them).

At each timed size the price is a + b · active experts + c · waves of the first GEMM + d · waves of
the second, by least squares with no negative coefficient; where loads with the very same three
figures were timed, what those took beyond it is added (shrunk: n / (n + 1/2) of their mean).
Between two timed sizes of one tiling all this is interpolated by tokens; the waves are always those
of the step itself, so that an edge of the tiling is where the kernel has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import msgspec
import numpy as np

from core import files
from core.errors import FileError
from core.recorder.gatescope_recorder.kernel import Kernel, Tiling
from core.routing import work
from core.routing.work import Work
from core.stats.arrays import Floats, Ints

PARTS = ("fixed", "active", "first_waves", "second_waves")  # of a price
SHRINK = 0.5

Beyond = tuple[Ints, Floats]  # keys of figures, ascending, and µs


class Timed(msgspec.Struct, frozen=True):
    """One step size: load vectors [vectors, local experts], and the kernel's time for each."""

    tokens: int
    loads: list[list[int]]
    us: list[float]


class PriceList(msgspec.Struct, frozen=True):
    """The file. `engine`: such as "vllm 0.25.1"; `seconds`: what measuring took."""

    gpu: str
    engine: str
    kernel: Kernel
    sizes: list[Timed]
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Prices:
    """A fitted list: `sizes` [n], ascending, `coefficients` [n, PARTS] in µs, and `beyond` [n], or
    none."""

    kernel: Kernel
    sizes: Ints
    coefficients: Floats
    beyond: tuple[Beyond, ...] = ()

    def parts_us(self, done: Work, tokens: Ints) -> Floats:
        """What each of PARTS costs, [..., PARTS], for `done` [steps, layers(, ranks)] in steps of
        `tokens` [steps]."""
        shape = (len(tokens), *[1] * (done.active.ndim - 1), len(PARTS))
        figures = _features(done)
        parts = figures * self.at(tokens).reshape(shape)
        for size in np.unique(tokens):
            own = tokens == size
            parts[own, ..., 0] += self._beyond(int(size), figures[own])
        return np.asarray(parts)

    def us(self, done: Work, tokens: Ints) -> Floats:
        """The price of `done`, in µs, in its shape."""
        return np.asarray(self.parts_us(done, tokens).sum(axis=-1))

    def at(self, tokens: Ints) -> Floats:
        """[steps, PARTS]: the coefficients in steps of `tokens` [steps]."""
        sizes, place = np.unique(tokens, return_inverse=True)
        return np.array([self._at(int(size)) for size in sizes]).reshape(-1, len(PARTS))[place]

    def _at(self, tokens: int) -> Floats:
        shares = self._shares(tokens)
        return shares @ self.coefficients if shares.any() else self._of_another_tiling(tokens)

    def _shares(self, tokens: int) -> Floats:
        """[sizes]: how much of each size a step of `tokens` takes; 0 of those of another tiling."""
        mine, shares = self.kernel.tiling(tokens), np.zeros(len(self.sizes))
        places = [i for i, n in enumerate(self.sizes) if self.kernel.tiling(int(n)) == mine]
        for place, unit in zip(places, np.eye(len(places)), strict=True):
            shares[place] = np.interp(tokens, self.sizes[places], unit)
        return shares

    def _beyond(self, tokens: int, figures: Floats) -> Floats:
        """Of `figures` [..., PARTS] in a step of `tokens`."""
        keys, more = _keys(figures), np.zeros(figures.shape[:-1])
        for share, (known, us) in zip(self._shares(tokens), self.beyond, strict=False):
            if share:
                place = np.minimum(known.searchsorted(keys), len(known) - 1)
                more += np.where(known[place] == keys, share * us[place], 0.0)
        return more

    def _of_another_tiling(self, tokens: int) -> Floats:
        """Those of the nearest size, with a wave's cost in proportion to its tiles' area."""
        place = int(abs(np.log(self.sizes / tokens)).argmin())
        mine, other = (self.kernel.tiling(n) for n in (tokens, int(self.sizes[place])))
        if mine is None or other is None:  # fit() has refused a kernel without a tiling
            raise AssertionError
        scale = mine.block_m * mine.block_n / (other.block_m * other.block_n)
        return np.asarray(self.coefficients[place] * np.array([1, 1, scale, scale]))


def fit(given: PriceList) -> Prices:
    """The coefficients at every size. FileError where the list cannot be fitted."""
    ran, sizes = given.kernel, [timed for timed in given.sizes if timed.us]
    if not sizes or not all(_is_whole(tiling) for tiling in ran.tilings) or not ran.tilings:
        raise FileError("a price list without a timed size, or without the kernel's tiling")
    try:
        fitted = [_fit(timed, ran) for timed in sizes]
    except (ValueError, OverflowError, RuntimeError) as error:
        raise FileError(f"a price list whose times cannot be fitted: {error}") from None
    beyond = tuple(_left(timed, ran, one) for timed, one in zip(sizes, fitted, strict=True))
    return Prices(ran, np.array([timed.tokens for timed in sizes]), np.array(fitted), beyond)


def _is_whole(tiling: Tiling) -> bool:
    return tiling.block_m > 0 and tiling.block_n > 0


def _fit(timed: Timed, ran: Kernel) -> Floats:
    from scipy.optimize import nnls

    design = features(timed, ran)
    scale = np.maximum(design.max(axis=0), 1)
    found, _ = nnls(design / scale, np.array(timed.us))
    return np.asarray(found / scale)


def _left(timed: Timed, ran: Kernel, coefficients: Floats) -> Beyond:
    """By figures: what the loads that have them took beyond the price."""
    design = features(timed, ran)
    known, place = np.unique(_keys(design), return_inverse=True)
    sums = np.bincount(place, np.array(timed.us) - design @ coefficients)
    return known, sums / (np.bincount(place) + SHRINK)


def _keys(figures: Floats) -> Ints:
    """One number for active experts and the waves of both GEMMs, of [..., PARTS]."""
    return np.asarray(figures[..., 1:] @ np.array([1 << 40, 1 << 20, 1])).astype(np.int64)


def features(timed: Timed, ran: Kernel) -> Floats:
    """[vectors, PARTS]: 1, active experts and the waves of both GEMMs of a timed size."""
    loads = np.array(timed.loads)[:, None]
    done = work.of_steps(loads, np.full(len(loads), timed.tokens), (), ran)
    return _features(done)[:, 0, 0]


def _features(done: Work) -> Floats:
    waves = (done.first_waves, done.second_waves)
    known = [values for values in waves if values is not None]  # both: fit() has looked
    return np.stack([np.ones_like(done.active), done.active, *known], axis=-1)


@lru_cache(maxsize=16)
def read(file: Path) -> Prices:
    """The fitted list of a file. FileError if it is none."""
    return fit(files.read(file, PriceList))
