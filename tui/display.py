"""What keys do to the display: freeze it, pace it, go between panes, filter rows, open screens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tui import commands
from tui.draw import theme
from tui.draw.text import Span
from tui.screens.reading import Reading
from tui.widgets.prompt import Prompt
from tui.widgets.servers import Servers

if TYPE_CHECKING:
    from tui.app import Gatescope

RATES_HZ = (0.5, 1.0, 2.0, 4.0)


def freeze(app: Gatescope) -> str:
    app.paused = not app.paused
    if app.paused:
        return "display frozen, the load goes on; press space to resume"
    return "display resumed"


def slower(app: Gatescope) -> str:
    return _repaint_at(app, max((r for r in RATES_HZ if r < app.hz), default=RATES_HZ[0]))


def faster(app: Gatescope) -> str:
    return _repaint_at(app, min((r for r in RATES_HZ if r > app.hz), default=RATES_HZ[-1]))


def _repaint_at(app: Gatescope, hz: float) -> str:
    app.tick_at(hz)
    return "1 repaint a second" if hz == 1 else f"{hz:g} repaints a second"


def change_theme(app: Gatescope) -> None:
    is_dark = app.theme == theme.DARK.name
    app.theme = theme.LIGHT.name if is_dark else theme.DARK.name


# --- panes ---


def next_pane(app: Gatescope) -> None:
    _step(app, 1)


def previous_pane(app: Gatescope) -> None:
    _step(app, -1)


def _step(app: Gatescope, by: int) -> None:
    panes = sorted(app.panes, key=lambda pane: pane.NUMBER)
    app.go_to(panes[(panes.index(app.active) + by) % len(panes)])


def maximise(app: Gatescope) -> None:
    app.query_one("#body").toggle_class("-one")
    app.call_after_refresh(app.show)


def follow(app: Gatescope) -> None:
    app.pinned = ""


def filter_rows(app: Gatescope) -> None:
    pane = app.filtered
    app.go_to(pane)
    app.query_one(Prompt).open(pane.filter, f"filter {pane.NAME}:")


def back(app: Gatescope) -> None:
    """The innermost first: the filter, the maximised pane, the pinned run."""
    pane, prompt = app.filtered, app.query_one(Prompt)
    if prompt.is_open or pane.filter:
        prompt.close()
        pane.narrow("")
        app.active.focus()
    elif app.query_one("#body").has_class("-one"):
        maximise(app)
    else:
        app.pinned = ""


# --- screens ---


def palette(app: Gatescope) -> None:
    app.action_command_palette()


def show_help(app: Gatescope) -> None:
    from tui.screens.help import Help

    app.push_screen(Help())


def open_row(app: Gatescope) -> str | None:
    pane = app.active
    if isinstance(pane, Servers):
        return server_log(app)
    if (run := app.view.run) is None:
        return "no run is selected"
    read = partial(_details, app, run.run.id)
    file = str(app.session.run_dir / run.result) if app.session.run_dir and run.result else ""
    app.push_screen(Reading(f"run {run.run.id}", read, file))
    return None


def _details(app: Gatescope, run: str) -> Sequence[Span]:
    from tui.model import details

    return details.of_run(app.session.run_dir, app.session.snapshot.runs[run])


def findings(app: Gatescope) -> None:
    from tui.model import details

    run_dir = app.session.run_dir
    if run_dir is not None:
        app.push_screen(Reading(f"findings of {run_dir}", partial(details.findings, run_dir)))


def copy_path(app: Gatescope) -> str:
    """The result of the selected run, else the run directory, onto the terminal's clipboard."""
    run, run_dir = app.view.run, app.session.run_dir
    assert run_dir is not None  # an action without one says so
    path = (run_dir / run.result if run and run.result else run_dir).absolute()
    app.copy_to_clipboard(str(path))
    return f"copied: {path}"


def past_runs(app: Gatescope) -> None:
    app.run_worker(partial(_past_runs, app), thread=True)


def _past_runs(app: Gatescope) -> None:
    from core.rundir import past
    from tui.screens.past import PastRuns

    folder = app.session.run_dir.parent if app.session.run_dir else Path("runs")
    found = past.of_folder(folder)[0] if folder.is_dir() else []
    app.call_from_thread(app.push_screen, PastRuns(found, folder), app.open_other)


def config(app: Gatescope) -> None:
    from tui.screens.config import ConfigScreen

    app.push_screen(ConfigScreen(app.session))


def mute(app: Gatescope) -> str:
    app.is_muted = not app.is_muted
    return "the bell is off" if app.is_muted else "the bell rings when runs end or fail"


def server_log(app: Gatescope) -> str | None:
    from tui.screens.log import ServerScreen

    name = commands.chosen_server(app)
    server = app.view.snapshot.backends.get(name)
    if server is None:
        return f"{name} has not been started yet"
    app.push_screen(ServerScreen(name, app.session))
    return None


def forced_routing(app: Gatescope) -> None:
    from tui.screens.dose import DoseScreen

    app.push_screen(DoseScreen(app.session))
