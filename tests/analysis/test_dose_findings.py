"""From results to words, JSON and the report's section: forced runs by their labels, natural ones
beside them."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from support import dosed, undrawn
from support.place import Place

from core.analysis import dose_findings, findings
from core.analysis.results import Results
from core.report import document
from core.report import forced as forced_report
from core.routing.imbalance import Imbalance
from core.rundir.result import Result

LEVELS = (0.0, 0.5, 1.0, 1.5)


def result(cv: float, tpot: float, rank: float | None) -> Result:
    return Result(
        mean_ttft_ms=90 + tpot,
        mean_tpot_ms=tpot,
        output_throughput=1000 / tpot,
        decode_step_ms=tpot - 1,
        measured_imbalance=Imbalance(aggregated_cv=cv, excess_cv=cv + 0.01, rank_imbalance=rank),
    )


def backend(name: str, start: float, slope: float, *, ranks: bool, repeats: int = 3) -> Results:
    """hot-rank and spread; `slope` is hot-rank's, spread has a fifth of it."""
    rng = np.random.default_rng([*name.encode()])
    forced = {
        f"001{'' if r == 1 else f'-r{r}'}~{pattern}~{level:g}": result(
            level + 0.02,
            start + share * slope * level + float(rng.normal(0, 0.05)),
            (1 + level * (pattern == "hot-rank")) if ranks else None,
        )
        for pattern, share in (("hot-rank", 1.0), ("spread", 0.2))
        for r in range(1, repeats + 1)
        for level in LEVELS
    }
    natural = {
        "001": result(0.2, start + 1, 1.1 if ranks else None),
        "002": result(0.9, 99.0, None),
    }
    return Results(name, natural, {}, {}, forced)


@pytest.fixture
def groups() -> list[Results]:
    return [backend("baseline", 12, 0, ranks=False), backend("all2all", 10, 4, ranks=True)]


class TestFindings:
    def test_curves_crossings_and_waits_of_every_metric(self, groups: list[Results]) -> None:
        found = dose_findings.find(groups)
        assert {(c.backend, c.pattern, c.metric) for c in found.curves} == {
            (b, p, m)
            for b in ("baseline", "all2all")
            for p in ("hot-rank", "spread")
            for m in ("mean_ttft_ms", "mean_tpot_ms", "output_throughput", "decode_step_ms")
        }
        assert len(found.crossings) == 2 * 4
        assert len(found.rank_waits) == 2 * 4

    def test_sentences_are_honest_about_each(self, groups: list[Results]) -> None:
        told = "\n".join(dose_findings.find(groups).headlines)
        assert "forced routing, hot-rank: all2all TPOT rises with imposed skew: +0.39" in told
        assert (
            "forced routing, hot-rank: baseline TPOT: no effect of imposed skew is detected" in told
        )
        assert (
            "forced routing, hot-rank: all2all TPOT beats baseline's up to a recorded CV of 0.5"
            in told
        )
        assert (
            "forced routing, spread: all2all TPOT beats baseline's at 4 of 4 levels, and loses"
            in told
        )
        assert (
            "forced routing, hot-rank against spread: all2all TPOT is higher at the same doses: +3"
            in told
        )
        assert "a control" in told
        assert all(line.startswith("forced routing, ") for line in told.splitlines())

    def test_what_chance_alone_shows_among_many_is_not_called_an_effect(self) -> None:
        told = []
        for seed in range(40):
            made = [
                run
                for backend in ("baseline", "all2all")
                for pattern in ("hot-rank", "spread")
                for run in dosed.runs(
                    lambda _: 10.0, backend=backend, pattern=pattern, noise=1.0, seed=seed
                )
            ]
            found = dose_findings.of_runs(made)
            told.append(
                any(c.is_seen for c in found.curves) or " is higher" in "".join(found.sentences)
            )
        assert sum(told) <= 5  # 5 % of 40, and chance

    def test_natural_runs_are_a_reference_of_the_same_datasets_and_in_no_fit(
        self, groups: list[Results]
    ) -> None:
        found = dose_findings.find(groups)
        (at,) = (
            n.at for n in found.natural if (n.backend, n.metric) == ("all2all", "mean_tpot_ms")
        )
        assert (at.cv, at.value.value, at.value.interval, at.n) == (0.2, 11.0, None, 1)
        without = [Results(g.name, {}, {}, {}, g.forced) for g in groups]
        assert dose_findings.find(without).curves == found.curves

    def test_natural_findings_do_not_know_the_forced_runs(self, groups: list[Results]) -> None:
        both = findings.find(groups, "test")
        alone = findings.find([Results(g.name, g.by_label, {}, {}) for g in groups], "test")
        assert both.sentences == alone.sentences
        assert both.associations == alone.associations
        assert alone.forced == dose_findings.DoseFindings()

    def test_rotating_heat_is_told_by_the_steps_excess(self) -> None:
        label = "001~rotating~1"
        rotated = Results(
            "all2all",
            {},
            {},
            {},
            {label: result(0.02, 10.0, 1.5), "001~rotating~0": result(0.0, 9, 1)},
        )
        by_level = {run.level: run.cv for run in dose_findings.runs_of(rotated)}
        assert by_level == {1.0: pytest.approx(0.03), 0.0: 0.0}

    def test_what_is_left_out_has_its_reason(self, groups: list[Results]) -> None:
        forced = dict(groups[1].forced)
        forced["001~hot-rank~0.5"] = replace(forced["001~hot-rank~0.5"], measured_imbalance=None)
        forced["002~spread~0.5"] = result(0.5, 10.0, 1.0)
        left_out = dose_findings.find([Results("all2all", {}, {}, {}, forced)]).left_out
        assert left_out == {
            "all2all/001~hot-rank~0.5": "no CV of its load was recorded",
            "all2all/002~spread~0.5": "its dataset lacks a level of spread",
        }

    def test_they_are_kept_as_json(self, groups: list[Results]) -> None:
        found = dose_findings.find(groups)
        assert (
            msgspec.json.decode(msgspec.json.encode(found), type=dose_findings.DoseFindings)
            == found
        )


