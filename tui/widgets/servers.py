"""Servers: each backend's state, what is running in it, its load and its GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from core.experiment.events import Gpu, Sampled, ServerLoad
from core.experiment.state import BackendState
from tui.draw import chart
from tui.draw.glyphs import STATES
from tui.draw.text import Line, Span, fit, kept, line, number, wrapped
from tui.widgets.pane import Pane, empty

RAN_ROWS = 3
STRIPS = {  # a GPU's figure → its unit, and the figure that is its whole
    "utilisation_pct": ("%", ""),
    "memory_used_gib": ("GiB", "memory_total_gib"),
    "power_w": ("W", ""),
    "sm_clock_mhz": ("MHz", ""),
}
GPU_NAME, LABEL, STRIP = 6, 12, 24  # cells of a GPU's name, of a figure, and of one with its bars


class Servers(Pane):
    NUMBER = 3
    NAME = "Servers"
    KEYS: ClassVar[str] = " enter command, log  s stop "

    def count(self) -> int:
        return len(self.view.backends)

    def selected(self) -> str:
        names = self.view.backends
        return names[self.at] if self.at < len(names) else ""

    def title(self) -> str:
        servers = self.view.snapshot.backends.values()
        up = [server for server in servers if self._is_up(server)]
        if servers and not up:
            return "all stopped"
        return f"{sum(s.phase == 'ready' for s in up)} ready" if up else ""

    def draw(self, width: int, height: int) -> list[Line]:
        names = self.view.backends
        if not names:
            return empty("No server yet.", "r  run: a backend's server starts when its runs begin")
        blocks = [self._block(place, name, width) for place, name in enumerate(names)]
        lines = [text for block in blocks for text in block]
        before = sum(len(block) for block in blocks[: self.at])
        top = max(0, min(before, len(lines) - height))
        return lines[top:]

    def _block(self, place: int, name: str, width: int) -> list[Line]:
        server = self.view.snapshot.backends.get(name)
        cursor = self.is_cursor(place)
        title: Span = (fit(name, 10) + " ", self.view.role(name))
        if server is None:
            waits = (
                "starts when its runs begin"
                if self.view.stage in ("running", "not started")
                else "was not started"
            )
            return [line(title, ("· queued  " + waits, "dim"), cursor=cursor)]
        symbol, role = STATES[self._word(server)]
        parts: list[tuple[int, Span]] = [(9, title), (9, (f"{symbol} {self._state(server)}", role))]
        if self._is_up(server):
            parts += [(7, (f"   :{server.port}", "dim")), (6, (f"  pid {server.pid}", "dim"))]
        if start := self.view.snapshot.start_of(name, server.start):
            parts.append((8, (f"   {start}", "dim")))
        first = Line(kept(parts, width).spans, cursor)
        return [first, *self._details(name, server, width)]

    def _is_up(self, server: BackendState) -> bool:
        """A server stops with its engine, whatever its last event said."""
        return self.view.stage == "running" and server.phase in ("starting", "ready", "stopping")

    def _word(self, server: BackendState) -> str:
        return server.phase if server.phase == "failed" or self._is_up(server) else "stopped"

    def _state(self, server: BackendState) -> str:
        waited = self.view.now - server.since
        match self._word(server):
            case "starting":
                return f"starting {waited:.0f} s {server.step}".rstrip()
            case "ready" if server.ready_after_s is not None:
                return f"ready after {server.ready_after_s:.1f} s"
            case "stopping":
                return f"stopping {waited:.0f} s"
            case word:
                return word

    def _details(self, name: str, server: BackendState, width: int) -> list[Line]:
        indent = "    "
        room = width - len(indent)
        lines = [
            line((indent + part, "bad"))
            for text in [f"! {mismatch}" for mismatch in server.mismatches]
            for part in wrapped(text, room, "  ")
        ]
        if server.phase == "failed":
            lines += [
                line((indent + part, "bad")) for part in wrapped(server.reason, room, "  ")[:4]
            ]
            lines += [
                line((indent + fit(text.strip(), room), "dim")) for text in server.log_tail[-3:]
            ]
            return [*lines, line((f"{indent}l  its log   R  retry its failed runs", "dim"))]
        if self._is_up(server) and (sample := self._sample(name)):
            if sample.server:
                parts = [(9, (indent, "")), *_load(sample.server)]
                lines.append(kept(parts, width))
            lines += [line(indent, *spans) for spans in self._gpus(name, room)]
        if server.ran:
            lines += [
                line((indent + part, "dim"))
                for part in wrapped("ran " + " · ".join(_ran(server)), room)[:RAN_ROWS]
            ]
        return lines

    def _gpus(self, name: str, width: int) -> list[list[Span]]:
        """A strip per GPU over time, where there is room; else its newest figures."""
        samples = [s for s in self.view.snapshot.samples if s.backend == name]
        now = samples[-1].gpus if samples else []
        across = min(len(STRIPS), width // STRIP)
        if not across or len(now) * -(-len(STRIPS) // across) > self.size.height // 2:
            return [[(text, "")] for text in gpus(now, width)]
        return [row for place in range(len(now)) for row in strip(samples, place, width)]

    def _sample(self, name: str) -> Sampled | None:
        last = self.view.snapshot.samples[-1] if self.view.snapshot.samples else None
        return last if last and last.backend == name else None


def _ran(server: BackendState) -> list[str]:
    """What ran, the most important parts first."""
    first = ("engine", "parallel", "moe_backend", "all2all_backend", "ranks", "version")
    names = [n for n in first if n in server.ran] + [n for n in server.ran if n not in first]
    return [
        f"{n} {server.ran[n]}" if n not in ("engine", "parallel") else server.ran[n] for n in names
    ]


def _load(load: ServerLoad) -> list[tuple[int, Span]]:
    return [
        (8, (f"running {load.running}", "")),
        (7, (f"  waiting {load.waiting}", "warn" if load.waiting else "")),
        (6, (f"  KV cache {load.kv_cache:.0%}", "")),
        (
            7 if load.preemptions else 5,
            (f"  preemptions {load.preemptions}", "warn" if load.preemptions else ""),
        ),
    ]


def strip(samples: Sequence[Sampled], place: int, width: int) -> list[list[Span]]:
    """One GPU's utilisation, memory, power and clock over time, side by side as far as they
    fit."""
    seen = [s.gpus[place] if place < len(s.gpus) else None for s in samples]
    now = seen[-1]
    across = max(1, min(len(STRIPS), width // STRIP))
    each = (width - GPU_NAME) // across
    cells: list[list[Span]] = []
    for field, (unit, whole) in STRIPS.items():
        value, most = getattr(now, field), getattr(now, whole, None) if whole else None
        share = f"/{most:,.0f}" if most else ""
        text = f"{number(value)}{share} {unit}"
        values = [getattr(g, field) if g else None for g in seen]
        room = max(each - LABEL - 1, 1)
        end = most or (100.0 if unit == "%" else chart.top(values))
        bars = chart.bars(values[-room:], end)[0].ljust(room)
        cells.append([(fit(text, LABEL, right=True) + " ", ""), (bars, "note")])
    rows = [cells[i : i + across] for i in range(0, len(cells), across)]
    name = f"gpu{now.index}" if now else ""
    return [
        [(fit(name if n == 0 else "", GPU_NAME), "strong"), *(s for cell in row for s in cell)]
        for n, row in enumerate(rows)
    ]


def gpus(found: list[Gpu], width: int) -> list[str]:
    """One cell per GPU, as many side by side as fit."""
    cells = [
        f"gpu{g.index} {number(g.memory_used_gib)}/{number(g.memory_total_gib)} GiB"
        f" {number(g.utilisation_pct):>3}%"
        f" {number(g.power_w)} W {number(g.temperature_c)} °C"
        for g in found
    ]
    if not cells:
        return []
    cell = max(len(c) for c in cells) + 2
    across = max(1, width // cell)
    return [
        "".join(c.ljust(cell) for c in cells[i : i + across]).rstrip()
        for i in range(0, len(cells), across)
    ]
