"""A run directory in other layouts: upstream's folders and JSON, or tidy Parquet tables. Logs are
streamed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from core import files
from core.analysis import results
from core.errors import FileError, GateLogError, UsageError
from core.experiment import dose
from core.plots import latency
from core.recorder.gatescope_recorder.gatelog import COLUMNS
from core.report import summary
from core.routing import folder as gate_folder
from core.routing import imbalance, steps, work
from core.routing.folder import GateFolder
from core.routing.gatelog import GateLog
from core.rundir import result
from core.rundir.result import Result
from core.stats.arrays import Floats, Ints

NO_PYARROW = (
    "the Parquet layout needs pyarrow, which is not installed; add it with: pip install pyarrow"
)
ROW_GROUP_BYTES = 1 << 25
WORK = ("tokens", "active", "tiles", "padded", "first_waves", "second_waves")
MEASURES = ("cv", "noise_floor", "expert_max_mean", "rank_max_mean")  # of a step: means over layers


def upstream(path: Path, out: Path) -> list[Path]:
    """`<backend>/results_json/001.json`, `<backend>/gate_logs/gates_logs_01/gate_logs_<layer>.json`
    and the mappings. Percentiles are plain there, whatever n.

    FileError where `path` is no run directory, a gate log cannot be read, or `out` cannot be
    written.
    """
    groups, _ = results.of_run_directory(path)
    made = []
    try:
        for group in groups:
            folder = out / group.name
            shutil.copytree(
                path / group.name / "results_json", folder / "results_json", dirs_exist_ok=True
            )
            for file in (folder / "results_json").glob("*.json"):
                _write_plain_percentiles(file)
            for mapping in path.glob(f"{group.name}_real_imbalance*.json"):
                shutil.copy(mapping, out / mapping.name)
            for logs in gate_folder.starts(path / group.name):
                _write_logs(logs, folder / "gate_logs")
            made.append(folder)
    except (GateLogError, OSError) as error:
        raise FileError(f"export of {path}: {error}") from None
    return made


def parquet(path: Path, out: Path) -> list[Path]:
    """`runs.parquet`, a row a run; `steps.parquet`, a row an engine step of a run, with its
    measures; `loads.parquet`, a row a step and layer, with the tokens of each expert. FileError as
    `upstream`.
    """
    try:
        from pyarrow import Table
        from pyarrow import parquet as tables
    except ImportError:
        raise UsageError(NO_PYARROW) from None
    groups, _ = results.of_run_directory(path)
    made = [out / f"{name}.parquet" for name in ("runs", "steps", "loads")]
    try:
        out.mkdir(parents=True, exist_ok=True)
        tables.write_table(Table.from_pylist(summary.rows(groups)), made[0])
        with _TableFile(made[1]) as by_step, _TableFile(made[2]) as by_layer:
            for group in groups:
                for label, own in _of_runs(gate_folder.starts(path / group.name)):
                    by_step.add(_step_rows(group.name, label, own))
                    by_layer.add(_layer_rows(group.name, label, own))
    except (GateLogError, OSError) as error:
        raise FileError(f"export of {path}: {error}") from None
    return made


def _of_runs(folders: Sequence[Path]) -> Iterator[tuple[str, GateLog]]:
    """Label and steps of every run, part by part; a run that a later start of the server logged
    again is that one's."""
    newest: dict[str, Path] = {}
    if len(folders) > 1:
        newest = {label: folder for folder in folders for label, _ in _own_steps(folder)}
    for folder in folders:
        yield from (
            (label, own) for label, own in _own_steps(folder) if newest.get(label, folder) == folder
        )


def _own_steps(folder: Path) -> Iterator[tuple[str, GateLog]]:
    for part in GateFolder(folder).blocks():
        for label in part.segments:
            own = part.of(label)
            if label not in ("", imbalance.WARMUP) and len(own.tokens):
                yield label, own


# --- upstream's JSON ---


def _write_plain_percentiles(file: Path) -> None:
    """Give a result the p99s that upstream writes for any n, in the place of nulls with reasons. A
    file that is no result stays as it is."""
    try:
        run = result.read(file)
    except FileError:
        return
    known = {f"p99_{name}_ms": times for name, times in _times_ms(run).items() if len(times)}
    missing = {key: times for key, times in known.items() if run.number(key) is None}
    if not missing:
        return
    written: dict[str, Any] = files.read_by(file, files.with_constants)
    for key, times in missing.items():
        written[key] = float(np.percentile(times, 99))
        written.pop(f"{key}_reason", None)
    files.write_whole(file, files.formatted(written))


def _times_ms(run: Result) -> dict[str, Floats]:
    """TTFT, TPOT and ITL of upstream's keys, in ms, from the result's own lists."""
    gaps = np.array([gap for gaps in run.itls for gap in gaps], np.float64) * 1e3
    tpots = latency.per_request(run, "tpot")
    return {"ttft": latency.per_request(run, "ttft"), "tpot": tpots, "itl": gaps}


