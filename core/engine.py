"""The loop: for each backend: server up, warm up, run its data sets, server down.

The engine draws nothing and decides nothing about screens: it appends events to the run directory and tells a listener.
"""

from __future__ import annotations

import asyncio
import datetime
import os
import platform
import secrets
import subprocess
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from core import events, imbalance, metrics, predict, store
from core.backends import builtin
from core.backends import server as servers
from core.backends.server import Server, ServerError
from core.config import Backend, Config
from core.dataset import Dataset
from core.events import AnyEvent, RunFigures
from core.gatelog import GateLog, GateLogError, ServerLog
from core.imbalance import WARMUP, Imbalance
from core.load import client
from core.load.client import Load
from core.metrics import Metrics, RequestRecord
from core.plan import Plan, Run
from core.store import RunDirectory

Listener = Callable[[AnyEvent], None]
LOG_WAIT_S = 3.0


class RunError(Exception):
    """One run failed; the rest go on."""


class Engine:
    """One experiment in one run directory. `listen` is told every event after it has been journalled."""

    def __init__(self, config: Config, plan: Plan, directory: RunDirectory, listen: Listener) -> None:
        self.config, self.plan, self.directory, self._listen = config, plan, directory, listen
        self._imbalance: dict[str, dict[str, Imbalance]] = {}

    async def run(self, finished: set[str]) -> bool:
        """Run what is not in `finished`; true if every run of the plan is done. Cancellation ends servers first."""
        failed = 0
        for backend in self.plan.backends:
            runs = [r for r in self.plan.of(backend.name) if r.id not in finished]
            if runs:
                failed += await self._backend(backend, runs)
        self._emit(events.ExperimentFinished(done=len(self.plan.runs) - failed, failed=failed))
        return not failed

    def interrupted(self, signal_name: str) -> None:
        self._emit(events.ExperimentInterrupted(signal=signal_name))

    async def _backend(self, backend: Backend, runs: list[Run]) -> int:
        """Serve one backend and run its share; how many of its runs failed."""
        server = self._start(backend)
        try:
            log = await self._ready(backend, server)
            return await self._runs(backend, server, runs, log)
        except ServerError as error:
            self._emit(events.BackendFailed(backend=backend.name, reason=str(error), log_tail=error.log_tail))
            for run in runs:
                self._emit(events.RunFailed(run=run.id, reason=str(error)))
            return len(runs)
        finally:
            server.stop()
            self._emit(events.BackendStopped(backend=backend.name))

    def _start(self, backend: Backend) -> Server:
        gate_logs = self.directory.gate_logs(backend.name).resolve()
        gate_logs.mkdir(parents=True)
        launch = builtin.launch(backend, self.config.model, gate_logs, self.config.experiment.seed)
        log = self.directory.path / backend.name / "server.log"
        server = servers.start(
            backend.name, launch.command, port=backend.port, api_key=secrets.token_hex(16), log=log, env=launch.env
        )
        self._gate_logs = gate_logs
        self._emit(
            events.BackendStarting(
                backend=backend.name, port=backend.port, pid=server.process.pid, command=launch.command, log=str(log)
            )
        )
        return server

    async def _ready(self, backend: Backend, server: Server) -> ServerLog:
        """Wait for /health, note what runs, send the warm-up; the gate log, open behind it."""
        seconds = await server.wait_ready(backend.startup_timeout_s)
        ran = builtin.ran(await server.version(), server.log)
        wrong = builtin.mismatches(backend, ran)
        self._emit(events.BackendReady(backend=backend.name, seconds=seconds, ran=ran, mismatches=wrong))
        prompts = next(iter(self.plan.datasets.values())).prompts
        count = self.config.experiment.warmup_requests
        warmup = tuple(prompts[i % len(prompts)] for i in range(count))
        if warmup:
            records = await client.run(self._load(server, Dataset(WARMUP, Path(), warmup), WARMUP, count))
            if all(not r.ok for r in records):
                raise ServerError(
                    f"server {backend.name}: every warm-up request failed: {records[0].error}",
                    server.log_tail(),
                )
        return ServerLog(self._gate_logs)

    async def _runs(self, backend: Backend, server: Server, runs: list[Run], log: ServerLog) -> int:
        failed = 0
        for place, run in enumerate(runs):
            if place and self.config.experiment.pause_s:
                await asyncio.sleep(self.config.experiment.pause_s)
            if server.has_ended:
                raise_reason = f"server {backend.name} ended during the runs; see {server.log}"
                for left in runs[place:]:
                    self._emit(events.RunFailed(run=left.id, reason=raise_reason))
                return failed + len(runs) - place
            try:
                await self._run(server, run, log)
            except (RunError, GateLogError, OSError) as error:
                failed += 1
                self._emit(events.RunFailed(run=run.id, reason=str(error)))
        return failed

    async def _run(self, server: Server, run: Run, log: ServerLog) -> None:
        dataset = self.plan.datasets[run.dataset]
        load = self._load(server, dataset, run.label, self.config.experiment.num_prompts)
        self._emit(events.RunStarted(run=run.id, requests=len(load.prompts)))
        records = await client.run(load, lambda record: self._emit(_request_event(run, record)))
        self.directory.write_requests(run, records)
        figures = metrics.summarise(records)
        self._check_errors(records)
        measured = await _imbalance_of(log, run.label, figures)
        result = self._result(run, load, records, figures, measured)
        name = self.directory.write_result(run, result)
        self._write_imbalances(run, measured)
        self._emit(events.RunFinished(run=run.id, result=name, figures=_run_figures(figures, result, measured)))

    def _load(self, server: Server, dataset: Dataset, label: str, count: int) -> Load:
        wanted = self.config.experiment
        return Load(
            base_url=server.base_url,
            model=builtin.MODEL_NAME,
            label=label,
            prompts=dataset.prompts[:count],
            api_key=server.api_key,
            input_len=wanted.input_len,
            output_len=wanted.output_len,
            request_rate=wanted.request_rate if label != WARMUP else "inf",
            max_concurrency=wanted.max_concurrency,
            seed=wanted.seed,
            stall_timeout_s=wanted.stall_timeout_s,
        )

    def _check_errors(self, records: list[RequestRecord]) -> None:
        errors = [r.error for r in records if r.error]
        if len(errors) == len(records) or len(errors) > self.config.experiment.max_error_rate * len(records):
            raise RunError(f"{len(errors)} of {len(records)} requests failed, the first with: {errors[0]}")

    def _result(
        self, run: Run, load: Load, records: list[RequestRecord], figures: Metrics, measured: Imbalance
    ) -> dict[str, Any]:
        """Upstream's keys with their meaning, and ours beside them."""
        prediction = _predicted(tuple(p.text for p in load.prompts))
        return {
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S"),
            "backend": run.backend,
            "engine": builtin.ENGINE,
            "model_id": builtin.MODEL_NAME,
            "tokenizer_id": "bytes",
            "dataset_name": run.label,
            "dataset_path": str(run.path),
            "request_rate": load.request_rate,
            **metrics.as_result(records, figures),
            **(prediction.as_result() if prediction else {"imbalance_score": None}),
            "measured_imbalance": measured,
        }

    def _write_imbalances(self, run: Run, measured: Imbalance) -> None:
        """Upstream's two mappings of a backend, kept whole after every run."""
        of_backend = self._imbalance.setdefault(run.backend, self._known_imbalances(run.backend))
        of_backend[f"gates_logs_{run.label}"] = measured
        ordered = {name: of_backend[name] for name in sorted(of_backend)}
        self.directory.write_json(f"{run.backend}_real_imbalance.json", {n: m.per_step_cv for n, m in ordered.items()})
        self.directory.write_json(
            f"{run.backend}_real_imbalance_aggregated.json", {n: m.aggregated_cv for n, m in ordered.items()}
        )

    def _known_imbalances(self, backend: str) -> dict[str, Imbalance]:
        """Those of the runs done before a resume."""
        known = store.results(self.directory.path / backend / "results_json")
        return {
            f"gates_logs_{label}": msgspec.convert(result["measured_imbalance"], Imbalance)
            for label, result in known.items()
            if result.get("measured_imbalance")
        }

    def _emit(self, event: AnyEvent) -> None:
        self.directory.append(event)
        self._listen(event)


