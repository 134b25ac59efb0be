"""The distribution behind a dose (target imbalance): which experts are hot, how probable they must
be, and a pool of choices to route from.

Each token gets `top_k` distinct experts by successive sampling (Gumbel top-k) with two weights, one
for hot experts and one for cold ones. The weight is solved so that the CV over experts of the
expected counts equals the level. The probability that a token's choice includes an expert (its
inclusion probability) follows exactly from the distribution of the number of hot experts chosen.

The choices are drawn once, with a seed, into a pool that the engines read in order. Over the whole
pool every expert is chosen as often as its probability says, to within a few rows; a stretch of it
looks like independent draws.

This module runs inside vLLM's workers too: standard library and NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from . import replay
from .order import DoseError, Order, parse
from .replay import Player

ROWS = 1 << 14
LARGEST_LOG_WEIGHT = 60.0  # a cold expert is then chosen only where no hot one is left

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int32]


def hot_experts(pattern: str, experts: int, top_k: int, ranks: int) -> tuple[int, ...]:
    """The hot experts, ascending. hot-rank and spread have equally many, so that the same level
    means the same probabilities and only their places differ. DoseError if the pattern needs more
    ranks."""
    if pattern in ("hot-experts", "rotating", "few-experts"):
        return tuple(range(top_k))
    if ranks < 2 or experts % ranks:
        raise DoseError(
            f"{pattern} needs 2 or more expert-parallel ranks that divide {experts} experts,"
            f" got {ranks}"
        )
    share = experts // ranks
    count = min(ranks, share)
    if pattern == "hot-rank":
        return tuple(range(count))
    return tuple(rank * share for rank in range(count))


def hot_chosen(weight: float, hot: int, experts: int, top_k: int) -> Floats:
    """[top_k + 1]: probabilities that 0, 1, … of a token's experts are hot. `weight`: of a hot
    expert; a cold one has 1.

    After j draws, h of them hot, the next is hot with probability (hot - h) w / ((hot - h) w + cold
    - (j - h)).
    """
    cold = experts - hot
    chosen = np.zeros(top_k + 1)
    chosen[0] = 1.0
    for drawn in range(top_k):
        h = np.arange(top_k + 1)
        heat = np.maximum(hot - h, 0) * weight
        rest = np.maximum(cold - (drawn - h), 0).astype(np.float64)
        to_hot = np.divide(heat, heat + rest, out=np.zeros(top_k + 1), where=heat + rest > 0)
        chosen, moved = chosen * (1 - to_hot), chosen * to_hot
        chosen[1:] += moved[:-1]
    return chosen


def inclusion(weight: float, hot: int, experts: int, top_k: int) -> tuple[float, float]:
    """Probability that a token's choice includes a given hot expert, and a given cold one."""
    expected = float(hot_chosen(weight, hot, experts, top_k) @ np.arange(top_k + 1))
    return expected / hot, (top_k - expected) / (experts - hot)


def cv(weight: float, hot: int, experts: int, top_k: int) -> float:
    """CV over experts of the expected counts: population std over mean of the inclusion
    probabilities."""
    p_hot, p_cold = inclusion(weight, hot, experts, top_k)
    share = hot / experts
    return abs(p_hot - p_cold) * math.sqrt(share * (1 - share)) / (top_k / experts)


def highest(hot: int, experts: int, top_k: int) -> float:
    """The highest CV that this number of hot experts can reach; the highest of all is √(E/k - 1),
    with hot = top_k."""
    p_hot, p_cold = min(1.0, top_k / hot), max(0.0, top_k - hot) / (experts - hot)
    share = hot / experts
    return (p_hot - p_cold) * math.sqrt(share * (1 - share)) / (top_k / experts)


def weight_for(level: float, hot: int, experts: int, top_k: int) -> float:
    """The hot experts' weight at which the CV is `level`, by bisection of its logarithm. DoseError
    above `highest`."""
    most = highest(hot, experts, top_k)
    if level > most:
        raise DoseError(
            f"a CV of {level:g} is unreachable with {hot} hot of {experts} experts, {top_k} per"
            f" token: {math.floor(most * 1000) / 1000:g} is the most"
        )
    low, high = 0.0, LARGEST_LOG_WEIGHT
    for _ in range(60):
        middle = (low + high) / 2
        if cv(math.exp(middle), hot, experts, top_k) < level:
            low = middle
        else:
            high = middle
    return math.exp(high) if level else 1.0


@dataclass(frozen=True, slots=True)
class Law:
    """How a token chooses: only among `active` experts, of which each of the `hot` ones has
    `weight` and any other has 1."""

    active: tuple[int, ...]
    hot: tuple[int, ...]
    weight: float

    def shares(self, experts: int, top_k: int) -> Floats:
        """[experts]: the probability that a token's choice includes each."""
        found = np.zeros(experts)
        found[list(self.active)] = top_k / len(self.active)
        if self.hot and len(self.hot) < len(self.active):
            p_hot, p_cold = inclusion(self.weight, len(self.hot), len(self.active), top_k)
            found[list(self.active)] = p_cold
            found[list(self.hot)] = p_hot
        return found


