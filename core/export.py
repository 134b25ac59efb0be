"""A run directory in other layouts: upstream's folders and JSON, or tidy Parquet tables."""

from __future__ import annotations

import shutil
from pathlib import Path

from core import analysis, dose, gatelog, imbalance
from core.config import ConfigError
from core.gatelog import GateLogError

NO_PYARROW = "the Parquet layout needs pyarrow, which is not installed; add it with: pip install pyarrow"


def upstream(path: Path, out: Path) -> list[Path]:
    """`<backend>/results_json/001.json`, `<backend>/gate_logs/gates_logs_01/gate_logs_<layer>.json` and the mappings.

    ConfigError where `path` is no run directory, a gate log cannot be read, or `out` cannot be written.
    """
    groups, _ = analysis.of_run_directory(path)
    made = []
    try:
        for group in groups:
            folder = out / group.name
            shutil.copytree(path / group.name / "results_json", folder / "results_json", dirs_exist_ok=True)
            for mapping in path.glob(f"{group.name}_real_imbalance*.json"):
                shutil.copy(mapping, out / mapping.name)
            for logs in _log_folders(path / group.name):
                _write_logs(logs, folder / "gate_logs")
            made.append(folder)
    except (GateLogError, OSError) as error:
        raise ConfigError(f"export of {path}: {error}") from None
    return made


def parquet(path: Path, out: Path) -> list[Path]:
    """`runs.parquet`, a row a run, and `steps.parquet`, a row an engine step of a run. ConfigError as `upstream`."""
    try:
        from pyarrow import Table
        from pyarrow import parquet as files
    except ImportError:
        raise ConfigError(NO_PYARROW) from None
    groups, _ = analysis.of_run_directory(path)
    try:
        rows = [row for group in groups for logs in _log_folders(path / group.name) for row in _steps(group.name, logs)]
        out.mkdir(parents=True, exist_ok=True)
        for name, table in (("runs", analysis.summary_rows(groups)), ("steps", rows)):
            files.write_table(Table.from_pylist(table), out / f"{name}.parquet")
    except (GateLogError, OSError) as error:
        raise ConfigError(f"export of {path}: {error}") from None
    return [out / "runs.parquet", out / "steps.parquet"]


def _log_folders(backend: Path) -> list[Path]:
    return sorted(p for p in backend.glob("gate_logs*") if p.is_dir())


def _write_logs(logs: Path, out: Path) -> None:
    log = gatelog.read_folder(logs)
    for label in log.segments:
        own = log.of(label)
        is_natural = label not in ("", imbalance.WARMUP) and not dose.of_label(label)  # upstream knows no other
        if is_natural and len(own.tokens):
            index, dash, repeat = label.partition("-")
            name = f"{int(index):02d}" if index.isdigit() else index
            gatelog.write_json(own, out / f"gates_logs_{name}{dash}{repeat}")


def _steps(backend: str, logs: Path) -> list[dict[str, object]]:
    log = gatelog.read_folder(logs)
    rows: list[dict[str, object]] = []
    for label in log.segments:
        if label not in ("", imbalance.WARMUP):
            own = log.of(label)
            names, columns = list(own.columns), [c.tolist() for c in own.columns.values()]
            known = {"backend": backend, "dataset": label}
            rows += [known | dict(zip(names, step, strict=True)) for step in zip(*columns, strict=True)]
    return rows
