"""Figures drawn as text and as PNG; and the plot command, with upstream's flags and over a run
directory."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.about import about
from support.synthetic import routed, write_log

from core import cli, files
from core.analysis import results as analysis
from core.analysis.results import Results
from core.experiment import config
from core.plots import png, scatter, text, ticks
from core.plots.figure import Bars, Curve, HeatMap, Series
from core.plots.labels import FIGURES
from core.rundir.result import Result

GOLDEN = Path(__file__).parents[1] / "golden"
UPDATE = os.environ.get("GATESCOPE_GOLDEN") == "update"


def results(name: str, x: list[float], y: list[float]) -> Results:
    labels = [f"{i:03d}" for i in range(1, len(x) + 1)]
    by_label = {label: Result(mean_tpot_ms=value) for label, value in zip(labels, y, strict=True)}
    return Results(name, by_label, dict(zip(labels, x, strict=True)), {})


def two_backends() -> list[Results]:
    x = np.linspace(0.3, 0.9, 12)
    outlier = [*x.tolist(), 0.6], [*(10 + 5 * x).tolist(), 500.0]
    return [results("baseline", *outlier), results("all2all", x.tolist(), (12 + 9 * x).tolist())]


def png_size(file: Path) -> tuple[int, int]:
    data = file.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def png_text(file: Path) -> dict[str, str]:
    """The text chunks of a PNG."""
    data, place, found = file.read_bytes(), 8, {}
    while place < len(data):
        size, kind = struct.unpack_from(">I4s", data, place)
        body = data[place + 8 : place + 8 + size]
        if kind in (b"tEXt", b"iTXt"):
            name, _, value = body.partition(b"\0")
            found[name.decode()] = value.strip(b"\0").decode(
                "utf-8" if kind == b"iTXt" else "latin-1"
            )
        place += size + 12
    return found


class TestScatter:
    def test_text_names_units_n_engine_and_what_is_not_drawn(self) -> None:
        series = scatter.series(two_backends(), "mean_tpot_ms", "per-step", "builtin (NumPy, CPU)")
        drawn = text.draw(series, 80, 20, colour=False)
        for part in (
            "mean TPOT, ms",
            "per-step CV",
            "n = 24",
            "scale: baseline/013",
            "engine: builtin",
            "all2all",
        ):
            assert part in drawn
        assert max(len(line) for line in drawn.splitlines()) <= 80
        assert len(drawn.splitlines()) <= 20
        assert "\x1b" not in drawn

    def test_png_is_written_whole_with_its_folder(self, tmp_path: Path) -> None:
        series = scatter.series(two_backends(), "mean_tpot_ms", "per-step")
        file = png.write(series, tmp_path / "graphs" / "a.png")
        width, height = png_size(file)
        assert width >= 800
        assert height >= 500

    def test_the_filter_is_tukeys_fences_on_either_axis(self) -> None:
        values = np.array([1.0, 2, 3, 4, 5, 6, 7, 8, 100])
        assert analysis.iqr_outliers(values).tolist() == [False] * 8 + [True]
        assert [
            g.outlier.sum()
            for g in scatter.series(two_backends(), "mean_tpot_ms", "per-step").groups
        ] == [1, 0]

    def test_an_outlier_is_drawn_hollow_unless_it_squeezes_the_others(self, tmp_path: Path) -> None:
        x = np.linspace(0.3, 0.9, 12)  # the others: 11.5 to 20.1 ms
        both = [results("all2all", x.tolist(), (12 + 9 * x).tolist())]
        for odd, is_drawn in ((60.2, True), (60.4, False), (0.1, True)):
            group = results("baseline", [*x.tolist(), 0.6], [*(10 + 5 * x).tolist(), odd])
            series = scatter.series([group, *both], "mean_tpot_ms", "per-step")
            assert series.groups[0].hollow.tolist() == [False] * 12 + [is_drawn]
            assert series.note == (
                "n = 25" if is_drawn else "n = 24; ^ off the scale: baseline/013 at 60.4"
            )
            assert (
                "O baseline, beyond 1.5 IQR (n = 1)" in text.draw(series, 80, 20, colour=False)
            ) == is_drawn
            assert (odd in series.shown[1]) == is_drawn
            png.write(series, tmp_path / "hollow.png")

    def test_the_most_skewed_are_drawn_whatever_they_cost(self) -> None:
        """Twelve datasets within 0.1 ms, and a skewed one that takes twice as long."""
        x, y = [*np.linspace(0.3, 0.4, 12), 1.7], [*np.linspace(13.2, 13.3, 12), 26.0]
        series = scatter.series([results("baseline", x, y)], "mean_tpot_ms", "per-step")
        assert series.groups[0].hollow.tolist() == [False] * 12 + [True]

    def test_too_small_a_pane_says_so(self) -> None:
        assert "needs" in text.draw(
            scatter.series(two_backends(), "mean_tpot_ms", "per-step"), 10, 3, colour=False
        )


class TestTicks:
    def test_they_are_round_and_within_the_range(self) -> None:
        places, labels = ticks.even(0.31, 0.44, 8)
        assert labels == ["0.32", "0.34", "0.36", "0.38", "0.40", "0.42", "0.44"]
        assert places == pytest.approx([float(label) for label in labels])
        assert ticks.even(0, 2600, 3) == ([0, 1000, 2000], ["0", "1,000", "2,000"])
        assert ticks.even(-0.5, 0.5, 5)[1] == ["-0.4", "-0.2", "0.0", "0.2", "0.4"]

    def test_one_value_is_its_own_tick(self) -> None:
        assert ticks.even(3.25, 3.25, 5) == ([3.25], ["3.25"])

    def test_decades_hold_1_2_and_5(self) -> None:
        assert ticks.decades(4, 130) == ([5, 10, 20, 50, 100], ["5", "10", "20", "50", "100"])
        assert len(ticks.decades(11, 19)[0]) >= 3


class TestPlotCommand:
    @pytest.fixture
    def upstream(self, tmp_path: Path) -> list[str]:
        for backend in ("baseline", "all2all"):
            folder = tmp_path / backend
            folder.mkdir()
            mapping = {}
            for i in range(1, 9):
                result = {"mean_ttft_ms": 100.0 + i, "imbalance_score": i / 10}
                (folder / f"{i:03d}.json").write_text(json.dumps(result))
                mapping[f"gates_logs_{i:02d}"] = 0.3 + i / 100
            (tmp_path / f"{backend}.json").write_text(json.dumps(mapping))
        return [
            "plot",
            f"--baseline-results={tmp_path / 'baseline'}",
            f"--all2all-results={tmp_path / 'all2all'}",
            f"--baseline-imbalance={tmp_path / 'baseline.json'}",
            f"--all2all-imbalance={tmp_path / 'all2all.json'}",
        ]

    def test_upstreams_flags_draw_and_write(
        self, upstream: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "plot.png"
        assert cli.main([*upstream, "--metric", "mean_ttft_ms", "-o", str(out)]) == 0
        assert "n = 16" in capsys.readouterr().out
        assert png_size(out)[0] >= 800

    def test_an_unknown_metric_lists_the_known_ones(
        self, upstream: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main([*upstream, "--metric", "mean_tttf_ms"]) == 2
        assert "mean_ttft_ms" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("axis", "named"),
        [("excess", "an excess CV²"), ("real", "a per-step CV"), ("per-step", "a per-step CV")],
    )
    def test_an_axis_is_named_as_on_the_plot(
        self, axis: str, named: str, upstream: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """`real` is what per-step was called before."""
        assert cli.main([*upstream, "--metric", "no_metric", "--against", axis]) == 2
        assert f"no result has both 'no_metric' as a number and {named};" in capsys.readouterr().err

    def test_neither_a_run_directory_nor_results_is_refused(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["plot"]) == 2
        assert "RUN_DIR" in capsys.readouterr().err


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Two backends, three runs of 40 decode steps and a prompt step each; all2all has two ranks."""
    rng = np.random.default_rng(3)
    backends = '[[backends]]\nname = "baseline"\n[[backends]]\nname = "all2all"\nport = 8001'
    (tmp_path / "experiments.toml").write_text(
        f'[experiment]\ndatasets = "experiments.toml"\n{backends}'
    )
    asked = about(
        config=config.load(tmp_path / "experiments.toml"),
        engine="builtin (NumPy, CPU)",
        backends=["baseline", "all2all"],
    )
    (tmp_path / "run.json").write_bytes(files.formatted(asked))
    (tmp_path / "events.jsonl").touch()
    for backend, ranks, slower in (("baseline", 1, 1.0), ("all2all", 2, 1.5)):
        (tmp_path / backend / "gate_logs").mkdir(parents=True)
        (tmp_path / backend / "results_json").mkdir()
        tokens = [64, *[16] * 40] * 3
        labels = [label for label in ("001", "002", "003") for _ in range(41)]
        write_log(
            tmp_path / backend / "gate_logs" / "dp0_pp0.gatelog",
            routed(rng, tokens, 2, np.array([4.0, 2, 1, 1])),
            labels=labels,
            prefill=[64, *[0] * 40] * 3,
            durations_ns=[int(t) for t in slower * rng.uniform(5e6, 7e6, len(tokens))],
            ranks=ranks,
            placement=(0, 0, 1, 1) if ranks > 1 else (),
        )
        for i, share in enumerate((0.6, 0.7, 0.8), 1):
            ttfts, tpots = (slower * rng.uniform(low, 2 * low, 12) for low in (0.05, 0.006))
            result = {
                "ttfts": ttfts.tolist(),
                "itls": [[float(t)] * 4 for t in tpots],
                "output_lens": [5] * 12,
                "mean_ttft_ms": float(ttfts.mean() * 1e3),
                "mean_tpot_ms": float(tpots.mean() * 1e3),
                "measured_imbalance": {
                    "excess_cv": share,
                    "excess_squared": share**2,
                    "intervals": {"excess_squared": [share**2 - 0.1, share**2 + 0.1]},
                    "rank_imbalance": 2 * share,
                    "rank_loads": [share, 1 - share] if ranks > 1 else [],
                    "prefill": {
                        "steps": 1,
                        "tokens": 64,
                        "per_step_cv": share,
                        "noise_floor": None,
                        "excess_cv": share,
                        "excess_cv_reason": None,
                        "excess_cv_interval": None,
                        "excess_squared": share**2,
                        "layer_cv": share,
                        "rank_imbalance": None,
                    },
                },
                "predicted": {
                    "model": "m",
                    "mode": "calibrated",
                    "prompts": 12,
                    "tokens": 64,
                    "layer_numbers": [0],
                    "loads": [[0.5, 0.25, 0.125, 0.125]],
                    "prefill": {
                        "tokens": 64,
                        "active_experts": 4,
                        "excess_cv": None,
                        "excess_squared": share**2 - slower / 20,
                        "run_interval": [share**2 - 0.1, share**2 + 0.1],
                    },
                },
            }
            (tmp_path / backend / "results_json" / f"{i:03d}.json").write_text(json.dumps(result))
    return tmp_path


