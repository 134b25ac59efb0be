"""`gatescope --print-completion`: a script that completes commands, options and files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import shtab


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script for `shell`: bash, zsh or tcsh."""
    for part in _loaded(parser):
        for action in part._actions:
            if action.type is Path:
                vars(action)["complete"] = _paths(action)  # where shtab looks for it
    return shtab.complete(parser, shell)


def _loaded(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parser and those of its commands, with all of their arguments."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                command.load()
                yield command


def _paths(action: argparse.Action) -> shtab.CompleteType:
    return shtab.DIRECTORY if "DIR" in str(action.metavar) else shtab.FILE
