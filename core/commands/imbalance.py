"""`gatescope imbalance`: every measure of gate logs, in words or as JSON."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import FileError, UsageError
from core.terminal import complain

if TYPE_CHECKING:
    from core.analysis.calibration import Calibration
    from core.routing.busiest import BusiestRank
    from core.routing.imbalance import Imbalance
    from core.routing.popularity import Popularity
    from core.validity.problem import Validity

LAYERS_SHOWN = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        type=Path,
        metavar="DIR",
        help="a run directory, a sweep, a folder of gate logs, or a folder of such folders",
    )
    parser.add_argument(
        "--method", choices=("per-step", "aggregated"), help="this measure only (default: all)"
    )
    parser.add_argument("--json", action="store_true", help="the measures as JSON on stdout")
    parser.add_argument(
        "-o", dest="out", type=Path, metavar="OUT.json", help="write the measures to this file"
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="also price each dataset's routing by this calibration, or by the one in this run"
        " directory of gatescope calibrate",
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit with 1 if gate logs are invalid"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the measures of every folder; 1 if some of it cannot be read or is missing, or is
    invalid and --strict."""
    from core import files
    from core.analysis import calibration
    from core.validity import routing, verdict
    from core.validity.problem import rule_name

    if not arguments.folder.is_dir():
        raise FileError(f"{arguments.folder}: not a folder")
    if arguments.calibration and (arguments.json or arguments.method or arguments.out):
        raise UsageError("--calibration is in words only: leave out --json, --method and -o")
    prices = calibration.read(arguments.calibration) if arguments.calibration else None
    found, problems = _measured(arguments.folder)
    validity = verdict.of_gate_logs(arguments.folder, found)
    for problem in (*problems, *(wrong.in_words() for wrong in validity.problems)):
        complain(problem)
    data = files.formatted(_data(found, validity, arguments.method))
    if arguments.out:
        try:
            files.write_whole(arguments.out, data)
        except OSError as error:
            raise FileError(f"{arguments.out}: cannot be written: {error.strerror}") from None
    if arguments.json:
        sys.stdout.write(data.decode())
    else:
        for name, measured in found.items():
            print("\n".join(_lines(name, measured)))
    if prices:
        print("\n".join(_priced(arguments.folder, arguments.calibration, prices)))
    missing = rule_name(routing.missing_layers)
    is_whole = not problems and missing not in [problem.rule for problem in validity.problems]
    return 0 if is_whole and not (arguments.strict and validity.is_invalid) else 1


def _measured(folder: Path) -> tuple[dict[str, Imbalance], list[str]]:
    """The measures by name, and what could not be read: of every cell of a sweep, of every server
    start of a run directory, or of a folder of gate logs."""
    from core.routing import folder as gate_folder
    from core.routing import measured_folder, places
    from core.rundir import about, sweep

    found: dict[str, Imbalance] = {}
    if sweep.is_sweep(folder):
        cells = {slug: _measured(own) for slug, own in sweep.run_directories(folder).items()}
        for slug, (measured, _) in cells.items():
            found |= {f"{slug}/{name}": one for name, one in measured.items()}
        return found, [problem for _, problems in cells.values() for problem in problems]
    if not (folder / about.NAME).is_file():
        return measured_folder.measure_folder(folder)
    backends = about.read(folder).backends
    problems = places.foreign(folder, backends)
    for backend in backends:
        starts = gate_folder.starts(folder / backend)
        if not starts:
            problems.append(f"{folder / backend}: holds no gate logs; it has not been started yet")
        for start in starts:
            measured, problem = measured_folder.measure_folder(start)
            found |= {f"{backend}/{name}": one for name, one in measured.items()}
            problems += problem
    return found, problems


def _priced(folder: Path, file: Path, found: Calibration) -> list[str]:
    """What each dataset's routing costs a decode step over a fair router's."""
    from core.analysis import cost_sentences as in_words
    from core.analysis import routing_cost, step_sample
    from core.routing import folder as gate_folder
    from core.routing import places
    from core.rundir import about, sweep

    lines = [f"priced by {file}: {found.backend}, {found.engine}, made {found.made}"]
    cells = sweep.run_directories(folder)
    if all((own / about.NAME).is_file() for own in cells.values()):
        starts = {
            f"{slug}/{name}".lstrip("/"): gate_folder.starts(own / name)
            for slug, own in cells.items()
            for name in about.read(own).backends
        }
    else:
        starts = {folder.name: [p for p in places.find(folder)[0] if gate_folder.log_files(p)]}
    for name, logs in starts.items():
        sample = step_sample.read(logs, prices=found.prices())
        costs = routing_cost.of_datasets(sample, found.decode)
        lines += [f"  {name}/{in_words.of_dataset(one, found.decode)}" for one in costs]
        edges = routing_cost.edges(sample, found.prices())
        lines += [f"  {in_words.edge_in_words(name, edge)}" for edge in edges[: in_words.EDGES]]
    return lines if len(lines) > 1 else [*lines, "  no decode steps of natural routing to price"]


def _data(
    found: Mapping[str, Imbalance], validity: Validity, method: str | None
) -> dict[str, object]:
    """The JSON: one measure of each folder, or all of them with their problems."""
    import msgspec

    if method == "per-step":
        return {name: m.per_step_cv for name, m in found.items()}
    if method == "aggregated":
        return {name: m.aggregated_cv for name, m in found.items()}
    return {
        name: {**msgspec.to_builtins(m), "problems": validity.of(name)} for name, m in found.items()
    }


