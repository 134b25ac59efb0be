"""The load imbalance of every run in a folder of gate logs, ours or upstream's."""

from __future__ import annotations

import os
from pathlib import Path

from msgspec import structs

from core.errors import GateLogError
from core.routing import folder as gate_folder
from core.routing import places, upstream
from core.routing.folder import GateFolder
from core.routing.imbalance import SHARED, Imbalance, measure_run
from core.routing.meter import Meter


def measure_folder(folder: Path) -> tuple[dict[str, Imbalance], list[str]]:
    """The measures of a folder of gate logs, or of a folder of such folders, by name; and what
    could not be read.

    A binary log is split by its segments (`gates_logs_<label>`), as a run directory's is; a label
    that a later start of the server logged again counts as the later one. A log without segments
    has its folder's name.
    """
    if not folder.is_dir():
        return {}, [f"{folder}: not a folder"]
    found: dict[str, Imbalance] = {}
    try:
        folders, problems = places.find(folder)
    except OSError as error:
        return {}, [f"{error.filename}: cannot be read: {error.strerror}"]
    for place in folders:
        own, problem = _measure_json(place)
        if own.keys() & found.keys():
            problem = [*problem, f"{place}: left out: another folder has the same name"]
        found |= {name: measured for name, measured in own.items() if name not in found}
        measured, binary_problem = _measure_binary(place)
        found |= measured
        problems += [*problem, *binary_problem]
    if not found and not problems:
        sought = "*.gatelog, or gate_logs_<layer>.json"
        problems.append(f"{folder}: no gate logs ({sought}) in it or in its folders")
    return found, problems


def _measure_json(folder: Path) -> tuple[dict[str, Imbalance], list[str]]:
    layers, problems = upstream.read_layers(folder)
    if not layers:
        if not problems and not gate_folder.log_files(folder):
            problems.append(f"{folder}: holds no gate log")
        return {}, problems
    empty = sum(int((layer.tokens == 0).sum()) for layer in layers)
    name = Path(os.path.abspath(folder)).name  # also of "."
    try:
        run = upstream.run_of(name, layers)
        measured = measure_run(run, {"no tokens": empty}, files=len(layers))
    except GateLogError as error:
        return {}, [*problems, f"{folder}: {error}"]
    steps = max(int((layer.tokens > 0).sum()) for layer in layers)
    tokens = max(int(layer.tokens.sum()) for layer in layers)
    # upstream's files do not tell prompt tokens from others
    found = structs.replace(measured, steps=steps, tokens=tokens, prefill=None, decode=None)
    return {name: found}, problems


def _measure_binary(folder: Path) -> tuple[dict[str, Imbalance], list[str]]:
    files = len(gate_folder.log_files(folder))
    if not files:
        return {}, []
    log, meter = GateFolder(folder), Meter()
    problems = _read_into(meter, log)
    found: dict[str, Imbalance] = {}
    # a server that was not gatescope's own has no labels: all of its steps are one run
    labelled = {label: run for label, run in meter.runs.items() if label}
    for label, run in sorted((labelled or meter.runs).items()):
        left_out = {SHARED: run.shared, "lost in part by a rank": log.incomplete}
        name = f"gates_logs_{label}" if label else Path(os.path.abspath(folder)).name
        try:
            found[name] = measure_run(run, left_out, files)
        except GateLogError as error:
            problems.append(f"{folder}, {label}: {error}")
    if not meter.runs and not problems:
        problems.append(f"{folder}: holds no step")
    return found, problems + gate_folder.problems(folder)


def _read_into(meter: Meter, log: GateFolder) -> list[str]:
    """Sum up all that can be read; what cannot be."""
    problems: list[str] = []
    try:
        for part in log.blocks():
            meter.add(part)
    except (GateLogError, OSError) as error:
        problems.append(str(error))
    if log.lost:
        problems.append(f"{log.lost}: cut off; the whole blocks before it are used")
    if log.left_out:
        problems.append(log.left_out)
    return problems
