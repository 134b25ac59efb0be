"""One run: a dataset streamed at a ready server, its routing read from the gate log, its result
file and figures."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache

import httpx
import msgspec
import numpy as np
from msgspec import structs

from core import files
from core.backends import nvml, prometheus
from core.backends.energy import READ_S, Energy, Gauge, Spans
from core.engine.arrivals import Arrivals
from core.errors import GateLogError, LoadError
from core.experiment import events
from core.experiment.events import AnyEvent, Latency, LiveImbalance, RunFigures
from core.experiment.plan import Run
from core.load import client, metrics
from core.load.client import Load
from core.load.metrics import Metrics, RequestRecord
from core.load.record import Progress
from core.recorder.gatescope_recorder.order import Order
from core.recorder.gatescope_recorder.replay import PHASES
from core.routing import live, repeats
from core.routing.folder import GateFolder
from core.routing.gatelog import GateLog
from core.routing.imbalance import Imbalance
from core.routing.repeats import Repeats
from core.routing.run import RunRouting
from core.rundir import provenance, result
from core.rundir.directory import RunDirectory
from core.rundir.result import GateLogPart, Result
from core.workload import predictor

LOG_WAIT_S = 3.0
NOT_BY_PHASE = "not known by phase: no step of the gate log lies in the run's time"
SAMPLE_S = 1.0


class RunError(Exception):
    """One run failed; the rest go on. `stalled`: the server no longer answers."""

    def __init__(self, reason: str, *, stalled: bool = False) -> None:
        super().__init__(reason)
        self.stalled = stalled


@dataclass(frozen=True, slots=True)
class Target:
    """The server that a run is sent to, as its results name it."""

    base_url: str
    engine: str
    model: str
    tokenizer: str
    log: GateFolder
    env: Mapping[str, str] = field(default_factory=dict)  # of the server: which GPUs it sees
    gpus: int = 0  # how many of those it uses


@dataclass(slots=True)
class Measurement:
    """Takes one run. `records` and `routing` hold what there is so far, also when it is cancelled
    half-way."""

    target: Target
    run: Run
    load: Load
    directory: RunDirectory
    emit: Callable[[AnyEvent], None]
    max_error_rate: float
    order: Order | None = None  # what the server may be asked to force
    records: list[RequestRecord] = field(default_factory=list)
    progress: Progress = field(default_factory=Progress)
    arrivals: Arrivals = field(default_factory=Arrivals)
    advanced: asyncio.Event = field(default_factory=asyncio.Event)
    routing: RunRouting = field(init=False)
    gauge: Gauge = field(init=False)

    def __post_init__(self) -> None:
        self.gauge = Gauge(self.target.env, self.target.gpus)
        self.routing = RunRouting(self.load.label, self.run.imposed, self.order)

    async def take(self) -> None:
        """Send, measure, write, emit. RunError where too many requests failed."""
        requests, tokens = len(self.load.prompts), self.load.asked_tokens
        self.emit(events.RunStarted(run=self.run.id, requests=requests, output_len=tokens))
        watches = asyncio.create_task(self._watch()), asyncio.create_task(self._gauge())
        self.gauge.read()
        try:
            self.records = await client.run(self.load, self._on_done, self._on_progress)
        except (LoadError, httpx.HTTPError) as error:
            raise RunError(f"nothing was sent: {type(error).__name__}: {error}") from None
        finally:
            self.gauge.read()
            for watch in watches:
                watch.cancel()
        async with httpx.AsyncClient(trust_env=False) as http:
            await self._sample(http)  # the last state, also of a run of less than a second
        self.directory.write_requests(self.run, self.records)
        self._check_errors()
        figures = metrics.summarise(self.records, self.load.slo)
        await self._settle(figures)
        measured, reason = self._imbalance(repeats.of(await client.prompt_tokens(self.load)))
        self._check_routing()
        taken = self._result(figures, measured, reason)
        name = self.directory.write_result(self.run, taken)
        self._write_imbalances(measured)
        told = _run_figures(self.records, taken)
        self.emit(events.RunFinished(run=self.run.id, result=name, figures=told))

    def keep_partial(self) -> int:
        """Write what a cancelled run has as `<label>.partial.json`; returns its number of
        requests."""
        self.records = done = sorted((r for r in self.records if r.ok), key=lambda r: r.index)
        if done:
            partial = self._result(
                metrics.summarise(done, self.load.slo), None, "the run was cancelled"
            )
            self.directory.write_json(
                f"{self.run.backend}/results_json/{self.run.label}.partial.json", partial
            )
        return len(done)

    def _on_done(self, record: RequestRecord) -> None:
        self.records.append(record)
        self.arrivals.end(record)
        self.emit(_request_event(self.run, record))

    def _on_progress(self, progress: Progress) -> None:
        self.progress = progress
        if self.arrivals.add(progress):
            self.emit(structs.replace(self._so_far(), early=True))
        self.advanced.set()

    async def _watch(self) -> None:
        """A sample a second, as soon as the load client has reported, until cancelled."""
        async with httpx.AsyncClient(trust_env=False) as http:
            while True:
                await asyncio.sleep(0.9 * SAMPLE_S)
                self.advanced.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.advanced.wait(), SAMPLE_S)
                await self._sample(http)

    async def _gauge(self) -> None:
        """A reading of energy and clocks every READ_S, until cancelled."""
        while True:
            await asyncio.sleep(READ_S)
            self.gauge.read()

    async def _sample(self, http: httpx.AsyncClient) -> None:
        server = await prometheus.server_load(http, self.target.base_url)
        self.emit(
            structs.replace(
                self._so_far(),
                arrived=self.arrivals.take(),
                server=server,
                gpus=nvml.sample(self.target.env),
                imbalance=self._look(),
            )
        )

    def _so_far(self) -> events.Sampled:
        """What the load client knows."""
        progress = self.progress
        return events.Sampled(
            backend=self.run.backend,
            run=self.run.id,
            sent=progress.sent,
            first_tokens=progress.first_tokens,
            output_tokens=progress.output_tokens,
            finished=progress.done + progress.errors,
            ttft=self.arrivals.ttft(),
            itl=self.arrivals.itl(),
        )

    def _look(self) -> LiveImbalance | None:
        """The steps since the last look, which are summed up for the run's own figures too."""
        try:
            part = self._read()
        except (GateLogError, OSError):
            return None  # `_imbalance` meets it again, and reports it
        return live.measure(part, self.load.label)

    def _read(self) -> GateLog:
        part = self.target.log.read()
        self.routing.add(part)
        return part

    def _check_errors(self) -> None:
        errors = [r.error for r in self.records if r.error]
        failed, sent = len(errors), len(self.records)
        if failed == sent or failed > self.max_error_rate * sent:
            raise RunError(
                f"{failed} of {sent} requests failed, the first with: {errors[0]}",
                stalled=all(e.startswith("stalled") for e in errors),
            )

    def _check_routing(self) -> None:
        """RunError where routing was not as labelled: forced to the run's dose, replayed, or
        natural throughout."""
        if wrong := self.routing.why_not_forced():
            raise RunError(wrong)

    async def _settle(self, figures: Metrics) -> None:
        """Read the log until it holds all of the run's tokens: a server may write its last block a
        moment late."""
        deadline = time.monotonic() + LOG_WAIT_S
        due = _due(figures) or 0
        while self.routing.tokens < due and time.monotonic() < deadline:
            try:
                self._read()
            except (GateLogError, OSError):
                return
            await asyncio.sleep(0.02)

    def _imbalance(self, prompts: Repeats | None) -> tuple[Imbalance | None, str | None]:
        """The run's imbalance, or why there is none; `prompts`: how their tokens repeat."""
        try:
            self._read()
            return self.routing.imbalance(prompts), None
        except (GateLogError, OSError) as error:
            return None, f"no imbalance: {error}"

    def _result(self, figures: Metrics, measured: Imbalance | None, reason: str | None) -> Result:
        """Upstream's keys with their meaning, and ours beside them."""
        due, seen = _due(figures), self.routing.tokens
        sent = result.of_load(
            self.load,
            self.records,
            figures,
            predicted(tuple(p.text for p in self.load.prompts)),
            backend=self.run.backend,
            dataset=self.run.label,
            path=self.run.file,
        )
        return msgspec.structs.replace(
            sent,
            engine=self.target.engine,
            model_id=self.target.model,
            tokenizer_id=self.target.tokenizer,
            forced_routing=self.run.dose,
            replayed_routing=self.routing.replayed,
            start=self.run.start,
            measured_imbalance=measured,
            measured_imbalance_reason=reason,
            decode_step_ms=self.routing.decode_step_ms(),
            longest_step=self.routing.longest_step,
            delivery_lag_ms=self._delivery_lag_ms(figures),
            **structs.asdict(self._energy(figures)),
            node=provenance.node(),
            gpus=self.gauge.serials,
            gate_log=GateLogPart(
                folder=str(self.target.log.folder.relative_to(self.directory.path.resolve())),
                segment=self.load.label,
                tokens_due=due,
                tokens_seen=seen,
                left_out=self.target.log.left_out if due is not None and seen < due else "",
            ),
        )

    def _energy(self, figures: Metrics) -> Energy:
        done = [r for r in self.records if r.ok]
        began, last = min(r.t_start_ns for r in done), max(r.stamps_ns[-1] for r in done)
        tokens, seen = figures.total_output_tokens, self.routing
        if seen.is_one_clock(began, last):
            spans = {phase: seen.spans(phase) for phase in PHASES}
            phases = {
                phase: Spans(starts, starts + took, seen.phase_tokens[phase])
                for phase, (starts, took) in spans.items()
            }
            return self.gauge.used(began, last, tokens, phases)
        used = self.gauge.used(began, last, tokens, {})
        return structs.replace(used, energy_reason=used.energy_reason or NOT_BY_PHASE)

    def _delivery_lag_ms(self, figures: Metrics) -> float | None:
        done = [r for r in self.records if r.ok]
        began, last = min(r.t_start_ns for r in done), max(r.stamps_ns[-1] for r in done)
        due = _due(figures)
        return None if due is None else self.routing.delivery_lag_ms(due, began, last)

    def _write_imbalances(self, measured: Imbalance | None) -> None:
        """Add this run's values to upstream's two mappings of its backend, if its routing was
        natural."""
        if self.run.imposed:
            return
        for suffix, key in (("", "per_step_cv"), ("_aggregated", "aggregated_cv")):
            name = f"{self.run.backend}_real_imbalance{suffix}.json"
            file = self.directory.path / name
            known = files.read(file, dict[str, float | None]) if file.exists() else {}
            known[_upstream_name(self.run)] = getattr(measured, key) if measured else None
            self.directory.write_json(name, dict(sorted(known.items())))


