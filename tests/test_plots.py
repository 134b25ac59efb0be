"""One Series, drawn as text and as PNG; and the plot command with upstream's flags."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from core import analysis, cli
from core.analysis import Results
from core.plots import png, scatter, text, ticks


def results(name: str, x: list[float], y: list[float]) -> Results:
    labels = [f"{i:03d}" for i in range(1, len(x) + 1)]
    by_label = {label: {"mean_tpot_ms": value} for label, value in zip(labels, y, strict=True)}
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


class TestScatter:
    def test_text_names_units_n_engine_and_what_the_filter_removed(self) -> None:
        series = scatter.series(two_backends(), "mean_tpot_ms", "real", "builtin (NumPy, CPU)")
        drawn = text.draw(series, 80, 20, colour=False)
        for part in ("mean TPOT, ms", "per-step CV", "n = 24", "1 outside 1.5 IQR", "engine: builtin", "baseline"):
            assert part in drawn
        assert max(len(line) for line in drawn.splitlines()) <= 80
        assert len(drawn.splitlines()) <= 20
        assert "\x1b" not in drawn

    def test_png_is_written_whole_with_its_folder(self, tmp_path: Path) -> None:
        series = scatter.series(two_backends(), "mean_tpot_ms", "real")
        file = png.write(series, tmp_path / "graphs" / "a.png")
        width, height = png_size(file)
        assert width >= 800
        assert height >= 500

    def test_the_filter_is_tukeys_fences_on_either_axis(self) -> None:
        values = np.array([1.0, 2, 3, 4, 5, 6, 7, 8, 100])
        assert analysis.iqr_outliers(values).tolist() == [False] * 8 + [True]
        assert scatter.series(two_backends(), "mean_tpot_ms", "real").removed == 1

    def test_too_small_a_pane_says_so(self) -> None:
        assert "needs" in text.draw(scatter.series(two_backends(), "mean_tpot_ms", "real"), 10, 3, colour=False)


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
            *("plot", "--baseline-results", str(tmp_path / "baseline"), "--all2all-results", str(tmp_path / "all2all")),
            *("--baseline-imbalance", str(tmp_path / "baseline.json")),
            *("--all2all-imbalance", str(tmp_path / "all2all.json")),
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

    def test_neither_a_run_directory_nor_results_is_refused(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["plot"]) == 2
        assert "RUN_DIR" in capsys.readouterr().err
