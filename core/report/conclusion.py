"""What a batch concludes with: files, a verdict, a table, sentences and a plot."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from core.analysis.results import Results
from core.backends import builtin
from core.errors import NoDataError
from core.experiment import dose
from core.files import formatted, write_whole
from core.report import contrasts, summary
from core.rundir import registered
from core.rundir.registered import Registered
from core.terminal import printable, takes_colour, tell, terminal_columns

if TYPE_CHECKING:
    from core.analysis.findings import Findings
    from core.analysis.routing_cost import BackendCost
    from core.plots.figure import Figure
    from core.plots.gallery import Invalid
    from core.validity.problem import Validity

PLOT_COLUMNS, PLOT_ROWS = 110, 24  # at most


def conclude(path: Path, groups: Sequence[Results], engine: str, *, graphs: bool) -> Validity:
    """Write summary.csv, summary.json, findings.json and, with `graphs`, the PNGs of a run
    directory; print what they say."""
    from core.analysis import findings, routing_cost
    from core.rundir import about
    from core.validity import verdict

    asked = registered.read(path)
    validity, found = (
        verdict.of_run_directory(path, groups),
        findings.find(groups, engine, asked.first),
    )
    names = [group.name for group in groups]
    costs = routing_cost.of_run_directory(path, about.read(path), names)
    written = _write(path, groups, validity, found, costs)
    invalid = validity.invalid(names)
    _print_tables(groups, found)
    _draw(groups, engine, found, invalid)
    drawn = _draw_files(path, groups, engine, found, invalid) if graphs else []
    _print_files(path, groups, drawn, written)
    _print_findings(groups, validity, found, asked)
    tell(f"to read it all: gatescope report {shlex.quote(str(path))}")
    return validity


def _write(
    path: Path,
    groups: Sequence[Results],
    validity: Validity,
    found: Findings,
    costs: Sequence[BackendCost],
) -> list[Path]:
    rows = summary.rows(groups)
    judged = {"validity": validity, **msgspec.structs.asdict(found), "routing_cost": costs}
    files = {
        "summary.csv": summary.csv_text(rows).encode(),
        "summary.json": formatted(rows),
        "findings.json": formatted(judged),
    }
    if _any_forced(groups):
        forced = [Results(group.name, group.forced, {}, {}) for group in groups]
        files["summary-forced.csv"] = summary.csv_text(summary.rows(forced)).encode()
    if _any_replayed(groups):
        replayed = [Results(group.name, group.replayed, {}, {}) for group in groups]
        files["summary-replayed.csv"] = summary.csv_text(summary.rows(replayed)).encode()
    for name, data in files.items():
        write_whole(path / name, data)
    return [path / name for name in files]


def _print_tables(groups: Sequence[Results], found: Findings) -> None:
    """Of runs whose routing was imposed."""
    if _any_forced(groups):
        from core.report import forced

        tell(f"\n{dose.NAME}: means of each dose\n{forced.table(found.forced)}")
    if _any_replayed(groups):
        from core.report import replayed

        tell(f"\n{dose.REPLAYED}: means of each recorded run\n{replayed.table(groups)}")


def _print_files(
    path: Path, groups: Sequence[Results], graphs: Sequence[Path], written: Sequence[Path]
) -> None:
    """One line for all of them."""
    names = [*map(_where, groups), *(file.name for file in written)]
    if graphs:
        names.append(f"graphs ({len(graphs)} PNGs)")
    tell(f"wrote in {path}: {', '.join(names)}")


def _print_findings(
    groups: Sequence[Results], validity: Validity, found: Findings, asked: Registered
) -> None:
    """Last, where they stay on the screen: problems first, then what fits on 80 × 24."""
    caveat = ": its times say nothing about GPUs" if builtin.is_label(found.engine) else ""
    told = contrasts.lines(found.comparisons, found.associations, asked)
    tell("")
    for line in (
        *validity.in_words(),
        f"engine: {found.engine}{caveat}",
        *summary.table(groups).splitlines(),
        *told,
        *found.forced.headlines,
    ):
        tell(printable(line))


def _draw(groups: Sequence[Results], engine: str, found: Findings, invalid: Invalid) -> None:
    """TPOT against skew, as text; and against forced skew, if any routing was forced."""
    from core.plots import dose as dose_figure
    from core.plots import gallery, scatter

    with contextlib.suppress(NoDataError):  # no run has both
        axis = scatter.best_axis(groups)
        drawn = scatter.series(groups, "mean_tpot_ms", axis, engine, found.associations)
        _show(gallery.of_all(drawn, groups, invalid))
    if _any_forced(groups):
        with contextlib.suppress(NoDataError):  # no dose has a TPOT
            forced = dose_figure.series(found.forced, "mean_tpot_ms", engine=found.engine)
            _show(gallery.of_all(forced, groups, invalid))
    tell("")


def _show(drawn: Figure) -> None:
    from core.plots import text

    columns = min(terminal_columns(), PLOT_COLUMNS)
    tell("\n" + text.draw(drawn, columns, PLOT_ROWS, colour=takes_colour(sys.stderr)))


def _draw_files(
    path: Path, groups: Sequence[Results], engine: str, found: Findings, invalid: Invalid
) -> list[Path]:
    from core.analysis import step_sample
    from core.plots import gallery
    from core.report import forced

    samples, unread = step_sample.of_backends(path, [group.name for group in groups])
    for problem in unread:
        tell(printable(f"! {problem}"))
    folder = path / "graphs"
    rows = found.associations
    drawn = list(gallery.draw_all(folder, groups, samples, engine, rows, invalid=invalid))
    if _any_forced(groups):
        drawn += forced.pictures(found.forced, folder, found.engine, invalid=_words(invalid))
    return [picture.file for picture in drawn]


def _words(invalid: Invalid) -> str:
    return "; ".join(invalid.values())


def _any_forced(groups: Sequence[Results]) -> bool:
    return any(group.forced for group in groups)


def _any_replayed(groups: Sequence[Results]) -> bool:
    return any(group.replayed for group in groups)


def _where(group: Results) -> str:
    runs = len(group.by_label) + len(group.imposed)
    forced = f", {len(group.forced)} of them {dose.NAME}" if group.forced else ""
    replayed = f", {len(group.replayed)} of them {dose.REPLAYED}" if group.replayed else ""
    return f"{group.name}/results_json ({runs} runs{forced}{replayed})"
