"""Which doses (target imbalances) one server may be asked to force, which recorded runs it may be
asked to replay, and their labels.

Runs inside vLLM's workers too: standard library only.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass

VARIABLE = "GATESCOPE_FORCED_ROUTING"
PATTERNS = ("hot-experts", "hot-rank", "spread", "rotating", "few-experts")
REPLAY = "replay"
LEVEL = rf"(?:{'|'.join(PATTERNS)})~[0-9]+(?:\.[0-9]+)?"
LABEL = re.compile(rf"~({LEVEL}|{REPLAY}~[A-Za-z0-9_.-]+?)(?:-try[0-9]+)?\Z")


class DoseError(ValueError):
    """This model in this layout cannot be forced to this level; the text says why, and what can."""


@dataclass(frozen=True, slots=True)
class Order:
    """What one server may be asked to force. `labels`: of the doses ("hot-rank~0.5"); `ranks`: the
    expert-parallel ranks that hot-rank and spread refer to; `rotate_steps`: steps after which a
    rotating hot set moves on. `replays`: labels of the recorded runs ("replay~001"), whose loads
    lie in the folder `recording`."""

    labels: tuple[str, ...]
    ranks: int = 1
    rotate_steps: int = 64
    seed: int = 0
    replays: tuple[str, ...] = ()
    recording: str = ""

    def encode(self) -> str:
        """As the environment variable carries it."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> Order:
        """The reverse of `encode`. ValueError, KeyError or TypeError for any other text."""
        fields = json.loads(text)
        return cls(
            **{
                **fields,
                "labels": tuple(fields["labels"]),
                "replays": tuple(fields.get("replays", ())),
            }
        )


def dose_of(label: str) -> str:
    """The dose or replay in the label of a run or a segment, as in `Order.labels` and
    `Order.replays`; empty for natural routing."""
    found = LABEL.search(label)
    return found[1] if found else ""


def parse(dose: str) -> tuple[str, float]:
    """Pattern and level of "hot-rank~0.5"."""
    pattern, _, level = dose.partition("~")
    return pattern, float(level)
