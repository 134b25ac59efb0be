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
    _refuse_sweep(wanted)
    from tui import app

    return app.run(wanted, ascii=arguments.ascii)


def _batch(wanted: Invocation, *, json: bool) -> int:
    from core.commands import batch, sweep_batch

    if wanted.resume:
        is_sweep = sweep_batch.is_sweep(wanted.resume)
    else:
        is_cluster = wanted.executor != "local"
        is_sweep = is_cluster or bool(wanted.axes) or batch.chosen(wanted).is_swept
    return sweep_batch.run(wanted, json=json) if is_sweep else batch.run(wanted, json=json)


def _refuse_sweep(wanted: Invocation) -> None:
    """UsageError for a sweep, which the terminal UI does not run."""
    from core.commands import batch
    from core.rundir import sweep

    if wanted.executor != "local":
        raise UsageError("--executor goes with --batch")
    asked = sweep.is_sweep(wanted.resume) if wanted.resume else bool(wanted.axes)
    with contextlib.suppress(GatescopeError):  # the terminal UI shows what is wrong with the config
        asked = asked or (not wanted.resume and batch.chosen(wanted).is_swept)
    if asked:
        raise UsageError(
            "a sweep runs with --batch; watch it from another terminal with: gatescope attach SWEEP"
        )


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
