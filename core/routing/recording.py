"""Gate logs as a recording: the load vectors of their runs, in the files that servers replay them
from (`core.recorder.gatescope_recorder.replay` defines these)."""

from __future__ import annotations

import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from msgspec import structs

from core import files
from core.errors import FileError, GateLogError
from core.experiment import dose
from core.experiment.config import Config
from core.recorder.gatescope_recorder.replay import ABOUT, PHASES
from core.routing import places, upstream
from core.routing.folder import GateFolder, log_files
from core.routing.gatelog import Counts
from core.routing.meter import WARMUP
from core.stats.arrays import Bools, Floats, Ints

FOLDER = "replay"  # of a run directory
TRY = re.compile(r"-try[0-9]+\Z")
ODD = re.compile(r"[^A-Za-z0-9_.-]")
Part = tuple[str, Counts]  # phase, loads [steps, layers, experts]


@dataclass(slots=True)
class Recording:
    """`runs`: name → the loads of its steps, by phase. `left_out`: a sentence for what of the logs
    is not replayed."""

    source: Path
    layers: int = 0
    experts: int = 0
    top_k: int = 0
    runs: dict[str, dict[str, Counts]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """The files that servers map into their memory."""
        for name, phases in self.runs.items():
            for phase, loads in phases.items():
                packed = io.BytesIO()
                np.save(packed, loads.astype(np.min_scalar_type(int(loads.max()))))
                files.write_whole(folder / f"{name}.{phase}.npy", packed.getvalue())
        steps = {
            name: {phase: len(phases.get(phase, ())) for phase in PHASES}
            for name, phases in self.runs.items()
        }
        about = {"source": str(self.source), "layers": self.layers, "experts": self.experts}
        about |= {"top_k": self.top_k, "steps": steps, "left_out": self.left_out}
        files.write_whole(folder / ABOUT, files.formatted(about))


def of_config(loaded: Config) -> tuple[Config, Recording | None]:
    """`loaded` with the names of the recorded runs that its [dose] replays, and their loads; None
    where it replays none. FileError as `read`."""
    if not loaded.dose or not loaded.dose.replay:
        return loaded, None
    found = read(Path(loaded.dose.replay))
    return structs.replace(loaded, replays=tuple(found.runs)), found


def read(source: Path) -> Recording:
    """The natural runs of a folder of gate logs, or of the folders in it. FileError if there are
    none, or they differ in shape."""
    if not source.is_dir():
        raise FileError(f"{source}: not a folder of gate logs to replay")
    found = Recording(source)
    try:
        folders, problems = places.find(source)
        for folder in folders:
            _add_json(found, folder)
            _add_binary(found, folder)
    except (GateLogError, OSError) as error:
        raise FileError(f"{source}: cannot be replayed: {error}") from None
    found.left_out += problems
    if not found.runs:
        why = "; ".join(found.left_out) or "no gate logs (*.gatelog, gate_logs_<layer>.json) in it"
        raise FileError(
            f"{source}: no run to replay: {why}; name a folder of gate logs, or a backend's folder"
            " in a run directory"
        )
    return found


def _add_json(found: Recording, folder: Path) -> None:
    """Upstream's files do not say which steps hold prompt tokens: all count as decode."""
    if not upstream.layer_files(folder):
        return
    layers, problems = upstream.read_layers(folder)
    if problems:
        raise GateLogError("; ".join(problems))
    tokens = layers[0].tokens
    if any(not np.array_equal(layer.tokens, tokens) for layer in layers):
        raise GateLogError(f"{folder}: its layers logged different steps")
    loads = np.stack([layer.loads for layer in layers], axis=1)
    busy = tokens > 0
    sums = Counter((loads.sum(axis=2)[busy] / tokens[busy, None]).ravel().tolist())
    top_k = sums.most_common(1)[0][0] if sums else 0.0
    if top_k < 1 or top_k != int(top_k):
        raise GateLogError(f"{folder}: no whole number of experts a token")
    _check_shape(found, folder, loads.shape[1], loads.shape[2], int(top_k))
    name = _named(upstream.label(folder.resolve().name))
    _put(found, name, [("decode", _possible(found, name, loads, tokens))])


def _add_binary(found: Recording, folder: Path) -> None:
    if not log_files(folder):
        return
    log, parts, forced = GateFolder(folder), defaultdict[str, list[Part]](list), set[str]()
    for part in log.blocks():
        _check_shape(found, folder, part.loads.shape[1], part.loads.shape[2], int(part.top_k))
        for label in part.segments.keys() - {"", WARMUP}:
            if dose.of_label(label):
                forced.add(label)
                continue
            own, name = part.of(label), _named(label)
            prompt = own.columns["prefill_tokens"] > 0
            for phase, steps in (("decode", ~prompt), ("prefill", prompt)):
                loads = _possible(found, name, own.loads[steps], own.tokens[steps])
                parts[label].append((phase, loads))
    for label in sorted(parts, key=_try_of):  # a later try takes an earlier one's place
        _put(found, _named(label), parts[label])
    if forced:
        found.left_out.append(f"{folder}: {len(forced)} runs whose routing was itself forced")
    found.left_out += filter(None, (log.lost, log.left_out))


def _check_shape(found: Recording, folder: Path, layers: int, experts: int, top_k: int) -> None:
    """The shape of all runs; GateLogError if this folder's is another."""
    shape = layers, experts, top_k
    if found.layers and shape != (found.layers, found.experts, found.top_k):
        raise GateLogError(
            f"{folder}: {layers} layers of {experts} experts, top-{top_k}; the logs before it have"
            f" {found.layers} of {found.experts}, top-{found.top_k}"
        )
    found.layers, found.experts, found.top_k = shape


def _possible(found: Recording, name: str, loads: Floats | Counts, tokens: Ints) -> Counts:
    """The steps that `assign` can realise; others that have tokens are counted."""
    n = tokens[:, None]
    sums, most = loads.sum(axis=2, dtype=np.float64), loads.max(axis=2, initial=0)
    fits: Bools = ((sums == found.top_k * n) & (most <= n)).all(axis=1) & (tokens > 0)
    if np.issubdtype(loads.dtype, np.floating):
        fits &= (loads == np.floor(loads)).all(axis=(1, 2))
    if wrong := int((~fits & (tokens > 0)).sum()):
        found.left_out.append(f"{name}: {wrong} steps whose loads are not top_k × tokens")
    return loads[fits].astype(np.uint32)


def _put(found: Recording, name: str, parts: list[Part]) -> None:
    joined = dict(_joined(parts))
    if joined:
        found.runs[name] = joined


def _joined(parts: list[Part]) -> Iterator[Part]:
    for phase in PHASES:
        own = [loads for of, loads in parts if of == phase and len(loads)]
        if own:
            yield phase, np.concatenate(own)


def _named(label: str) -> str:
    """The name that a run's label carries."""
    return ODD.sub("-", TRY.sub("", label))


def _try_of(label: str) -> tuple[str, int]:
    found = TRY.search(label)
    return _named(label), int(found[0].removeprefix("-try")) if found else 1
