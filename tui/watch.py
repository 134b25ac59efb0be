"""The screen of `gatescope watch`: a gate log that grows, prefill and decode apart, the last minute
beside the last hour, by layer, rank and node, with every expert's load as a heat map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.filter import LineFilter

from core.routing import rank_nodes, repeats, watch_rows
from core.routing.layers import LayerLoad, Totals
from core.routing.watch_rows import Pair
from core.routing.windows import HOUR_S, MINUTE_S, PHASES, Watched
from tui.draw import table, theme
from tui.draw.glyphs import AsciiFilter
from tui.draw.table import Column
from tui.draw.text import Line, fit, line, wrapped
from tui.model import settings
from tui.widgets import bars
from tui.widgets.imbalance import folded, heat
from tui.widgets.lines import Lines

WINDOWS = ("minute", "hour")
KEYS = (
    ("p", "prefill or decode"),
    ("w", "minute or hour"),
    ("O", "worst first"),
    ("arrows", "move"),
    ("q", "quit"),
)
NEEDS = {watch_rows.LAYER: 9, "max/mean": 8, "excess CV": 6, "busiest node": 7, "busiest rank": 5}
HEAT_LEAST = 8  # cells, for which columns make room


class Phase(NamedTuple):
    """One phase as it was last read: the sums of both windows, and its layers."""

    minute: Totals
    hour: Totals
    pairs: list[Pair]


class WatchScreen(App[None]):
    """Reads the log off this thread every few seconds."""

    CSS_PATH = "app.tcss"
    CSS = "#head { height: 1; background: $panel; } #log { height: 1fr; }"
    TITLE = "gatescope"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "up"),
        Binding("down,j", "move(1)", "down"),
        Binding("pageup", "move(-20)", "page up"),
        Binding("pagedown", "move(20)", "page down"),
        Binding("p,tab", "phase", "prefill or decode"),
        Binding("w", "window", "window of the heat map"),
        Binding("O", "order", "worst first"),
        Binding("q,escape,ctrl+c", "leave", "quit"),
    ]

    def __init__(self, watched: Watched, every_s: float, *, ascii: bool = False) -> None:
        super().__init__()
        self._watched, self._every_s, self._ascii = watched, every_s, ascii
        self._phases: dict[str, Phase] = {}
        self._phase, self._window, self._at = "decode", WINDOWS[0], 0
        self._worst_first, self._is_reading = True, False
        self._warning = ""
        theme.wear(self, settings.read(settings.file()).theme)

    def get_line_filters(self) -> Sequence[LineFilter]:
        filters = super().get_line_filters()
        return [*filters, AsciiFilter()] if self._ascii else filters

    def compose(self) -> ComposeResult:
        yield Lines("head")
        yield Lines("log")
        yield Lines("keys")

    def on_mount(self) -> None:
        self.screen.set_class(self._ascii, "-ascii")
        self.set_interval(self._every_s, self.read)
        self.call_after_refresh(self.read)
        self.call_after_refresh(self.draw)  # an hour of a large model's steps takes long to read

    def on_resize(self) -> None:
        self.call_after_refresh(self.draw)

    def read(self) -> None:
        """Read what is new, unless that is still going on."""
        if not self._is_reading:
            self._is_reading = True
            self.run_worker(self._read, thread=True)

    def action_move(self, down: int) -> None:
        self._at += down
        self.draw()

    def action_phase(self) -> None:
        self._phase = next(phase for phase in PHASES if phase != self._phase)
        self.draw()

    def action_window(self) -> None:
        self._window = next(window for window in WINDOWS if window != self._window)
        self.draw()

    def action_order(self) -> None:
        self._worst_first = not self._worst_first
        self.draw()

    def action_leave(self) -> None:
        self.exit()

    def draw(self) -> None:
        place = self._watched.logs or self._watched.folder
        self.query_one("#head", Lines).put([line((f" gatescope   watch {place}", "strong"))])
        self.query_one("#log", Lines).put(self._body(self.size.width, self.size.height - 2))
        self.query_one("#keys", Lines).put([bars.keys(KEYS)])

    def _read(self) -> None:
        watched = self._watched
        watched.read()
        found = {}
        for phase in PHASES:
            minute, hour = (
                watched.windows.last(phase, s, watched.at_s) for s in (MINUTE_S, HOUR_S)
            )
            found[phase] = Phase(minute, hour, watch_rows.pairs(minute, hour))
        warning = repeats.random_prompts(watched.logs) if watched.logs else ""
        self.call_from_thread(self._take, found, warning)

    def _take(self, found: dict[str, Phase], warning: str) -> None:
        self._phases, self._warning, self._is_reading = found, warning, False
        self.draw()

    # --- what is drawn ---

    def _body(self, width: int, height: int) -> list[Line]:
        watched = self._watched
        if not self._phases:
            return [line(("reading …", "dim"))]
        head = [line((text, "")) for text in watch_rows.about(watched.header, watched.nodes)]
        for text in (watched.problem, self._warning):
            head += [line((row, "warn")) for row in wrapped(text, width) if row]
        if watched.header is None:
            return head
        for phase in PHASES:
            head += self._seen(phase)
        pairs = self._shown()
        if not pairs:
            return [*head, Line(), line((f"no {self._phase} step in the last hour", "dim"))]
        self._at = min(max(self._at, 0), len(pairs) - 1)
        below = self._detail(pairs[self._at], width)
        room = max(1, height - len(head) - len(below) - 1)
        first = min(max(0, self._at - room // 2), max(0, len(pairs) - room))
        return [*head, *self._table(pairs, slice(first, first + room), width), *below]

    def _seen(self, phase: str) -> list[Line]:
        found, role = self._phases[phase], "strong" if phase == self._phase else "dim"
        places = self._watched.nodes
        return [
            line((f"{name:<8} {window:<7} {watch_rows.seen(of, places)}", role))
            for name, window, of in zip((phase, ""), WINDOWS, found[:2], strict=True)
        ]

    def _shown(self) -> list[Pair]:
        pairs = self._phases[self._phase].pairs
        return sorted(pairs, key=lambda one: -one.unevenness) if self._worst_first else pairs

    def _table(self, pairs: Sequence[Pair], shown: slice, width: int) -> list[Line]:
        places = self._watched.nodes
        rows = [watch_rows.cells(pair, places) for pair in pairs]
        heads = watch_rows.heads(
            has_ranks=self._phases[self._phase].hour.has_ranks, has_nodes=len(set(places)) > 1
        )
        columns = table.fitting(
            [
                Column(
                    head, max(len(row[head]) for row in (*rows, {head: head})), NEEDS.get(head, 4)
                )
                for head in heads
            ],
            width - HEAT_LEAST,
        )
        columns = tuple(Column(c.title, c.width, c.need, right=False) for c in columns)
        room = width - sum(c.width + 1 for c in columns) - 1
        experts = len(pairs[0].hour.shares)
        title = f"e0 … e{experts - 1}, {self._window}"
        found = [Line((*table.head(columns).spans, (" ", ""), (fit(title, room), "dim")))]
        for place in range(*shown.indices(len(pairs))):
            of = getattr(pairs[place], self._window)
            row = table.row(columns, rows[place])
            spans = (*row.spans, (">" if place == self._at else " ", ""))
            found.append(Line((*spans, *(_heat(of, room) if of else ()))))
        return found

    def _detail(self, pair: Pair, width: int) -> list[Line]:
        """Every rank and node of the layer under the cursor, and its hottest experts."""
        now, places = pair.minute or pair.hour, self._watched.nodes
        both = (now, pair.hour)
        found = {
            "ranks": [watch_rows.by("r", one.rank_shares) for one in both],
            "nodes": [rank_nodes.shares(one.rank_shares, places) for one in both],
            "experts": [watch_rows.by("e", one.shares) for one in both],
        }
        rows: list[Line] = []
        for what, (of_now, of_hour) in found.items():
            if of_hour:
                hottest = sorted(of_hour, key=lambda name: -of_now[name])
                share = watch_rows.share
                texts = (f"{name} {share(of_now[name])}/{share(of_hour[name])}" for name in hottest)
                text = f"L{pair.hour.layer:02d} {what}: {'  '.join(texts)}"
                rows.append(line((wrapped(text, width)[0], "note")))
        return [*rows, line((fit(watch_rows.NOTE, width), "dim"))]


def _heat(layer: LayerLoad, room: int) -> list[tuple[str, str]]:
    """Each expert's load over an even share; of those that must share a cell, the hottest's."""
    count = len(layer.shares)
    each = folded(count, room)
    parts = [max(layer.shares[i : i + each]) for i in range(0, count, each)]
    return [(text, str(role)) for text, role in (heat(part * count, 1) for part in parts)]
