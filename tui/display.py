"""What keys do to the display: freeze it, pace it, go between panes, filter rows, open screens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from tui import commands
from tui.draw import theme
from tui.draw.text import Span
from tui.model.settings import LEAST, MOST
from tui.screens.reading import Reading
from tui.widgets.prompt import Prompt
from tui.widgets.servers import Servers

if TYPE_CHECKING:
    from tui.app import Gatescope

RATES_HZ = (0.5, 1.0, 2.0, 4.0)
ROW_OF = {"Queue": 0, "Servers": 0, "Live": 1, "Imbalance": 2, "Plots": 2, "Events": 3}
STEP = 1.25  # a key makes a row so many times as tall


def freeze(app: Gatescope) -> str:
    app.paused = not app.paused
    if app.paused:
        return "display frozen, the load goes on; press space to resume"
    return "display resumed"


def slower(app: Gatescope) -> str:
    hz = app.settings.hz
    return _repaint_at(app, max((r for r in RATES_HZ if r < hz), default=RATES_HZ[0]))


def faster(app: Gatescope) -> str:
    hz = app.settings.hz
    return _repaint_at(app, min((r for r in RATES_HZ if r > hz), default=RATES_HZ[-1]))


def _repaint_at(app: Gatescope, hz: float) -> str:
    app.keep(replace(app.settings, hz=hz))
    return "1 repaint a second" if hz == 1 else f"{hz:g} repaints a second"


def change_theme(app: Gatescope) -> str:
    app.theme = theme.after(app.theme)
    app.keep(replace(app.settings, theme=app.theme))
    return f"theme: {app.theme}"


def taller(app: Gatescope) -> str | None:
    return _resize(app, STEP)


def shorter(app: Gatescope) -> str | None:
    return _resize(app, 1 / STEP)


def _resize(app: Gatescope, times: float) -> str | None:
    """Make the row of the pane in focus taller or shorter, at the cost of the others."""
    row = ROW_OF[app.active.NAME]
    height = min(max(app.settings.row(row) * times, LEAST), MOST)
    app.keep(replace(app.settings, heights={**app.settings.heights, row: round(height, 3)}))
    app.size_panes(app.size.height)
    app.call_after_refresh(app.show)
    return None if app.size.height >= 28 else "one pane has the whole screen here"


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
        app.focus_on(app.active)
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
    app.keep(replace(app.settings, bell=not app.settings.bell))
    return "the bell rings when runs end or fail" if app.settings.bell else "the bell is off"


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
