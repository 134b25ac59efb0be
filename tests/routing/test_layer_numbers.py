"""Layers are called by the model's own numbers: a model whose first layers are dense counts those
too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.about import about

from core import cli, files
from core.analysis import step_sample
from core.plots import gallery, heat_text, routing
from core.recorder.gatescope_recorder.gatelog import GateLogWriter, Header, Step
from core.routing import folder as gate_folder
from core.routing import live, measured_folder
from core.routing.gatelog import numbers_in

DENSE_FIRST = ("model.layers.3.mlp.experts", "model.layers.4.mlp.experts")


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (DENSE_FIRST, (3, 4)),
        (("language_model.model.layers.1.feed_forward.experts", "x.layers.3.experts"), (1, 3)),
        (("transformer.blocks.0.ffn.experts.mlp", "transformer.blocks.1.ffn.experts.mlp"), (0, 1)),
        (("layers.3.text_moe.experts", "layers.3.vision_moe.experts"), ()),
        (("a", "b"), ()),
        ((), ()),
    ],
)
def test_numbers_are_read_from_the_names(names: tuple[str, ...], numbers: tuple[int, ...]) -> None:
    assert numbers_in(names, 2) == numbers


def write(folder: Path, names: tuple[str, ...], pp: int = 0, pp_size: int = 1) -> Path:
    """One step of 4 tokens: even in the first layer; in the second all go to expert 1."""
    header = Header("test", "m", 2, 2, 1, pp=pp, pp_size=pp_size, layer_names=names)
    writer = GateLogWriter(folder / f"dp0_pp{pp}.gatelog", header)
    for index in range(3):
        counts = np.array([[2, 2], [0, 4]], dtype=np.uint16)
        writer.append(Step(index, index * 100, 10, 4, 0, 4, 4, {"001": 4}, counts))
    writer.close()
    return folder


def test_every_reader_calls_them_so(tmp_path: Path) -> None:
    logs = write(tmp_path / "gate_logs", DENSE_FIRST)
    log = gate_folder.read(logs)
    assert log.numbers == (3, 4)
    now = live.measure(log, "001")
    assert now is not None
    assert (now.layer, now.expert, now.share) == (4, 1, 1.0)
    heat = routing.heat_map(step_sample.read([logs]), "baseline")
    assert heat.row_numbers == (3, 4)
    assert [row[:1] for row in heat_text.rows(heat, 80, 22, colour=False)[1:3]] == ["3", "4"]
    assert "expert 1 of layer 4 is hottest" in gallery.caption("heatmap", [heat])


def test_the_command_writes_them_beside_the_layers_cvs(tmp_path: Path) -> None:
    logs = write(tmp_path / "gate_logs", DENSE_FIRST)
    done = subprocess.run(
        [sys.executable, "-m", "core.cli", "imbalance", str(logs), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    (measured,) = json.loads(done.stdout).values()
    assert measured["layer_numbers"] == [3, 4]
    assert measured["layer_cvs"] == pytest.approx([0.0, 1.0])


def test_upstreams_files_are_named_and_read_so(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(files.formatted(about(engine="test")))
    results = tmp_path / "baseline" / "results_json"
    results.mkdir(parents=True)
    (results / "001.json").write_text("{}")
    write(tmp_path / "baseline" / "gate_logs", DENSE_FIRST)
    assert cli.main(["export", str(tmp_path), "--layout", "upstream"]) == 0
    exported = tmp_path / "export" / "baseline" / "gate_logs" / "gates_logs_01"
    assert sorted(p.name for p in exported.iterdir()) == ["gate_logs_3.json", "gate_logs_4.json"]
    (measured,) = measured_folder.measure_folder(exported)[0].values()
    assert measured.layer_numbers == [3, 4]


def test_stages_are_joined_by_their_own_numbers(tmp_path: Path) -> None:
    write(tmp_path, DENSE_FIRST, pp=0, pp_size=2)
    write(tmp_path, ("model.layers.5.mlp.experts", "model.layers.6.mlp.experts"), 1, 2)
    assert gate_folder.read(tmp_path).numbers == (3, 4, 5, 6)


def test_a_log_without_names_counts_from_0(tmp_path: Path) -> None:
    log = gate_folder.read(write(tmp_path, ()))
    assert (log.layer_numbers, log.numbers) == ((), (0, 1))
