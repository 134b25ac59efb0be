"""`gatescope doctor`: checks this machine and the config, and names the fix for each problem."""

from __future__ import annotations

import argparse
from pathlib import Path

from core.commands import arguments as arg


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arg.add_config(parser)
    parser.add_argument(
        "--executor",
        choices=("local", "slurm"),
        default="local",
        help="slurm: also check that Slurm takes a task, and what it finds on a node",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="with --executor: a folder that all nodes share (default: runs)",
    )
    parser.add_argument(
        "--on-node",
        type=Path,
        metavar="DIR",
        help="what --executor runs on a node: print what it finds as JSON",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print every finding; 0 if nothing is wrong, else 1."""
    from core.commands import diagnosis

    if arguments.on_node:
        return _on_node(arguments)
    findings = list(diagnosis.examine(arguments.config))
    if arguments.executor == "slurm":
        from core.commands import diagnosis_cluster

        findings += diagnosis_cluster.examine(arguments.config, arguments.out)
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        print(f"{'!' if finding.fix else '✓'} {finding.subject:<{width}}  {finding.found}")
        if finding.fix:
            print(f"  {'':<{width}}  fix: {finding.fix}")
    problems = sum(bool(finding.fix) for finding in findings)
    print(_verdict(problems))
    return 1 if problems else 0


def _on_node(arguments: argparse.Namespace) -> int:
    import msgspec

    from core.commands import diagnosis_cluster

    found = diagnosis_cluster.on_node(arguments.config, arguments.on_node)
    print(msgspec.json.encode(found).decode())
    return 0


def _verdict(problems: int) -> str:
    if not problems:
        return "no problems"
    return "1 problem" if problems == 1 else f"{problems} problems"
