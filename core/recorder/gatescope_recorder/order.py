"""Which doses (target imbalances) one server may be asked to force, and their labels.

Runs inside vLLM's workers too: standard library only.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass

VARIABLE = "GATESCOPE_FORCED_ROUTING"
PATTERNS = ("hot-experts", "hot-rank", "spread", "rotating", "few-experts")
LABEL = re.compile(rf"~({'|'.join(PATTERNS)})~([0-9]+(?:\.[0-9]+)?)(?:-try[0-9]+)?\Z")


class DoseError(ValueError):
    """This model in this layout cannot be forced to this level; the text says why, and what can."""


@dataclass(frozen=True, slots=True)
class Order:
    """What one server may be asked to force. `labels`: of the doses ("hot-rank~0.5"); `ranks`: the
    expert-parallel ranks that hot-rank and spread refer to; `rotate_steps`: steps after which a
    rotating hot set moves on."""

    labels: tuple[str, ...]
    ranks: int = 1
    rotate_steps: int = 64
    seed: int = 0

    def encode(self) -> str:
        """As the environment variable carries it."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> Order:
        """The reverse of `encode`. ValueError, KeyError or TypeError for any other text."""
        fields = json.loads(text)
        return cls(**{**fields, "labels": tuple(fields["labels"])})


def dose_of(label: str) -> str:
    """The dose in the label of a run or a segment, as in `Order.labels`; empty for natural
    routing."""
    found = LABEL.search(label)
    return f"{found[1]}~{found[2]}" if found else ""


def parse(dose: str) -> tuple[str, float]:
    """Pattern and level of "hot-rank~0.5"."""
    pattern, _, level = dose.partition("~")
    return pattern, float(level)
