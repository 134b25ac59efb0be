"""The figure of forced routing: every level where it was recorded, with its interval, in text, PNG
and CSV."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.dosed import LEVELS, runs

from core import cli
from core.analysis import dose_findings
from core.analysis.dose_findings import DoseFindings
from core.errors import NoDataError
from core.plots import dose, png, text


def found(repeats: int = 3) -> DoseFindings:
    """Two backends under hot-rank and spread, with natural routing; ranks at all2all only."""
    made = []
    for backend, slope in (("baseline", 0.0), ("all2all", 4.0)):
        for pattern, share in (("hot-rank", 1.0), ("spread", 0.2), ("", 0.5)):
            made += runs(
                lambda cv, rise=slope * share: 10 + rise * cv,  # type: ignore[misc]
                backend=backend,
                pattern=pattern,
                levels=LEVELS if pattern else (0.3,),
                repeats=repeats,
                noise=0.2,
                rank=(lambda cv: 1 + cv) if backend == "all2all" else None,
            )
    return dose_findings.of_runs(made)


class TestFigure:
    def test_a_curve_a_backend_and_pattern_and_natural_as_a_point(self) -> None:
        drawn = dose.series(found(), "mean_tpot_ms", engine="test")
        assert [(c.name, c.place, len(c.x)) for c in drawn.curves] == [
            ("baseline, hot-rank", 0, 5),
            ("baseline, spread", 0, 5),
            ("all2all, hot-rank", 1, 5),
            ("all2all, spread", 1, 5),
            ("baseline, natural", 0, 1),
            ("all2all, natural", 1, 1),
        ]
        assert len({c.mark for c in drawn.curves}) == 6
        assert drawn.title == "forced routing: mean TPOT against imposed skew"
        assert drawn.note == "n = 60 runs, 3 per level; bars: 95 %; natural routing: a reference"
        curve = drawn.curves[2]
        assert curve.x.tolist() == list(LEVELS)
        assert curve.low is not None
        assert (curve.low < curve.y).all()

    def test_against_rank_load_only_backends_with_ranks_are_drawn(self) -> None:
        drawn = dose.series(found(), "mean_tpot_ms", "rank")
        assert {c.name.split(",")[0] for c in drawn.curves} == {"all2all"}
        assert drawn.curves[0].x.tolist() == [1 + level for level in LEVELS]

    def test_what_no_run_has_is_refused(self) -> None:
        with pytest.raises(NoDataError, match="no forced run has both TTFT and a recorded CV"):
            dose.series(found(), "mean_ttft_ms")

    def test_without_forced_runs_it_says_how_to_measure_some(self) -> None:
        natural = dose_findings.of_runs(runs(lambda cv: 10 + cv, pattern="", levels=(0.3,)))
        with pytest.raises(NoDataError) as raised:
            dose.series(natural, "mean_tpot_ms")
        assert str(raised.value) == (
            "this run has no forced routing; to measure it: "
            "gatescope --dose 0,0.5,1 --pattern hot-rank"
        )

    def test_without_intervals_it_says_so(self) -> None:
        drawn = dose.series(found(repeats=1), "mean_tpot_ms")
        assert "too few for intervals" in drawn.note
        assert "|" not in text.draw(drawn, 80, 24, colour=False).split("└")[0].split("┌")[
            1
        ].replace("│", "")


class TestDrawn:
    def test_text_has_every_mark_its_interval_and_the_heading(self) -> None:
        drawn = text.draw(dose.series(found(), "mean_tpot_ms", engine="test"), 80, 24, colour=False)
        head, plot = drawn.split("┌")
        assert "forced routing" in head
        assert all(f"{mark} " in head for mark in "ox#^*+")
        assert all(mark in plot for mark in "#^|.")
        assert max(map(len, drawn.splitlines())) <= 80
        assert len(drawn.splitlines()) <= 24

    def test_png_and_csv(self, tmp_path: Path) -> None:
        drawn = dose.series(found(), "mean_tpot_ms")
        assert (
            png.write(drawn, tmp_path / f"{dose.name('mean_tpot_ms', 'cv')}.png").stat().st_size
            > 20_000
        )
        lines = dose.csv_text(drawn).splitlines()
        head = (
            '"forced routing: backend, pattern",recorded CV of expert load,"mean TPOT, ms",low,high'
        )
        assert lines[0] == head
        assert len(lines) == 1 + 4 * 5 + 2
        assert lines[1].startswith('"baseline, hot-rank",0.0,')
        assert lines[-1].endswith(",,")  # natural: three runs give no interval


class TestPlotCommand:
    def test_it_draws_the_doses_of_a_run_directory(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for label, tpot in (("001", 9.0), ("001~hot-rank~0", 10.0), ("001~hot-rank~1", 14.0)):
            result = {
                "mean_tpot_ms": tpot,
                "measured_imbalance": {"aggregated_cv": float(label.endswith("~1"))},
            }
            file = tmp_path / "baseline" / "results_json" / f"{label}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(result))
        results = ["--baseline-results", str(tmp_path / "baseline" / "results_json")]
        out = ["-o", str(tmp_path / "dose.png")]
        assert (
            cli.main(["plot", *results, "--figure", "dose", "--metric", "mean_tpot_ms", *out]) == 0
        )
        assert "forced routing: mean TPOT against imposed skew" in capsys.readouterr().out
        assert (tmp_path / "dose.png").is_file()
        assert (
            cli.main(["plot", *results, "--figure", "dose", "--metric", "mean_tpto_ms", *out]) == 2
        )
        assert (
            "forced routing is not drawn for 'mean_tpto_ms', only for mean_tpot_ms"
            in capsys.readouterr().err
        )
