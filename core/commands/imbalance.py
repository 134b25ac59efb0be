"""`gatescope imbalance`: every measure of gate logs, in words or as JSON."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.routing.imbalance import Imbalance

LAYERS_SHOWN = 8


def add(commands: argparse._SubParsersAction[Any]) -> None:
    imbalance = commands.add_parser(
        "imbalance", help="load imbalance of gate logs, ours and upstream's JSON"
    )
    imbalance.add_argument(
        "folder", type=Path, metavar="DIR", help="a folder of gate logs, or of such folders"
    )
    imbalance.add_argument(
        "--method", choices=("per-step", "aggregated"), help="default: all measures"
    )
    imbalance.add_argument("--json", action="store_true", help="JSON on stdout")
    imbalance.add_argument("-o", dest="out", type=Path, metavar="OUT.json")
    imbalance.add_argument(
        "--strict", action="store_true", help="exit code 1 where gate logs are invalid"
    )
    imbalance.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    import msgspec

    from core import files
    from core.errors import FileError
    from core.routing import imbalance
    from core.terminal import printable
    from core.validity import verdict

    if not arguments.folder.is_dir():
        raise FileError(f"{arguments.folder}: not a folder")
    found, problems = imbalance.measure_folder(arguments.folder)
    for problem in problems:
        print(f"gatescope: {printable(problem)}", file=sys.stderr)
    validity = verdict.of_gate_logs(arguments.folder, found)
    for wrong in validity.problems:
        print(f"gatescope: {printable(wrong.in_words())}", file=sys.stderr)
    if arguments.method:
        key = "per_step_cv" if arguments.method == "per-step" else "aggregated_cv"
        data: dict[str, object] = {name: getattr(m, key) for name, m in found.items()}
    else:
        data = {
            name: {**msgspec.to_builtins(m), "problems": validity.of(name)}
            for name, m in found.items()
        }
    if arguments.out:
        try:
            files.write_whole(arguments.out, files.formatted(data))
        except OSError as error:
            raise FileError(f"{arguments.out}: cannot be written: {error.strerror}") from None
    if arguments.json:
        sys.stdout.write(files.formatted(data).decode())
    else:
        for name, measured in found.items():
            print("\n".join(_lines(name, measured)))
    return 1 if problems or (arguments.strict and validity.is_invalid) else 0


def _lines(name: str, m: Imbalance) -> list[str]:
    """What one folder shows, for a reader; 95 % intervals in square brackets."""

    def number(
        value: float | None, reason: str | None = "", ends: tuple[float, float] | None = None
    ) -> str:
        if value is None:
            return f"– ({reason})" if reason else "–"
        return f"{value:.4f}" + (f" [{ends[0]:.4f}, {ends[1]:.4f}]" if ends else "")

    ends = m.intervals.get
    total = sum(m.expert_loads) or 1.0
    skipped = ", ".join(f"{n} {reason}" for reason, n in m.left_out.items()) or "none"
    lines = [
        f"{name}: {m.files} file{'s' * (m.files > 1)}, {m.layers} layers, {m.steps} steps used, left out: {skipped};"
        f" {m.tokens} tokens",
        f"  per-step CV    {number(m.per_step_cv, ends=ends('per_step_cv'))}   noise floor {number(m.noise_floor)}"
        f"   excess {number(m.excess_cv, m.excess_cv_reason, ends('excess_cv'))}",
        f"  aggregated CV  {number(m.aggregated_cv, ends=ends('aggregated_cv'))}"
        f"   noise floor {number(m.aggregated_noise_floor)}"
        f"   excess {number(m.aggregated_excess_cv, m.aggregated_excess_cv_reason, ends('aggregated_excess_cv'))}",
        f"  layer CV       {number(m.layer_cv, ends=ends('layer_cv'))}"
        f"   rank max/mean {number(m.rank_imbalance, m.placement or 'no expert parallelism', ends('rank_imbalance'))}"
        + (f" ({m.placement})" if m.rank_imbalance is not None else ""),
        f"  experts        max/min {number(m.max_min_ratio, 'an expert got no token')}"
        f"   hottest {number(m.hottest_share)} of a layer   {m.dead_experts} dead"
        f"   entropy {number(m.entropy)}   Gini {number(m.gini)}",
    ]
    lines += [
        f"  {phase:<15}{of.steps} steps, {of.tokens} tokens, per-step CV {of.per_step_cv:.4f},"
        f" excess {number(of.excess_cv, of.excess_cv_reason, of.excess_cv_interval)}"
        for phase, of in (("prefill", m.prefill), ("decode", m.decode))
        if of
    ]
    if len(m.layer_cvs) > 1:
        order = sorted(range(len(m.layer_cvs)), key=lambda layer: -m.layer_cvs[layer])
        most = "  ".join(f"l{layer} {m.layer_cvs[layer]:.3f}" for layer in order[:LAYERS_SHOWN])
        lines.append(
            f"  layers         CV {min(m.layer_cvs):.3f} to {max(m.layer_cvs):.3f}, most in  {most}"
        )
    loads = "  ".join(f"e{e} {x:.0f} ({x / total:.1%})" for e, x in enumerate(m.expert_loads))
    return [*lines, f"  loads          {loads}"]
