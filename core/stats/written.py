"""Numbers in plain words: no exponents."""

from __future__ import annotations

from decimal import Decimal


def written(value: float, form: str) -> str:
    """`value` in `form`, but `-5170` where g would make it `-5.17e+03`."""
    text = format(value, form)
    if "e" not in text:
        return text
    sign = "+" if form.startswith("+") else ""
    return format(Decimal(text), f"{sign}f")