def _write_logs(logs: Path, out: Path) -> None:
    written: dict[str, _JsonLayers] = {}
    for label, own in _own_steps(logs):
        if dose.of_label(label):
            continue  # upstream knows no forced routing
        if label not in written:
            index, dash, repeat = label.partition("-")
            name = f"{int(index):02d}" if index.isdigit() else index
            written[label] = _JsonLayers(out / f"gates_logs_{name}{dash}{repeat}")
        written[label].add(own)
    for layers in written.values():
        layers.close()


@dataclass(slots=True)
class _JsonLayers:
    """One run's `gate_logs_<layer>.json`, written part by part."""

    folder: Path
    indices: list[Ints] = field(default_factory=list)
    tokens: list[Ints] = field(default_factory=list)
    layers: tuple[int, ...] = ()  # their numbers

    def add(self, part: GateLog) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        first, self.layers = not self.indices, part.numbers
        for place, layer in enumerate(self.layers):
            rows = ",\n".join(
                json.dumps(row) for row in part.loads[:, place].astype(float).tolist()
            )
            with open(self._file(layer), "w" if first else "a") as file:
                file.write(('{"expert_loads": [\n' if first else ",\n") + rows)
        self.indices.append(part.columns["index"])
        self.tokens.append(part.tokens)

    def close(self) -> None:
        steps, tokens = (
            json.dumps(np.concatenate(parts).tolist()) for parts in (self.indices, self.tokens)
        )
        for layer in self.layers:
            with open(self._file(layer), "a") as file:
                file.write(f'\n],\n"step": {steps},\n"num_tokens": {tokens}}}\n')

    def _file(self, layer: int) -> Path:
        return self.folder / f"gate_logs_{layer}.json"


# --- Parquet ---


class _TableFile:
    """A Parquet file that takes tables of one schema, in row groups of a few MB."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer: Any = None
        self._waiting: list[Any] = []

    def add(self, table: Any) -> None:
        self._waiting.append(table)
        if sum(t.nbytes for t in self._waiting) >= ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow
        from pyarrow import parquet as tables

        if self._waiting:
            whole = pyarrow.concat_tables(self._waiting)
            self._writer = self._writer or tables.ParquetWriter(
                self.path, whole.schema, compression="zstd"
            )
            self._writer.write_table(whole)
            self._waiting = []

    def __enter__(self) -> _TableFile:
        self.path.unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        if self._writer:
            self._writer.close()


def _step_rows(backend: str, label: str, own: GateLog) -> Any:
    import pyarrow

    none = np.zeros((len(own.tokens), 0))
    found, _ = steps.measure(own.loads, own.tokens, own.top_k, own.placement, none, own.by_rank)
    layers, supported = (
        np.maximum(found.layers, 1),
        np.where(found.supported > 0, found.supported, np.nan),
    )
    floor = np.sqrt(np.maximum(found.floor_squared / supported, 0.0))
    ranks = found.rank_ratio / layers if own.ranks else np.full(len(layers), np.nan)
    values = dict(
        zip(MEASURES, (found.cv / layers, floor, found.expert_ratio / layers, ranks), strict=True)
    )
    values |= _work(own)
    columns = {name: pyarrow.array(own.columns[name]) for name in COLUMNS}
    columns |= {
        name: pyarrow.array(value, from_pandas=True) for name, value in values.items()
    }  # nan is null
    return pyarrow.table(_named(backend, label, len(layers)) | columns)


def _work(own: GateLog) -> dict[str, Floats]:
    """Of each layer's busiest rank, means over layers, [steps]; nan where not known."""
    found, fair = work.of_busiest(own), work.fair(own)
    none = np.full(len(own.tokens), np.nan)
    by_step = {
        name: none if values is None or own.moved else values.mean(axis=1)
        for name in WORK
        for values in (getattr(found, name),)
    }
    amount = none if found.amount is None else found.amount.mean(axis=1)
    ratio = np.divide(amount, fair, out=none.copy(), where=fair > 0)
    return {f"busiest_{name}": v for name, v in by_step.items()} | {"work_over_fair": ratio}


def _layer_rows(backend: str, label: str, own: GateLog) -> Any:
    import pyarrow

    count, layers, experts = own.loads.shape
    index = np.repeat(own.columns["index"], layers)
    loads = pyarrow.array(own.loads.astype(np.uint32).ravel())
    columns = {
        "index": pyarrow.array(index),
        "layer": pyarrow.array(np.tile(np.array(own.numbers, dtype=np.int32), count)),
        "loads": pyarrow.FixedSizeListArray.from_arrays(loads, experts),
    }
    return pyarrow.table(_named(backend, label, len(index)) | columns)


def _named(backend: str, label: str, rows: int) -> dict[str, Any]:
    import pyarrow

    return {"backend": pyarrow.repeat(backend, rows), "dataset": pyarrow.repeat(label, rows)}