def law(dose: str, experts: int, top_k: int, ranks: int) -> Law:
    """The law of a dose such as "hot-rank~0.5". DoseError if the level is unreachable.

    few-experts has as few active ones as the level allows: a CV of L needs experts / (1 + L²) or
    more. What is left of the level is heat on the first of them.
    """
    pattern, level = parse(dose)
    hot = hot_experts(pattern, experts, top_k, ranks)
    if pattern != "few-experts":
        return Law(tuple(range(experts)), hot, weight_for(level, len(hot), experts, top_k))
    most = math.sqrt(experts / top_k - 1)
    if level > most:
        raise DoseError(
            f"a CV of {level:g} is unreachable with {top_k} of {experts} experts active:"
            f" {math.floor(most * 1000) / 1000:g} is the most"
        )
    count = max(top_k, math.ceil(experts / (1 + level**2) - 1e-9))
    left = math.sqrt(max(0.0, (1 + level**2) * count / experts - 1))
    if count == top_k or left < 1e-6:
        return Law(tuple(range(count)), (), 1.0)
    return Law(tuple(range(count)), hot, weight_for(left, len(hot), count, top_k))


def pool(
    dose: str, experts: int, top_k: int, ranks: int = 1, seed: int = 0, rows: int = ROWS
) -> Ids:
    """[rows, top_k]: each row holds one token's distinct experts, in random order. DoseError if the
    level is unreachable."""
    how = law(dose, experts, top_k, ranks)
    hot = np.array(how.hot, np.int64)
    cold = np.setdiff1d(np.array(how.active), hot)
    chances = hot_chosen(how.weight, len(hot), len(how.active), top_k)
    draw = np.random.default_rng([seed, *dose.encode()])
    parts = []
    for h, count in enumerate(_shares(chances, rows)):
        if count:
            sets = np.hstack(
                [
                    hot[_subsets(draw, count, len(hot), h)],
                    cold[_subsets(draw, count, len(cold), top_k - h)],
                ]
            )
            parts.append(sets)
    whole = draw.permuted(draw.permutation(np.concatenate(parts)), axis=1)
    return np.ascontiguousarray(whole, np.int32)


def _shares(chances: Floats, rows: int) -> list[int]:
    """`rows` split in proportion to `chances`, each to within one row."""
    ends = np.rint(np.cumsum(chances) / chances.sum() * rows).astype(int)
    return [int(count) for count in np.diff(ends, prepend=0)]


def _subsets(draw: np.random.Generator, count: int, of: int, size: int) -> npt.NDArray[np.int64]:
    """[count, size]: random subsets of range(of), in random order; each member occurs equally
    often, to within one, because each random subset comes with its shifts."""
    if not size:
        return np.zeros((count, 0), np.int64)
    cycles = -(-count // of)
    first = np.argsort(draw.random((cycles, of)), axis=1)[:, :size]
    shifted = (first[:, None, :] + np.arange(of)[None, :, None]) % of
    return draw.permutation(shifted.reshape(-1, size)[:count])


@dataclass(frozen=True, slots=True)
class Cut:
    """The part of a pool that one step uses: in layer l, row r is `pool[start + l * stagger + r]`,
    with `shift` added to each id, modulo the number of experts."""

    dose: str
    start: int
    shift: int


class Course:
    """One server's position in its pools and recorded runs. Every layer and data-parallel rank
    reads on from a place of its own, so that a long run uses every row equally often. All
    tensor-parallel ranks see the same steps, and so agree.
    """

    def __init__(
        self,
        order: Order,
        experts: int,
        top_k: int,
        layers: int,
        max_tokens: int,
        dp: int = 0,
        dp_size: int = 1,
    ) -> None:
        """`max_tokens`: the most of one step. DoseError if a dose is unreachable, or a recorded run
        does not fit the model."""
        self.order, self.experts, self.top_k, self.stagger = order, experts, top_k, ROWS // layers
        size = 2 * ROWS + max_tokens, top_k
        self.pools = {
            label: np.resize(pool(label, experts, top_k, order.ranks, order.seed), size)
            for label in order.labels
        }
        self._moved = {label: self._move(label) for label in order.labels}
        self.tracks = replay.tracks(order, experts, top_k, layers, (dp, dp_size))
        self._players: dict[str, Player] = {}
        self._steps, self._place = 0, dp * (self.stagger // dp_size)

    def restart(self) -> None:
        """Count forward passes from here on, as the gate log does after the warm-up."""
        self._steps = 0

    def _move(self, label: str) -> int:
        """How far a rotating hot set moves at a time: past itself."""
        pattern, _ = parse(label)
        if pattern != "rotating":
            return 0
        return len(hot_experts(pattern, self.experts, self.top_k, self.order.ranks))

    def next(
        self, doses: Iterable[str], tokens: int, *, run: str = "", phase: str = "decode"
    ) -> Cut | Ids | None:
        """The cut of the next step, or the experts [layers, tokens, top_k] of a replayed one; None
        for natural routing. `doses`: of the requests in the step ("": natural). A step that mixes
        doses is routed naturally; the log shows whose tokens it held. `run`, `phase`: whose step it
        is, and which; each run begins at the start of what it replays."""
        found = set(doses)
        start, steps = self._place % ROWS, self._steps
        self._place += tokens
        self._steps += 1
        label = found.pop() if len(found) == 1 else ""
        if label in self.tracks:
            player = self._players.setdefault(run, Player(self.tracks[label]))
            return player.next(phase, tokens, steps)
        if label not in self.pools:
            return None
        turns = steps // self.order.rotate_steps
        return Cut(label, start, turns * self._moved[label] % self.experts)
