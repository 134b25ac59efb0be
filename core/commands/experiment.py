"""`gatescope` without a command: the experiment, in the terminal UI or with --batch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from core import terminal
from core.commands import arguments as arg
from core.errors import UsageError

if TYPE_CHECKING:
    from core.experiment.invocation import Invocation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", action="store_true", help="run the experiment without a UI")
    parser.add_argument(
        "--json", action="store_true", help="with --batch: events as JSON lines on stdout"
    )
    parser.add_argument("--ascii", action="store_true", help="terminal UI in ASCII characters only")
    _add_selection(parser)
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="DIR",
        help="run what is missing in this run directory: runs still queued, interrupted or failed",
    )
    parser.add_argument(
        "--retry-cancelled", action="store_true", help="with --resume: run cancelled runs too"
    )


def _add_selection(parser: argparse.ArgumentParser) -> None:
    arg.add_config(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="run directory, new or empty (default: runs/<name>-<time>)",
    )
    arg.add_only(parser, "run these datasets only")
    parser.add_argument(
        "--backend", type=arg.names, default=[], metavar="NAME,NAME", help="run these backends only"
    )
    arg.add_engine(parser)
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
        from core.commands import batch

        return batch.run(wanted, json=arguments.json)
    if arguments.json:
        raise UsageError("--json goes with --batch: the terminal UI prints nothing")
    from tui import app

    return app.run(wanted, ascii=arguments.ascii)


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
            " --dose, --pattern, --replay and --out"
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
        replay=arguments.replay,
        resume=arguments.resume,
        retry_cancelled=arguments.retry_cancelled,
    )