class TestFiguresOfARun:
    @pytest.mark.parametrize("figure", [name for name in FIGURES if name != "prediction"])
    def test_text_fits_a_small_terminal_and_looks_as_it_did(
        self,
        figure: str,
        run_dir: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("COLUMNS", "80")
        assert (
            cli.main(["plot", str(run_dir), "--figure", figure, "--png", str(run_dir / "a.png")])
            == 0
        )
        drawn = capsys.readouterr().out
        assert max(map(len, drawn.splitlines())) <= 80
        assert max(len(panel.splitlines()) for panel in drawn.split("\n\n")) <= 22
        golden = GOLDEN / f"plot-{figure}.txt"
        if UPDATE:
            golden.write_text(drawn)
        assert drawn == golden.read_text(), "if intended: GATESCOPE_GOLDEN=update"

    @pytest.mark.parametrize(
        ("figure", "size"),
        [
            ("scatter", (960, 648)),
            ("heatmap", (1536, 648)),
            ("step-time", (1536, 1296)),
            ("ecdf", (1536, 648)),
            ("rank-load", (960, 648)),
            ("cv-over-time", (1536, 648)),
        ],
    )
    def test_png_has_its_size_and_says_what_it_is(
        self, figure: str, size: tuple[int, int], run_dir: Path
    ) -> None:
        assert cli.main(["plot", str(run_dir), "--figure", figure]) == 0
        file = (
            run_dir
            / "graphs"
            / ("mean_ttft_ms-excess.png" if figure == "scatter" else f"{figure}.png")
        )
        assert png_size(file) == size
        assert png_text(file)["Software"] == "gatescope"
        assert "builtin (NumPy, CPU)" in png_text(file)["Title"]
        assert "n = " in png_text(file)["Description"]

    def test_one_backend_and_one_run(
        self, run_dir: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["plot", str(run_dir), "--figure", "heatmap", "--backend", "all2all"]) == 0
        drawn = capsys.readouterr().out
        assert "all2all, 3 runs" in drawn
        assert "baseline" not in drawn
        assert (
            cli.main(["plot", str(run_dir), "--figure", "cv-over-time", "--run", "all2all/002"])
            == 0
        )
        assert "CV of expert load over time: all2all/002\n" in capsys.readouterr().out
        assert (run_dir / "graphs" / "cv-over-time-all2all-002.png").is_file()

    def test_what_is_not_there_is_named(
        self, run_dir: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["plot", str(run_dir), "--figure", "heatmap", "--run", "all2all/009"]) == 2
        error = capsys.readouterr().err
        there = "there are baseline (3 runs), all2all (3 runs)"
        assert error == f"gatescope: no results of all2all/009; {there}\n"
        assert (
            cli.main(["plot", str(run_dir), "--figure", "rank-load", "--backend", "baseline"]) == 2
        )
        assert "baseline did not run with expert parallelism" in capsys.readouterr().err
        (run_dir / "baseline" / "gate_logs" / "dp0_pp0.gatelog").write_bytes(b"no gate log")
        assert cli.main(["plot", str(run_dir), "--figure", "heatmap"]) == 0
        answer = capsys.readouterr()
        assert "baseline: its gate logs are not readable" in answer.err
        assert "all2all, 3 runs" in answer.out


class TestWideModels:
    def test_a_cell_stands_for_the_hottest_of_those_that_share_it(self) -> None:
        values = np.zeros((61, 256))
        values[7, 130] = 9.0
        drawn = text.draw(
            HeatMap("t", "expert", "layer", values, "load"), 80, 22, colour=False
        ).splitlines()
        assert len(drawn) <= 22
        assert max(map(len, drawn)) <= 80
        (hot,) = (line for line in drawn if "█" in line and "load" not in line)
        assert hot.startswith("  4–7 ")  # four layers in a row
        assert hot.index("█") == 6 + 130 // 4
        assert "hottest of 4 in a cell" in drawn[1]

    def test_png_of_many_layers_grows(self, tmp_path: Path) -> None:
        figure = HeatMap("t", "expert", "layer", np.ones((61, 256)), "load")
        assert png_size(png.write(figure, tmp_path / "a.png")) == (960, 1363)


def test_the_legend_stands_outside_and_wraps() -> None:
    curves = tuple(
        Curve(
            f"a curve with a long name, number {i}", np.array([0.0, 1]), np.array([i, i + 1.0]), i
        )
        for i in range(4)
    )
    drawn = text.draw(Series("title", "x", "y", curves=curves), 60, 20, colour=False).splitlines()
    plot = next(i for i, line in enumerate(drawn) if "┌" in line)
    assert drawn[2:plot] == [
        f"{mark} a curve with a long name, number {i}" for i, mark in enumerate("ox#d")
    ]
    assert not any("curve" in line for line in drawn[plot:])
    assert "\x1b[38;5;208mx a curve" in text.draw(
        Series("title", "x", "y", curves=curves), 60, 20, colour=True
    )


def test_bars_carry_their_interval_and_their_levels() -> None:
    bars = Bars(
        "t",
        "rank",
        "load",
        ("r0", "r1"),
        np.array([1.0, 0.5]),
        0,
        np.array([0.9, np.nan]),
        np.array([1.1, np.nan]),
    )
    drawn = text.draw(replace(bars, lines=(("even", 0.75),)), 40, 12, colour=False).splitlines()
    assert drawn[1].endswith("1.00 [0.90, 1.10]")
    assert drawn[2].endswith("0.50")
    assert drawn[3] == "│ 0.75 even"
    assert drawn[1].index("│") == drawn[2].index("│")
