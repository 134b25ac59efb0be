"""`gatescope doctor`: checks this machine and the config, and names the fix for each problem."""

from __future__ import annotations

import argparse

from core.commands import arguments as arg


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arg.add_config(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print every finding; 0 if nothing is wrong, else 1."""
    from core.commands import diagnosis

    findings = list(diagnosis.examine(arguments.config))
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        print(f"{'!' if finding.fix else '✓'} {finding.subject:<{width}}  {finding.found}")
        if finding.fix:
            print(f"  {'':<{width}}  fix: {finding.fix}")
    problems = sum(bool(finding.fix) for finding in findings)
    print(_verdict(problems))
    return 1 if problems else 0


def _verdict(problems: int) -> str:
    if not problems:
        return "no problems"
    return "1 problem" if problems == 1 else f"{problems} problems"
