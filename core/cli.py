"""The command line: arguments in, exit code out. A command's module is imported once the command is
parsed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from core.commands import experiment
from core.commands.arguments import Answer, CommandParser, Parser
from core.errors import BAD_USAGE, GatescopeError
from core.terminal import complain, open_standard_streams

COMMANDS = {  # each is core/commands/<name>.py
    "attach": "open the terminal UI on a run directory, whether or not it is still running",
    "runs": "list the run directories in a folder: when, how far they came, what they found",
    "serve": "serve one backend of experiments.toml in the foreground",
    "bench": "send one dataset to a running server and measure its latency",
    "record": "run a command that starts vLLM, unchanged, and record its expert load",
    "watch": "show the load of experts and ranks in a log that grows: last minute, last hour",
    "convert": "make a gate log of what SGLang, TensorRT-LLM or a client of vLLM saved",
    "advise": "whether another placement of the experts would pay, from gate logs, and its map",
    "generate": "make datasets across the range of predicted imbalance, or at a target score",
    "calibrate": "measure what routing costs a backend's steps, by a short forced sweep",
    "predict": "predict the imbalance score of datasets, with its components",
    "imbalance": "measure load imbalance in gate logs, gatescope's own or upstream's JSON",
    "plot": "draw any figure of a run directory, in the terminal and as PNG",
    "report": "write report.md and report.html for a run directory: findings in words",
    "export": "export a run directory in upstream's layout, or as Parquet tables",
    "plan": "from a pilot's run directory: starts, datasets and hours that find an effect",
    "compare": "compare run directories or sweeps, with gates for a CI",
    "sweep": "what a sweep will run, how far one is, and its tasks on a cluster",
    "schema": "print JSON Schema of experiments.toml, result files or run.json",
    "doctor": "check this machine and the config, and name the fix for each problem",
    "init": "write experiments.toml and the datasets into this directory",
}
DESCRIPTION = (
    "Does the input skew a Mixture-of-Experts router, and does the skew cost latency? Without a"
    " COMMAND, gatescope opens the terminal UI for the experiment that the config describes."
)
EXIT_CODES = (
    "exit codes: 0 all done; 1 some run, file or item failed; 2 bad usage, config or input;"
    " 128+n by signal n"
)
SIGPIPE_CODE = 128 + 13


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    open_standard_streams()
    try:
        argv = sys.argv[1:] if argv is None else argv
        arguments = _parser(argv).parse_args(argv)
        command: Callable[[argparse.Namespace], int] = arguments.command
        code = command(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except OSError as error:  # usually of stdout: commands name the files that they cannot write
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(error, BrokenPipeError):  # the reader left (`| head`): exit as by the signal
            return SIGPIPE_CODE
        complain(str(error))
        return 1
    except GatescopeError as error:
        complain(str(error))
        return BAD_USAGE


def _parser(argv: Sequence[str]) -> Parser:
    usage = "gatescope [OPTIONS] [COMMAND ...]"
    parser = Parser(prog="gatescope", usage=usage, description=DESCRIPTION, epilog=EXIT_CODES)
    parser.set_defaults(command=experiment.run)
    experiment.add_arguments(parser)
    parser.add_argument(
        "--version", action=Answer, nargs=0, text=_version, help="print the version and exit"
    )
    parser.add_argument(
        "--print-completion",
        action=Answer,
        choices=("bash", "zsh", "tcsh"),
        text=_completion,
        help="print a script that completes gatescope's arguments in this shell, and exit",
    )
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", prog="gatescope", parser_class=CommandParser
    )
    for name, line in COMMANDS.items():
        text = f"{line[0].upper()}{line[1:]}."
        commands.add_parser(name, help=line, description=text, module=name, argv=argv)
    return parser


def _version(parser: Parser, value: object) -> str:
    from importlib import metadata

    try:
        return f"gatescope {metadata.version('gatescope')}"
    except metadata.PackageNotFoundError:
        return "gatescope, not installed: run from its folder"


def _completion(parser: Parser, shell: str) -> str:
    from core.commands import completion

    return completion.script(parser, shell)


if __name__ == "__main__":
    raise SystemExit(main())
