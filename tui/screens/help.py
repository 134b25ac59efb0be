"""Help: every key by where it acts, from the bindings themselves; what symbols and metrics mean."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from tui.draw.chart import CLIPPED
from tui.draw.glyphs import STATES
from tui.widgets.pane import Pane
from tui.widgets.plots import Plots

GENERAL = "Screen"
GROUPS = {
    "Run": ("run", "config", "cancel", "next", "retry", "add", "stop_server", "quit", "interrupt"),
    "Queue": ("mark", "later", "sooner", "order", "reverse", "pairs", "filter", "follow", "open"),
    "Imbalance": ("window", "worst_first", "by_run"),
    "Plots": ("figure", "metric", "axis", "outliers", "export"),
    "Results": ("findings", "dose", "copy", "log", "browse"),
}
SYMBOLS = (
    (">", "the selected run: Live, Imbalance and Plots show it"),
    ("*", "a marked run"),
    ("▲ ▼", "more or less than the backend compared with; in a header: sorted up or down"),
    (CLIPPED, "on a bar: higher than its scale"),
    ("–", "not known; the reason stands beside it or in the run's details (enter)"),
)
METRICS = (
    ("TTFT", "time from sending a request to its first token"),
    ("TPOT", "time per output token after the first, over one request"),
    ("ITL", "one gap between tokens; while a run goes on, from a sample of the gaps"),
    ("E2E", "time from sending a request to its last token"),
    ("CV", "standard deviation of expert load over its mean, per step and layer"),
    ("floor", "the CV that a fair router shows by chance, with as few tokens"),
    ("excess", "the CV beyond that floor; aggregated: of loads summed over steps"),
    ("rank", "load of the busiest expert-parallel rank over the mean of all"),
)


class Help(ModalScreen[None]):
    """Scrolls; any of its keys closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark,ctrl+c", "dismiss", "close"),
        Binding("j", "down"),
        Binding("k", "up"),
    ]

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="dialog tall") as box:
            box.border_title = "Help"
            box.border_subtitle = "esc closes"
            table = Table.grid(padding=(0, 2))
            for title, rows in sections([*self.app.BINDINGS, *Pane.BINDINGS, *Plots.BINDINGS]):
                table.add_row(Text(""), Text(f"\n{title}", "bold underline"))
                for key, text in rows:
                    table.add_row(Text(key, "bold"), Text(text))
            yield Static(table)

    def action_down(self) -> None:
        self.query_one(VerticalScroll).scroll_down()

    def action_up(self) -> None:
        self.query_one(VerticalScroll).scroll_up()


def sections(bindings: list[BindingType]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Keys by where they act, then the legends."""
    grouped: dict[str, list[BindingType]] = {}
    for binding in bindings:
        assert isinstance(binding, Binding)
        grouped.setdefault(where(binding.id or ""), []).append(binding)
    for title in (*GROUPS, GENERAL):
        yield title, list(keys(grouped.get(title, [])))
    yield "Symbols", [*((s, word) for word, (s, _) in STATES.items()), *SYMBOLS]
    yield "Metrics", list(METRICS)


def where(action: str) -> str:
    """The group that an action's key stands in."""
    return next((title for title, names in GROUPS.items() if action in names), GENERAL)


def keys(bindings: list[BindingType]) -> Iterator[tuple[str, str]]:
    """(keys as written, what they do), one per action."""
    written: dict[str, list[str]] = {}
    for binding in bindings:
        assert isinstance(binding, Binding)  # ours are all written out
        for key in [binding.key_display] if binding.key_display else binding.key.split(","):
            known = written.setdefault(binding.tooltip, [])
            if key not in known:
                known.append(key)
    return ((" ".join(keys), text) for text, keys in written.items())