def _lines(name: str, m: Imbalance) -> list[str]:
    """The measures of one folder in words; 95 % intervals in square brackets."""
    ends = m.intervals.get
    per_step = _number(m.excess_cv, m.excess_cv_reason, ends("excess_cv"))
    aggregated = _number(
        m.aggregated_excess_cv, m.aggregated_excess_cv_reason, ends("aggregated_excess_cv")
    )
    return [
        _counts(name, m),
        f"  per-step CV    {_number(m.per_step_cv, ends=ends('per_step_cv'))}"
        f"   noise floor {_number(m.noise_floor)}   excess {per_step}",
        f"  aggregated CV  {_number(m.aggregated_cv, ends=ends('aggregated_cv'))}"
        f"   noise floor {_number(m.aggregated_noise_floor)}   excess {aggregated}",
        f"  layer CV       {_number(m.layer_cv, ends=ends('layer_cv'))}"
        f"   rank max/mean {_ranks(m)}",
        f"  experts        max/min {_number(m.max_min_ratio, 'an expert got no token')}"
        f"   hottest {_number(m.hottest_share)} of a layer   {m.dead_experts} dead"
        f"   entropy {_number(m.entropy)}   Gini {_number(m.gini)}",
        *_phases(m),
        *_nodes(m),
        *_work(m),
        *_layers(m.layer_cvs),
        *_popularity(m.popularity),
        _loads(m.expert_loads),
    ]


def _number(
    value: float | None, reason: str | None = None, ends: tuple[float, float] | None = None
) -> str:
    if value is None:
        return f"– ({reason})" if reason else "–"
    return f"{value:.4f}" + (f" [{ends[0]:.4f}, {ends[1]:.4f}]" if ends else "")


def _counts(name: str, m: Imbalance) -> str:
    left_out = ", ".join(f"{n} {reason}" for reason, n in m.left_out.items()) or "none"
    files, layers, steps = (
        f"{n} {noun}" if n == 1 else f"{n} {noun}s"
        for n, noun in ((m.files, "file"), (m.layers, "layer"), (m.steps, "step"))
    )
    return f"{name}: {files}, {layers}, {steps} used, left out: {left_out}; {m.tokens} tokens"


def _ranks(m: Imbalance) -> str:
    value = _number(
        m.rank_imbalance, m.placement or "no expert parallelism", m.intervals.get("rank_imbalance")
    )
    return value if m.rank_imbalance is None else f"{value} ({m.placement})"


def _nodes(m: Imbalance) -> list[str]:
    if not (of := m.by_node):
        return []
    left = (
        "" if of.left is None else f"   {100 * of.left:.1f} % of the load leaves its token's node"
    )
    busiest = f"busiest of {len(of.loads)}: {of.busiest}   max/mean {of.imbalance:.4f}"
    return [f"  nodes          {busiest}{left}"]


def _phases(m: Imbalance) -> list[str]:
    return [
        f"  {phase:<15}{of.steps} steps, {of.tokens} tokens, per-step CV {of.per_step_cv:.4f},"
        f" excess {_number(of.excess_cv, of.excess_cv_reason, of.excess_cv_interval)}"
        for phase, of in (("prefill", m.prefill), ("decode", m.decode))
        if of
    ]


def _work(m: Imbalance) -> list[str]:
    """The kernel, and what the busiest rank of a layer computes; by phase where they are known."""
    phases = {name: of.busiest_rank for name in ("prefill", "decode") if (of := m.phase(name))}
    whole = phases or {"all steps": m.busiest_rank}
    kernel = [f"  kernel         {m.kernel}"] if m.kernel else []
    return [*kernel, *(f"  busiest rank   {name}: {_rank(r)}" for name, r in whole.items() if r)]


def _rank(r: BusiestRank) -> str:
    if r.active_experts is None:
        return f"– ({r.reason})"
    active = f"{r.active_experts:.2f} active experts"
    if r.tiles is None or r.padded_share is None:
        return f"{active}; tiles – ({r.reason})"
    waves = ""
    if r.first_waves is not None and r.second_waves is not None:
        waves = f", {r.first_waves:.1f} + {r.second_waves:.1f} waves"
    over = _number(r.work_over_fair, ends=r.work_over_fair_interval)
    tiles = f"{r.tiles:.2f} tiles{waves}, {r.padded_share:.0%} of rows padding"
    return f"{active}, {tiles}; work {over} of a fair router's"


def _layers(cvs: Sequence[float]) -> list[str]:
    """The spread over layers, and the layers with the highest CV; nothing for a single layer."""
    if len(cvs) < 2:
        return []
    order = sorted(range(len(cvs)), key=lambda layer: -cvs[layer])
    most = "  ".join(f"l{layer} {cvs[layer]:.3f}" for layer in order[:LAYERS_SHOWN])
    return [f"  layers         CV {min(cvs):.3f} to {max(cvs):.3f}, most in  {most}"]


def _popularity(layers: Sequence[Popularity]) -> list[str]:
    """The layer of the median exponent, and the range over layers; nothing where no step is."""
    if not layers:
        return []
    known = sorted(
        (layer for layer in layers if layer.power_law.value is not None),
        key=lambda layer: layer.power_law.value or 0.0,
    )
    if not known:
        return [f"  popularity     power law – ({layers[0].power_law.reason})"]
    middle, first, last = known[len(known) // 2], known[0].power_law, known[-1].power_law
    told = f"{len(known)} of {len(layers)} layers"
    return [
        f"  popularity     power law r^-s: s {middle.power_law.shown('.2f')}, median of {told}"
        f" ({first.shown('.2f')} to {last.shown('.2f')}); misfit {middle.misfit:.0%} of tokens;"
        f" Dirichlet α {middle.dirichlet.shown('.2f')}"
    ]


def _loads(loads: Sequence[float]) -> str:
    total = sum(loads) or 1.0
    parts = (f"e{e} {load:.0f} ({load / total:.1%})" for e, load in enumerate(loads))
    return f"  loads          {'  '.join(parts)}"