async def _imbalance_of(log: ServerLog, label: str, figures: Metrics) -> Imbalance:
    """The run's steps. A server may write its last block a moment after its last token: wait for all tokens.

    Every prompt token and every generated token but the last of a request passes the model once.
    """
    due = figures.total_input_tokens + figures.total_output_tokens - figures.completed
    gathered: list[GateLog] = []
    deadline = time.monotonic() + LOG_WAIT_S
    while True:
        gathered.append(log.read())
        seen = sum(int(g.segments[label].sum()) for g in gathered if label in g.segments)
        if seen >= due or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.02)
    return imbalance.measure_segments(gathered, label)


def _request_event(run: Run, record: RequestRecord) -> events.RequestFinished:
    tpot = record.tpot_s if record.ok else None
    return events.RequestFinished(
        run=run.id,
        index=record.index,
        output_tokens=record.output_tokens,
        ttft_ms=record.ttft_s * 1e3 if record.ok else None,
        tpot_ms=None if tpot is None else tpot * 1e3,
        error=record.error,
    )


def _run_figures(figures: Metrics, result: dict[str, Any], measured: Imbalance) -> RunFigures:
    return RunFigures(
        completed=figures.completed,
        failed=figures.num_prompts - figures.completed,
        duration_s=figures.duration,
        mean_ttft_ms=figures.mean_ttft_ms,
        mean_tpot_ms=figures.mean_tpot_ms,
        output_throughput=figures.output_throughput,
        score=result["imbalance_score"],
        cv=measured.per_step_cv,
        aggregated_cv=measured.aggregated_cv,
        excess_cv=measured.excess_cv,
        imbalance_reason=measured.excess_cv_reason,
    )


@cache
def _predicted(texts: tuple[str, ...]) -> predict.Prediction | None:
    """The same data set runs at every backend and repeat: score it once. None for texts that have no score."""
    try:
        return predict.predict(texts)
    except ValueError:
        return None


def describe(config: Config, plan: Plan) -> dict[str, Any]:
    """run.json: the resolved configuration, versions, host, git state and what is asked of each backend."""
    return {
        "config": config,
        "only": sorted(plan.datasets),
        "backends": [b.name for b in plan.backends],
        "engine": builtin.ENGINE,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {name: _version(name) for name in ("gatescope", "numpy", "httpx", "msgspec", "uvicorn")},
        "python": platform.python_version(),
        "host": {"name": platform.node(), "system": platform.platform(), "cpus": os.cpu_count()},
        "gpus": _gpus(),
        "git": _git(config.path.parent),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _gpus() -> list[str]:
    """`nvidia-smi -L`, or nothing where there is none."""
    return _lines(["nvidia-smi", "-L"])


def _git(folder: Path) -> dict[str, Any]:
    commit = _lines(["git", "-C", str(folder), "rev-parse", "HEAD"])
    changed = _lines(["git", "-C", str(folder), "status", "--porcelain"])
    return {"commit": commit[0] if commit else None, "changed_files": len(changed)}


def _lines(command: list[str]) -> list[str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []
