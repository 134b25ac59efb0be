"""A prediction of `gatescope advise` against what happened: one server without EPLB and with it,
each started several times. The starts are the replicates.

A prediction in µs is of the decode step's time. One in work or tokens is of the busiest ranks' load
alone, so it is held against that: max/mean over ranks, by the maps that the log has.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from core import files
from core.analysis import across, comparand
from core.analysis.advice import Option, PhaseAdvice
from core.errors import FileError, NoDataError, UsageError
from core.experiment.config import Config
from core.experiment.tables import Backend
from core.stats import comparison, estimate
from core.stats.comparison import MARGIN_PCT
from core.stats.estimate import Estimate

NAME = "proofs.json"  # beside the maps
STEP, LOAD = "decode_step_ms", "decode.rank_imbalance"
WORDS = {STEP: "of the decode step's time", LOAD: "of the busiest ranks' load in decode"}
SUFFIX = "-eplb"  # of the backend that has it
CONFIGURES = "--eplb-config"


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """What EPLB with `spare` replicas was to save, and saved, in %. `made`: when, UTC; `run`: the
    run directory; `starts`: without it and with it."""

    made: str
    run: str
    spare: int
    metric: str
    predicted: Estimate
    measured: Estimate
    starts: tuple[int, int]

    @property
    def error(self) -> float | None:
        """Predicted less measured, in percentage points."""
        if self.predicted.value is None or self.measured.value is None:
            return None
        return self.predicted.value - self.measured.value

    def in_words(self) -> str:
        """One sentence."""
        what = f"EPLB with {self.spare} spare, {WORDS[self.metric]}"
        predicted = f"predicted {self.predicted.shown('.2f')} %"
        measured = f"measured {self.measured.shown('.2f')} %"
        if self.error is None:
            return f"{what}: {predicted}, {measured} ({self.measured.reason})"
        return f"{what}: {predicted}, {measured}: off by {self.error:+.2f} points"


class Proofs(msgspec.Struct, frozen=True):
    """The oldest first."""

    proofs: list[Proof] = []


def predicted(advice: PhaseAdvice) -> Option:
    """What is tried: EPLB as it was chosen, or with the fewest replicas; without any, it packs."""
    chosen = [o for o in advice.options if o.name == advice.chosen]
    made = [o for o in (*chosen, *advice.options) if o.spare or o.name == "packed"]
    return next((o for o in made if o.spare), made[0])


def pair(config: Config, name: str, starts: int, option: Option) -> Config:
    """`config` with two backends: the named one (empty: its only one with expert parallelism)
    without EPLB and with it. UsageError if there is no such one."""
    backend = _chosen(config, name)
    if any(word.startswith("--enable-eplb") for word in backend.extra_args):
        raise UsageError(f"--prove: [[backends]] {backend.name} has --enable-eplb in extra_args")
    own = [*backend.extra_args]
    if any(word.startswith(CONFIGURES) for word in own):
        raise UsageError(f"--prove sets {CONFIGURES} itself; take it out of {backend.name}")
    replicas = msgspec.json.encode({"num_redundant_experts": option.spare}).decode()
    without = msgspec.structs.replace(backend, eplb=False)
    with_it = msgspec.structs.replace(
        backend,
        name=backend.name + SUFFIX,
        eplb=True,
        extra_args=[*own, CONFIGURES, replicas],
    )
    experiment = msgspec.structs.replace(config.experiment, starts=starts, split=False)
    return msgspec.structs.replace(
        config,
        experiment=experiment,
        backends=(without, with_it),
        dose=None,
        sweep=None,
        search=None,
    )


def _chosen(config: Config, name: str) -> Backend:
    found = [b for b in config.backends if (b.name == name if name else b.expert_parallel)]
    if len(found) != 1:
        names = ", ".join(b.name for b in config.backends)
        raise UsageError(f"--prove: name one backend with expert parallelism: --backend; {names}")
    if not found[0].expert_parallel:
        raise UsageError(f"--prove: [[backends]] {found[0].name} has no expert parallelism")
    return found[0]


def of_run(run: Path, made: str, advice: PhaseAdvice) -> Proof:
    """The prediction against the results of a run directory that `pair` asked for. NoDataError
    where there are none on one side."""
    option, metric = predicted(advice), STEP if advice.unit == "µs" else LOAD
    found = {one.name: one for one in comparand.read(run)}
    name = next((name for name in found if name + SUFFIX in found), None)
    if name is None:
        raise NoDataError(f"{run}: no result with EPLB and without it")
    (both,), _ = across.pairs([found[name]], [found[name + SUFFIX]], MARGIN_PCT)
    sides = both.sides(metric)
    if not all(sides):
        raise NoDataError(f"{run}: no result has {WORDS[metric]}")
    ratio = comparison.compare(metric, "without", "with", sides, MARGIN_PCT)
    return Proof(
        made=made,
        run=str(run),
        spare=option.spare,
        metric=metric,
        predicted=option.saved,
        measured=_saved(ratio.ratio),
        starts=ratio.starts,
    )


def _saved(ratio: Estimate) -> Estimate:
    """% less, of a ratio with/without."""
    if ratio.value is None:
        return ratio
    value = 100 * (1 - ratio.value)
    if ratio.interval is None:
        return Estimate(value, None, ratio.reason)
    low, high = ratio.interval
    return estimate.of(value, (100 * (1 - high), 100 * (1 - low)))


def read(folder: Path) -> list[Proof]:
    """Those that are kept in a folder of advice; none where there are none. FileError if they
    cannot be read."""
    file = folder / NAME
    return files.read(file, Proofs).proofs if file.is_file() else []


def keep(folder: Path, proof: Proof) -> Path:
    """Add it to those of the folder."""
    file = folder / NAME
    try:
        files.write_whole(file, files.formatted(Proofs([*read(folder), proof])))
    except OSError as error:
        raise FileError(f"{file}: cannot be written: {error.strerror}") from None
    return file