class TestReportSection:
    def test_it_says_forced_routing_and_shows_every_dose(self, groups: list[Results]) -> None:
        text = document.markdown(forced_report.parts(dose_findings.find(groups), []))
        assert text.startswith("## What imposed skew costs (forced routing)")
        assert "The text that such runs generate means nothing." in text
        rows = [
            line
            for line in text.splitlines()
            if line.startswith(("| hot-rank | all2all | ", "| natural |"))
        ]
        assert sum("| natural |" in row for row in rows) == 2
        assert any(
            row.startswith("| hot-rank | all2all | 1.5 | 1.520 | 2.50 | 3 | 16.01 [")
            for row in rows
        )
        assert "| hot-rank | TPOT (less) | all2all | baseline | loses above | 0.5" in text

    def test_nothing_forced_says_nothing(self, groups: list[Results], tmp_path: Path) -> None:
        natural = dose_findings.find([Results("a", groups[0].by_label, {}, {})])
        assert forced_report.parts(natural, []) == []
        assert not list(forced_report.pictures(natural, tmp_path, "test"))

    def test_one_repeat_is_shown_without_intervals(self) -> None:
        found = dose_findings.find([backend("all2all", 10, 4, ranks=True, repeats=1)])
        text = document.markdown(forced_report.parts(found, []))
        assert (
            "too few runs to say: 1 dataset at 4 levels need 3 repeats of each, or 8 datasets"
            in text
        )
        assert "[" not in next(
            line for line in text.splitlines() if line.startswith("| hot-rank | all2all | 1.5")
        )

    def test_the_table_of_a_batch_fits_its_columns(self, groups: list[Results]) -> None:
        lines = forced_report.table(dose_findings.find(groups)).splitlines()
        assert lines[0].split()[:4] == ["pattern", "backend", "level", "CV"]
        assert len(lines) == 1 + 2 + 2 * 2 * len(LEVELS)
        assert max(map(len, lines)) <= 120


class TestWholeWay:
    def test_a_dosed_batch_and_its_report(self, tmp_path: Path) -> None:
        place = Place(tmp_path, repeats=3)
        done = place.gatescope(
            *(
                "--batch",
                "--only",
                "001",
                "--out",
                "made",
                "--dose",
                "0,0.5,1",
                "--pattern",
                "hot-rank",
            )
        )
        assert done.returncode == 0, done.stderr
        assert "forced routing: means of each dose" in done.stderr
        assert "forced routing, hot-rank: all2all TPOT" in done.stderr
        kept = json.loads((place.made / "findings.json").read_bytes())["forced"]
        for curve in kept["curves"]:
            assert [level["level"] for level in curve["levels"]] == [0, 0.5, 1]
            assert [level["n"] for level in curve["levels"]] == [3, 3, 3]
            assert curve["levels"][2]["cv"] == pytest.approx(1, abs=0.2)
            assert curve["per_cv"]["interval"] is not None
        steps = {
            c["backend"]: c["levels"] for c in kept["curves"] if c["metric"] == "decode_step_ms"
        }
        assert all(level["value"]["value"] > 0 for levels in steps.values() for level in levels)
        assert steps["all2all"][2]["rank"] > steps["all2all"][0]["rank"]
        assert steps["baseline"][2]["rank"] is None
        assert len((place.made / "summary-forced.csv").read_text().splitlines()) == 1 + 2 * 3 * 3
        text = undrawn.report(place.made)
        assert "## What imposed skew costs (forced routing)" in text
        assert (
            "![forced routing: median decode step against imposed skew]"
            "(graphs/decode_step_ms-forced-cv.png)" in text
        )
