"""The command-line parser, and the types of its arguments: a text becomes a value, or an argparse
error that says what was expected."""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from core.errors import BAD_USAGE, GatescopeError

if TYPE_CHECKING:
    from core.load.address import Address

CONFIG = Path("experiments.toml")
ENGINES = ("auto", "vllm", "builtin")
MAX_INT = 2**31 - 1  # as core.experiment.config's: what every server takes
MAX_DIGITS = 20
LONGEST_S = 7 * 86400.0  # as core.workload.trace's
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
OUR_HEADERS = ("content-length", "transfer-encoding", "x-request-id")
# Fields of a request's body, and the values that they may be given.
OUR_FIELDS: dict[str, tuple[object, ...]] = {
    "model": (),
    "prompt": (),
    "messages": (),
    "stream": (True,),
    "n": (1, None),
}
# As core.experiment.dose.Pattern, which would import NumPy.
PATTERNS = ("hot-experts", "hot-rank", "spread", "rotating", "few-experts")


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


def add_config(parser: argparse._ActionsContainer) -> None:
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


def setting(text: str) -> tuple[str, list[Any]]:
    """`backends.baseline.max_num_seqs=8,32`: a key and its values, each as TOML has it, else as a
    text."""
    import tomli

    key, equals, values = text.partition("=")
    if not equals or "." not in key or not values.strip():
        raise argparse.ArgumentTypeError(
            f"expected KEY=VALUE,VALUE with a key such as experiment.request_rate, got {text!r}"
        )
    try:
        return key.strip(), tomli.loads(f"values = [{values}]")["values"]
    except (tomli.TOMLDecodeError, RecursionError):
        return key.strip(), names(values)


def levels(text: str) -> list[float]:
    return _numbers(text, 100, "CVs of expert load such as 0,0.25,1.5")


def percentage(text: str) -> float:
    """`2%` or `2`."""
    values = _numbers(text.removesuffix("%"), 100, "a percentage such as 2%")
    if len(values) > 1 or not values[0]:
        raise argparse.ArgumentTypeError(f"expected one percentage above 0, got {text!r}")
    return values[0]


def patterns(text: str) -> list[str]:
    patterns = names(text)
    if not set(patterns) <= set(PATTERNS):
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(PATTERNS)}, got {text!r}")
    return patterns


def sizes(text: str) -> list[int]:
    """Numbers of requests, each once, with commas between them."""
    return sorted({at_least(1, 9999)(part) for part in names(text)})


def at_least(least: int, most: int = MAX_INT) -> Callable[[str], int]:
    def whole(text: str) -> int:
        is_whole = text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS
        if not is_whole or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(
                f"expected a whole number of at least {least} and at most {most},"
                f" got {text[:MAX_DIGITS]!r}"
            )
        return int(text)

    return whole


def between(least: float, most: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        try:
            if least <= float(text) <= most:
                return float(text)
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(
            f"expected a number from {least:g} to {most:g}, got {text!r}"
        )

    return number


def size(text: str) -> int:
    """`1GB`, in bytes: units of 1000."""
    found = re.fullmatch(r"([1-9]\d{0,5})([kMGT])B", text)
    if not found:
        raise argparse.ArgumentTypeError(f"expected a size such as 500MB or 1GB, got {text!r}")
    return int(found[1]) * int(1000 ** ("kMGT".index(found[2]) + 1))


def rotation(text: str) -> tuple[int, float]:
    """`1GB` or `10m`: bytes and seconds, one of them 0."""
    if found := re.fullmatch(r"([1-9]\d{0,6})([smhd])", text):
        return 0, float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]
    try:
        return size(text), 0.0
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"expected a time such as 10m or a size such as 1GB, got {text!r}"
        ) from None


def one_in(text: str) -> int:
    """10 of `1/10`."""
    found = re.fullmatch(r"1/([1-9]\d{0,5})", text)
    if not found:
        raise argparse.ArgumentTypeError(f"expected a part such as 1/10, got {text!r}")
    return int(found[1])


def port(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"expected a port, 1 to 65535, got {text!r}")
    return int(text)


def port_or_free(text: str) -> int:
    return 0 if text == "0" else port(text)


def workers(text: str) -> int | str:
    return text if text == "auto" else at_least(1)(text)


def header(text: str) -> tuple[str, str]:
    """A header; errors do not show its value, which may be a key."""
    name, colon, value = text.partition(":")
    name, value = name.strip(), value.strip()
    shown = name if colon and name.isprintable() else "a text without a name"
    if not (colon and HEADER_NAME.fullmatch(name) and value.isascii()):
        raise argparse.ArgumentTypeError(f"expected 'NAME: VALUE' in ASCII, got {shown}")
    if any((c < " " and c != "\t") or c == "\x7f" for c in value):
        raise argparse.ArgumentTypeError(f"expected one line as the value of {shown}, got more")
    if name.lower() in OUR_HEADERS:
        raise argparse.ArgumentTypeError(f"expected no {name}, which gatescope sets; leave it out")
    return name, value


def base_url(text: str) -> Address:
    from core.load import address

    try:
        return address.of(text)
    except GatescopeError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def model(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        text = ""
    if not text.strip():
        raise argparse.ArgumentTypeError("expected the name of a model in UTF-8")
    return text


def extra_body(text: str) -> dict[str, object]:
    """Fields of a request's body, such as any server can be sent."""
    import msgspec

    try:
        value = msgspec.json.decode(text)
        msgspec.json.encode(value)
    except (msgspec.DecodeError, ValueError, OverflowError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {text!r}")
    for name, wanted in OUR_FIELDS.items():
        if name in value and value[name] not in wanted:
            raise argparse.ArgumentTypeError(
                f"expected no other {name!r} than gatescope's own; leave it out"
            )
    return value


def slo(text: str) -> dict[str, float]:
    limits = dict(part.partition("=")[::2] for part in names(text))
    if not limits or not set(limits) <= {"ttft_ms", "tpot_ms", "e2e_ms"}:
        raise argparse.ArgumentTypeError(
            f"expected limits such as ttft_ms=500,tpot_ms=50,e2e_ms=5000, got {text!r}"
        )
    return {name: between(1e-6, 1e9)(value) for name, value in limits.items()}


def rate(text: str) -> float | str:
    if text == "inf":
        return text
    try:
        return between(1e-6, 1e6)(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f'expected requests per second from 1e-06 to 1e+06, or "inf", got {text!r}'
        ) from None


def span(text: str) -> range:
    """0-3, or one number."""
    found = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", text)
    layers = range(int(found[1]), int(found[2] or found[1]) + 1) if found else range(0)
    if not layers:
        raise argparse.ArgumentTypeError(f"expected layers such as 0-3, got {text!r}")
    return layers


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
