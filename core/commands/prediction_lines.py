"""What `gatescope predict --model` shows: progress, and the figures of each dataset."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from core import terminal
from core.terminal import shown, tell

if TYPE_CHECKING:
    from core.prediction.exact import Tell
    from core.prediction.stack import Stack
    from core.routing.expected import Expected, ExpectedPhase

BAR = 30  # columns
PER_LINE = 16  # experts


def tell_needs(model: Stack, prompts: Sequence[Sequence[int]]) -> None:
    from core.prediction import exact

    layer, hidden = exact.needs(model, prompts)
    tokens = sum(map(len, prompts))
    tell(
        f"{model.name}: {len(prompts)} prompts, {tokens} tokens through {model.depth} layers;"
        f" memory: at most {_size(layer)} for a layer, {_size(hidden)} for the hidden states"
    )


def _size(count: int) -> str:
    gib = count / (1 << 30)
    return f"{gib:.1f} GiB" if gib >= 0.1 else f"{count / (1 << 20):.1f} MiB"


def progress() -> Tell:
    """A bar on a terminal that can redraw a line; a line a layer elsewhere."""
    redraws = sys.stderr.isatty() and not terminal.is_dumb()

    def told(done: int, layers: int, seconds: float) -> None:
        left = terminal.clock(seconds / done * (layers - done))
        line = f"layer {done} of {layers}, {left} left"
        if not redraws:
            tell(line)
            return
        filled = BAR * done // layers
        end = "\n" if done == layers else ""
        bar = f"{'█' * filled}{'░' * (BAR - filled)}"
        print(f"\r{bar} {line}\x1b[K", end=end, file=sys.stderr, flush=True)

    return told


def show(found: Mapping[str, Expected], *, as_json: bool) -> None:
    from core import files

    if as_json:
        sys.stdout.write(files.formatted(found).decode())
    else:
        print("\n\n".join(_lines(file, expected) for file, expected in found.items()))


def _lines(file: str, of: Expected) -> str:
    """The figures of one dataset, and each layer's loads, 100 being an even share."""
    head = f"{file}: {of.prompts} prompts, {of.tokens} tokens; {of.mode}"
    phases = [_phase("prefill", of.prefill)]
    if of.decode:
        phases.append(_phase("decode", of.decode))
    else:
        phases.append(f"  decode   – ({of.decode_reason})")
    loads = ["  load of each expert, % of an even share"]
    for number, shares in zip(of.layer_numbers, of.loads, strict=True):
        values = [f"{share * len(shares) * 100:4.0f}" for share in shares]
        rows = [" ".join(values[i : i + PER_LINE]) for i in range(0, len(values), PER_LINE)]
        loads += [f"  {f'layer {number}' if not i else '':<9}{row}" for i, row in enumerate(rows)]
    times = [f"{k} {v:.1f} ms" for k, v in (("TTFT", of.ttft_ms), ("TPOT", of.tpot_ms)) if v]
    why = f" ({of.times_reason})" if of.times_reason else ""
    timed = [f"  sent at once: {', '.join(times) or '–'}{why}"] if times or why else []
    return "\n".join([head, *phases, *timed, *loads])


def _phase(name: str, of: ExpectedPhase) -> str:
    ends = of.excess_cv_interval
    interval = f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else ""
    why = f" ({of.excess_cv_reason})" if of.excess_cv_reason else ""
    parts = [
        f"excess CV {shown(of.excess_cv, '.3f')}{interval}{why}",
        f"noise floor {shown(of.noise_floor, '.3f')}",
        f"{of.active_experts:.1f} active experts",
    ]
    if of.busiest_rank_experts is not None:
        parts.append(f"{of.busiest_rank_experts:.1f} on the busiest rank")
        parts.append(f"rank max/mean {of.rank_imbalance:.2f}")
    if of.step_ms is not None:
        parts.append(f"{of.step_ms:.2f} ms a step")
    return f"  {name:<9}at {of.tokens:.0f} tokens a step: {', '.join(parts)}"
