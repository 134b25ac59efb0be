"""The command-line parser, and the types of its arguments: a text becomes a value, or an argparse
error that says what was expected."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from core.errors import BAD_USAGE

CONFIG = Path("experiments.toml")
ENGINES = ("auto", "vllm", "builtin")
# As core.experiment.dose.Pattern, which would import NumPy.
PATTERNS = ("hot-experts", "hot-rank", "spread", "rotating")


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, whose errors name the command's --help."""

    def __init__(self, **options: Any) -> None:
        # A script's `--out` must not change its meaning when another option is added.
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_USAGE, f"{self.prog}: {message}; see {self.prog} --help\n")


class CommandParser(Parser):
    """The parser of one command, whose module is imported once the command is parsed.

    `module` is its name in core.commands, `argv` the whole command line: options before the command
    count as if they stood after it.
    """

    def __init__(self, *, module: str, argv: Sequence[str], **options: Any) -> None:
        super().__init__(**options)
        self._module, self._argv = module, argv

    def load(self) -> None:
        """Add the command's arguments, once."""
        if self.get_default("command") is None:
            module = importlib.import_module(f"core.commands.{self._module}")
            module.add_arguments(self)
            self.set_defaults(command=module.run)

    def parse_known_args(
        self, args: Iterable[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        self.load()
        after = list(args or ())
        before = self._argv[: len(self._argv) - len(after) - 1]
        self._refuse_foreign(before)
        found, unknown = super().parse_known_args([*before, *after], namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def _refuse_foreign(self, before: Sequence[str]) -> None:
        for word in before:
            option = word.partition("=")[0]
            if option.startswith("--") and option not in ("--", *self._option_string_actions):
                self.error(f"{option} does not apply to this command; leave it out")


class Answer(argparse.Action):
    """An option that prints a text and ends, as --help does. `text` makes it from the parser and
    the option's value."""

    def __init__(self, *, text: Callable[[Any, Any], str], **options: Any) -> None:
        super().__init__(**options)
        self._text = text

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> NoReturn:
        print(self._text(parser, values), flush=True)
        parser.exit()


# --- arguments that several commands share ---


def add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        default=CONFIG,
        metavar="F",
        help="config file (default: experiments.toml)",
    )


def add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", choices=ENGINES, help="engine to use instead of the config's")


def add_only(parser: argparse.ArgumentParser, help: str) -> None:
    parser.add_argument("--only", type=names, default=[], metavar="001,007", help=help)


# --- types ---


def names(text: str) -> list[str]:
    """Names with commas between them."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise argparse.ArgumentTypeError(f"expected names with commas between them, got {text!r}")
    return parts


def levels(text: str) -> list[float]:
    return _numbers(text, 100, "CVs of expert load such as 0,0.25,1.5")


def patterns(text: str) -> list[str]:
    patterns = names(text)
    if not set(patterns) <= set(PATTERNS):
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(PATTERNS)}, got {text!r}")
    return patterns


def at_least(least: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"expected a whole number of at least {least}, got {text!r}"
            )
        return int(text)

    return whole


def port(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"expected a port, 1 to 65535, got {text!r}")
    return int(text)


def above_zero(text: str) -> float:
    value = seconds(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def seconds(text: str) -> float:
    try:
        if 0 <= float(text) < float("inf"):
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text!r}")


def temperature(text: str) -> float:
    if (value := seconds(text)) > 100:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 100, got {text!r}")
    return value


def workers(text: str) -> int | str:
    return text if text == "auto" else at_least(1)(text)


def header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not (colon and name.strip() and text.isascii()) or any(c in text for c in "\r\n\0"):
        raise argparse.ArgumentTypeError(f"expected 'NAME: VALUE' in ASCII, got {text!r}")
    return name.strip(), value.strip()


def json_object(text: str) -> dict[str, object]:
    import json

    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {text!r}")
    return value


def slo(text: str) -> dict[str, float]:
    limits = dict(part.partition("=")[::2] for part in names(text))
    if not limits or not set(limits) <= {"ttft_ms", "tpot_ms", "e2e_ms"}:
        raise argparse.ArgumentTypeError(
            f"expected limits such as ttft_ms=500,tpot_ms=50,e2e_ms=5000, got {text!r}"
        )
    return {name: above_zero(value) for name, value in limits.items()}


def rate(text: str) -> float | str:
    if text == "inf":
        return text
    try:
        if 0 < float(text) < float("inf"):
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(
        f'expected requests per second above 0, or "inf", got {text!r}'
    )


def scores(text: str) -> list[float]:
    return _numbers(text, 1, "scores between 0 and 1")


def _numbers(text: str, most: float, expected: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 <= value <= most for value in values):
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return values