def _upstream_name(run: Run) -> str:
    """`gates_logs_01`, `gates_logs_01-r2`: how upstream names the gate logs of dataset 001."""
    return f"gates_logs_{int(run.dataset):02d}{run.label.removeprefix(run.dataset)}"


def _due(figures: Metrics) -> int | None:
    """Tokens that pass through the model: every prompt token, and every generated one but the last
    of each request. None if the server did not count the prompts'."""
    if figures.total_input_tokens is None:
        return None
    return figures.total_input_tokens + figures.total_output_tokens - figures.completed


def _request_event(run: Run, record: RequestRecord) -> events.RequestFinished:
    gaps = record.itls_s if record.ok else []
    tpot = record.tpot_s if record.ok else None
    e2e = record.e2e_s if record.ok else None
    return events.RequestFinished(
        run=run.id,
        index=record.index,
        input_tokens=record.prompt_tokens,
        output_tokens=record.output_tokens,
        ttft_ms=record.ttft_s * 1e3 if record.ok else None,
        tpot_ms=None if tpot is None else tpot * 1e3,
        itl_ms=float(np.median(gaps)) * 1e3 if gaps else None,
        e2e_ms=None if e2e is None else e2e * 1e3,
        error=record.error,
    )


def _run_figures(records: list[RequestRecord], taken: Result) -> RunFigures:
    done = [r for r in records if r.ok]
    values = {
        "ttft": [r.ttft_s for r in done],
        "tpot": [t for r in done if (t := r.tpot_s) is not None],
        "itl": [gap for r in done for gap in r.itls_s],
        "e2e": [t for r in done if (t := r.e2e_s) is not None],
    }
    measured = taken.measured_imbalance
    return RunFigures(
        completed=taken.completed,
        failed=taken.num_prompts - taken.completed,
        duration_s=taken.duration or 0.0,
        output_throughput=taken.output_throughput,
        latencies={
            name: Latency(**asdict(found))
            for name, seconds in values.items()
            if (found := metrics.summary(seconds))
        },
        score=taken.imbalance_score,
        cv=measured.per_step_cv if measured else None,
        aggregated_cv=measured.aggregated_cv if measured else None,
        excess_cv=measured.excess_cv if measured else None,
        rank_imbalance=measured.rank_imbalance if measured else None,
        work_over_fair=_decode_work(measured),
        imbalance_reason=measured.excess_cv_reason if measured else taken.measured_imbalance_reason,
        decode_step_ms=taken.decode_step_ms,
    )


def _decode_work(measured: Imbalance | None) -> float | None:
    decode = measured.decode if measured else None
    return decode.busiest_rank.work_over_fair if decode and decode.busiest_rank else None


@cache
def predicted(texts: tuple[str, ...]) -> predictor.Prediction | None:
    """The score of some texts, computed once: a dataset runs at every backend and repeat. None if
    they have none."""
    try:
        return predictor.predict(texts)
    except ValueError:
        return None
