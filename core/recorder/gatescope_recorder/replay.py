"""Recorded load vectors, step after step of a log, and the tokens that realise them.

A recording is a folder: `about.json`, and for each recorded run `NAME.decode.npy` and
`NAME.prefill.npy` (steps without and with prompt tokens), each [steps, layers, experts]. They may
be large, so they are mapped into memory, not read.

A vector that gives no expert more tokens than the step has is realised exactly: the choices are
laid out sorted by expert, token i of n takes choices i, i + n, … (distinct, since no expert has
more than n in a row), and the tokens are shuffled. So a step with other tokens than its recorded
one is made of whole recorded tokens: steps are added until there are enough, and the last is
thinned.

This module runs inside vLLM's workers too: standard library and NumPy only.
"""

from __future__ import annotations

import functools
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .order import REPLAY, DoseError, Order

ABOUT = "about.json"
PHASES = ("decode", "prefill")
STEPS_KEPT = 32  # realised steps: logs of a few steps go round

Ids = npt.NDArray[np.int32]
Loads = npt.NDArray[np.integer[Any]]


def phase_of(prefill_tokens: int) -> str:
    """The phase of a step with so many prompt tokens."""
    return "prefill" if prefill_tokens else "decode"


def mapped(file: Path) -> Loads:
    """Loads [steps, layers, experts] in the server's address space, not read. DoseError that names
    the file if it holds anything else."""
    try:
        found: Loads = np.load(file, mmap_mode="r")
        if found.ndim != 3 or found.dtype.kind not in "iu":
            raise ValueError(f"{found.dtype} {found.shape}")
    except Exception as error:  # of zipfile, tokenize, ast and mmap too, by what is damaged
        raise DoseError(f"{file}: not the loads of a recorded run: {error!r}") from None
    return found


def assign(loads: Loads, top_k: int, draw: np.random.Generator) -> Ids:
    """[layers, tokens, top_k]: distinct experts for every token, by which expert e of layer l gets
    exactly `loads` [layers, experts] tokens. Every layer's loads sum to top_k × tokens, and none
    exceeds tokens."""
    layers, experts = loads.shape
    experts_of = np.tile(np.arange(experts, dtype=np.int32), layers)
    choices = np.repeat(experts_of, loads.ravel()).reshape(layers, top_k, -1)
    order = draw.random((layers, choices.shape[2])).argsort(axis=1)
    return np.take_along_axis(choices.transpose(0, 2, 1), order[:, :, None], axis=1)


class Track:
    """One recorded run, for a model of `layers` layers: the first ones of the log.

    `share` is the data-parallel rank and their number: ranks divide each recorded step among them,
    in turns, so that its remainder falls to each as often.
    """

    def __init__(
        self, order: Order, name: str, top_k: int, layers: int, share: tuple[int, int] = (0, 1)
    ) -> None:
        self.top_k, self.layers, self.share = top_k, layers, share
        self._seed = [order.seed, zlib.crc32(name.encode())]
        files = {phase: Path(order.recording, f"{name}.{phase}.npy") for phase in PHASES}
        self.loads: dict[str, Loads] = {
            phase: mapped(file) for phase, file in files.items() if file.exists()
        }
        self._step = functools.lru_cache(maxsize=STEPS_KEPT)(self._realised)

    def steps(self, phase: str) -> int:
        """How many steps of the phase were recorded."""
        return len(self.loads.get(phase, ()))

    def tokens(self, phase: str, place: int) -> int:
        """The tokens of a recorded step; the log goes round."""
        return (
            int(self.loads[phase][place % self.steps(phase), 0].sum(dtype=np.int64)) // self.top_k
        )

    def rows(self, phase: str, place: int, tokens: int) -> tuple[Ids, int]:
        """Experts [layers, tokens, top_k] of a step, made of the recorded steps from `place` on,
        and how many of those it took."""
        taken: list[Ids] = []
        found = 0
        while found < tokens:
            taken.append(self._step(phase, (place + len(taken)) % self.steps(phase)))
            found += taken[-1].shape[1]
        whole = taken[0] if len(taken) == 1 else np.concatenate(taken, axis=1)
        return whole[:, :tokens], len(taken)

    def _realised(self, phase: str, place: int) -> Ids:
        """This rank's tokens of one recorded step, shuffled by the seed."""
        draw = np.random.default_rng([*self._seed, PHASES.index(phase), place])
        ids = assign(np.asarray(self.loads[phase][place, : self.layers]), self.top_k, draw)
        rank, ranks = self.share
        return ids[:, (rank + place) % ranks :: ranks]


@dataclass(slots=True)
class Player:
    """Where one run is in its track: it goes on step by step, prefill and decode apart.

    Data-parallel ranks must take their shares from the same recorded step, though they do not have
    tokens in every pass: there the place is the number of forward passes before, `at`.
    """

    track: Track
    decode: int = 0
    prefill: int = 0

    def next(self, phase: str, tokens: int, at: int) -> Ids | None:
        """Experts of the run's next step; None if its log has no step of this phase."""
        if not self.track.steps(phase):
            return None
        own = self.prefill if phase == "prefill" else self.decode
        ids, took = self.track.rows(phase, own if self.track.share[1] == 1 else at, tokens)
        if phase == "prefill":
            self.prefill += took
        else:
            self.decode += took
        return ids


def tracks(
    order: Order, experts: int, top_k: int, layers: int, share: tuple[int, int] = (0, 1)
) -> dict[str, Track]:
    """Label → track of every run that may be replayed. DoseError if the recording is damaged, or
    does not fit the model."""
    if not order.replays:
        return {}
    try:
        about = json.loads(Path(order.recording, ABOUT).read_text())
        check(about["layers"], about["experts"], about["top_k"], layers, experts, top_k)
        names = {label: label.removeprefix(f"{REPLAY}~") for label in order.replays}
        return {label: Track(order, name, top_k, layers, share) for label, name in names.items()}
    except DoseError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DoseError(
            f"the recorded loads in {order.recording} cannot be read: {error}"
        ) from None


def check(
    log_layers: int, log_experts: int, log_top_k: int, layers: int, experts: int, top_k: int
) -> None:
    """DoseError where a log cannot be replayed on a model of this shape. Of a log with more layers
    than the model, the first are replayed."""
    if (log_experts, log_top_k) != (experts, top_k):
        raise DoseError(
            f"recorded were {log_experts} experts a layer with top-{log_top_k}, this model has"
            f" {experts} with top-{top_k}"
        )
    if log_layers < layers:
        raise DoseError(
            f"recorded were {log_layers} layers, this model has {layers}: the others would have no"
            " loads to replay"
        )
