"""Opens the terminal UI: for a new experiment, one that runs, or a run directory or sweep."""

from __future__ import annotations

import locale
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import FileError
from core.experiment.invocation import Invocation
from core.rundir import sweep
from core.terminal import complain, has_screen, is_dumb
from tui.app import Gatescope
from tui.model import settings
from tui.model.session import Session, newest_live

if TYPE_CHECKING:
    from core.rundir.sweep import SweepFile


def run(invocation: Invocation, *, ascii: bool = False) -> int:
    """The UI for a new experiment; for the run directory to resume; or for the one running under
    runs/, if nothing is selected. Its exit code."""
    if invocation.resume:
        if sweep.is_sweep(invocation.resume):
            return _browse(invocation.resume, ascii=ascii)
        return _show(Session(invocation, _run_directory(invocation.resume)), ascii=ascii)
    found = _running(invocation)
    if found is None:
        _check_writable(invocation.out or Path("runs"))
    elif sweep.is_sweep(found):
        return _browse(found, ascii=ascii)
    return _show(Session(invocation, found), ascii=ascii)


def run_sweep(invocation: Invocation, planned: SweepFile, *, ascii: bool = False) -> int:
    """The UI for a new sweep, or for what runs under runs/, if nothing is selected."""
    if found := _running(invocation):
        return attach(found, ascii=ascii)
    from core.rundir import directory

    path = invocation.out or directory.new_path(planned.name)
    _check_writable(path)
    return _browse(path, invocation, planned, ascii=ascii)


def _running(invocation: Invocation) -> Path | None:
    """What runs under runs/, if nothing is selected."""
    bare = Invocation(invocation.config_path, engine=invocation.engine)
    return newest_live() if invocation == bare else None


def _check_writable(run_dir: Path) -> None:
    """FileError where a run directory could not be made: before the screen opens, not at `r`."""
    path = run_dir.absolute()
    there = next(place for place in (path, *path.parents) if place.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise FileError(
            f"{run_dir}: cannot be written: {there} is read-only for you; name another place with"
            " --out, or look at a run with: gatescope attach RUN_DIR"
        )


def attach(run_dir: Path, *, ascii: bool = False) -> int:
    """The UI over a run directory or a sweep, running or not. FileError where it is neither."""
    if sweep.is_sweep(run_dir):
        return _browse(run_dir, ascii=ascii)
    return _show(Session(Invocation(), _run_directory(run_dir)), ascii=ascii)


def watch(folder: Path, every_s: float, *, ascii: bool = False) -> int:
    """The screen over a gate log that grows."""
    from core.routing.windows import Watched
    from tui.watch import WatchScreen

    screen = WatchScreen(Watched(folder), every_s, ascii=_is_plain(ascii))
    screen.run()
    return screen.return_code or 0


def _browse(
    path: Path,
    invocation: Invocation | None = None,
    planned: SweepFile | None = None,
    *,
    ascii: bool,
) -> int:
    """The screen of a sweep, and from it the UI over the cell that is opened, and back."""
    from tui.model.sweep import SweepSession
    from tui.sweep import SweepScreen

    if (code := _why_no_screen()) is not None:
        return code
    session, opened = SweepSession(path, invocation, planned), ""
    while True:
        screen = SweepScreen(session, opened, ascii=_is_plain(ascii))
        opened = screen.run() or ""
        if not opened:
            return screen.return_code or 0
        cell = Session(Invocation(), _run_directory(path / sweep.CELLS / opened))
        if (code := _show(cell, ascii=ascii)) > 1:
            return code


def _run_directory(path: Path) -> Path:
    if not (path / "events.jsonl").is_file():
        raise FileError(f"{path}: not a run directory: events.jsonl is expected in it")
    return path


def _show(session: Session, *, ascii: bool) -> int:
    if (refused := _why_no_screen()) is not None:
        return refused
    app = Gatescope(session, ascii=_is_plain(ascii), settings_file=settings.file())
    code = app.run()
    if app.leads_to:
        return _browse(app.leads_to, ascii=ascii)
    return code if code is not None else app.return_code or 0  # a crash has no code but Textual's


def _why_no_screen() -> int | None:
    """The exit code, once stderr says why no screen can be drawn here; None where one can."""
    if not has_screen():
        print(
            "gatescope: the terminal UI needs a terminal; without one use: gatescope --batch",
            file=sys.stderr,
        )
        return 2
    if is_dumb():
        complain("TERM is dumb, and the terminal UI moves the cursor: set TERM, or use --batch")
        return 2
    for name in ("COLUMNS", "LINES"):  # a parent's: Textual would take them for this terminal's
        os.environ.pop(name, None)
    return None


def _is_plain(ascii: bool) -> bool:
    return ascii or "utf" not in locale.getpreferredencoding(False).lower()
