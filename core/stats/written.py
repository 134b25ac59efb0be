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


def p_value(p: float | None) -> str:
    """`0.03`, or `< 0.0001`; a dash for None."""
    if p is None:
        return "–"
    return "< 0.0001" if p < 1e-4 else written(p, ".2g")


def p_in_words(p: float) -> str:
    """`p = 0.03`, `p < 0.0001`."""
    shown = p_value(p)
    return f"p {shown}" if shown.startswith("<") else f"p = {shown}"
