"""The figures of a run directory that Plots shows besides the scatter. Imports NumPy: read them off
the UI thread."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.style import Style
from rich.text import Text

from core.analysis import results, step_sample
from core.analysis.results import Results
from core.errors import FileError, NoDataError
from core.plots import gallery, text
from core.plots.figure import F, Figure
from core.validity import verdict
from tui.draw.text import Line, Span


def panels(figure: str, run_dir: Path, backends: Sequence[str], engine: str) -> list[Figure]:
    """The panels of `figure` so far, with *INVALID* on those where a rule says so. NoDataError says
    why there are none."""
    groups = _results(run_dir, backends)
    invalid = _invalid(run_dir, groups)
    if figure in gallery.OF_STEPS:
        samples, problems = step_sample.of_backends(
            run_dir, [b for b in backends if any(run_dir.glob(f"{b}/gate_logs*"))]
        )
        if not samples:
            raise NoDataError("; ".join(problems) or "no gate log yet")
        return gallery.panels(figure, groups, samples, engine, invalid)
    if not groups:
        raise NoDataError("no run is done yet")
    return gallery.panels(figure, groups, {}, engine, invalid)


def marked(figure: F, run_dir: Path, backends: Sequence[str]) -> F:
    """A figure of several backends, with *INVALID* on it likewise."""
    groups = _results(run_dir, backends)
    return gallery.of_all(figure, groups, _invalid(run_dir, groups))


def _invalid(run_dir: Path, groups: Sequence[Results]) -> Mapping[str, str]:
    """Backend → the rules that its figures break; judged by the results alone while there is no
    run.json yet."""
    try:
        found = verdict.of_run_directory(run_dir, groups)
    except FileError:
        found = verdict.of_results(groups)
    return found.invalid(group.name for group in groups)


def _results(run_dir: Path, backends: Sequence[str]) -> list[Results]:
    groups = []
    for backend in backends:
        with contextlib.suppress(FileError, NoDataError):  # none of its runs is done
            groups.append(results.of_folders(backend, run_dir / backend / "results_json"))
    return groups


def lines(panel: Figure, width: int, height: int) -> list[Line]:
    """One panel as rows of a pane."""
    return [_line(row) for row in text.draw(panel, width, height, colour=True).split("\n")]


def _line(row: str) -> Line:
    """Text with ANSI colours as spans."""
    decoded = Text.from_ansi(row)
    spans: list[Span] = []
    done = 0
    for span in decoded.spans:
        spans += [
            (decoded.plain[done : span.start], ""),
            (decoded.plain[span.start : span.end], _style(span.style)),
        ]
        done = span.end
    return Line((*spans, (decoded.plain[done:], "")))


def _style(style: str | Style) -> Style:
    return style if isinstance(style, Style) else Style.parse(style)
