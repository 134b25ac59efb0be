"""What an argument of the command line may be: its text → a value, or argparse's error that says
what was expected."""

from __future__ import annotations

import argparse
from collections.abc import Callable

PATTERNS = (
    "hot-experts",
    "hot-rank",
    "spread",
    "rotating",
)  # core.experiment.dose.Pattern, which would import NumPy


def listed(text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise argparse.ArgumentTypeError(f"expected names with commas between them, got {text!r}")
    return parts


def levels(text: str) -> list[float]:
    return _numbers(text, 100, "CVs of expert load such as 0,0.25,1.5")


def patterns(text: str) -> list[str]:
    patterns = listed(text)
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
    limits = dict(part.partition("=")[::2] for part in listed(text))
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
