"""`gatescope` without a command: the experiment, in the terminal UI or with --batch."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from core import terminal
from core.commands import arguments as arg
from core.errors import GatescopeError, UsageError

if TYPE_CHECKING:
    from core.experiment.invocation import Invocation
    from core.rundir.sweep import SweepFile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", action="store_true", help="run the experiment without a UI")
    parser.add_argument(
        "--json", action="store_true", help="with --batch: events as JSON lines on stdout"
    )
    parser.add_argument("--ascii", action="store_true", help="terminal UI in ASCII characters only")
    add_selection(parser)
    parser.add_argument(
        "--executor",
        choices=("local", "slurm", "ray"),
        default="local",
        help="with --batch: where cells are run: on this machine, or as tasks of a cluster, as"
        " [cluster] says (default: local)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="run directory, new or empty (default: runs/<name>-<time>)",
    )
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="DIR",
        help="run what is missing in this run directory: runs still queued, interrupted or failed",
    )
    parser.add_argument(
        "--retry-cancelled", action="store_true", help="with --resume: run cancelled runs too"
    )


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Options that say what is run."""
    arg.add_config(parser)
    arg.add_only(parser, "run these datasets only")
    parser.add_argument(
        "--backend", type=arg.names, default=[], metavar="NAME,NAME", help="run these backends only"
    )
    arg.add_engine(parser)
    parser.add_argument(
        "--set",
        type=arg.setting,
        action="append",
        default=[],
        metavar="KEY=V1,V2",
        help="a config key's value instead of the file's, such as"
        " backends.baseline.max_num_seqs=8; with several values, or [sweep] in the file, a sweep",
    )
    parser.add_argument(
        "--dose",
        type=arg.levels,
        action="extend",
        default=[],
        metavar="0,0.5",
        help="also run each dataset with its routing forced to these target imbalances (CVs of"
        " expert load)",
    )
    parser.add_argument(
        "--pattern",
        type=arg.patterns,
        action="extend",
        default=[],
        metavar="NAME,NAME",
        help=f"where --dose puts the load: {', '.join(arg.PATTERNS)} (default: hot-experts)",
    )
    parser.add_argument(
        "--replay",
        type=Path,
        metavar="GATE_LOGS",
        help="also run each dataset with its routing forced to recorded loads, step after step: a"
        " folder of gate logs, a backend's folder in a run directory, or upstream's JSON logs",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the batch, or open the terminal UI; the exit code. `--resume` in a script, without a
    terminal, is a batch too."""
    wanted = invocation(arguments)
    _check(wanted)
    is_script = arguments.resume and not terminal.has_screen()
    if arguments.batch or is_script:
        return _batch(wanted, json=arguments.json)
    if arguments.json:
        raise UsageError("--json goes with --batch: the terminal UI prints nothing")
    from tui import start

    if (planned := _planned_sweep(wanted)) is not None:
        return start.run_sweep(wanted, planned, ascii=arguments.ascii)
    return start.run(wanted, ascii=arguments.ascii)


def _batch(wanted: Invocation, *, json: bool) -> int:
    from core.commands import batch, sweep_batch

    run_it = sweep_batch.run if _is_sweep(wanted) else batch.run
    return run_it(wanted, json=json)


def _is_sweep(wanted: Invocation) -> bool:
    from core.commands import batch
    from core.rundir import sweep

    if wanted.resume:
        return sweep.is_sweep(wanted.resume)
    if wanted.executor != "local":
        return True
    return bool(wanted.axes) or batch.chosen(wanted).is_swept


def _planned_sweep(wanted: Invocation) -> SweepFile | None:
    """The new sweep that is asked for, if one is. GatescopeError where it cannot be."""
    from core.commands import sweep_batch

    if wanted.executor != "local":
        raise UsageError("--executor goes with --batch")
    is_sweep = bool(wanted.axes)
    with contextlib.suppress(GatescopeError):  # the terminal UI shows what is wrong with the config
        is_sweep = not wanted.resume and _is_sweep(wanted)
    return sweep_batch.planned(wanted) if is_sweep else None


def _check(wanted: Invocation) -> None:
    """UsageError where options exclude each other."""
    from core.experiment.invocation import Invocation

    if wanted.retry_cancelled and not wanted.resume:
        raise UsageError("--retry-cancelled goes with --resume DIR")
    alone = Invocation(
        wanted.config_path, resume=wanted.resume, retry_cancelled=wanted.retry_cancelled
    )
    if wanted.resume and wanted != alone:
        raise UsageError(
            "--resume runs what was selected at the start; leave out --only, --backend, --engine,"
            " --set, --dose, --pattern, --replay, --executor and --out"
        )


def invocation(arguments: argparse.Namespace) -> Invocation:
    from core.experiment.invocation import Invocation

    return Invocation(
        config_path=arguments.config,
        out=arguments.out,
        only=tuple(arguments.only),
        backends=tuple(arguments.backend),
        engine=arguments.engine,
        levels=tuple(arguments.dose),
        patterns=tuple(arguments.pattern),
        settings={key: values[0] for key, values in arguments.set if len(values) == 1},
        axes={key: values for key, values in arguments.set if len(values) > 1},
        replay=arguments.replay,
        executor=getattr(arguments, "executor", "local"),
        resume=arguments.resume,
        retry_cancelled=arguments.retry_cancelled,
    )
