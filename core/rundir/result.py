"""The result file of one run, `<backend>/results_json/<label>.json`: written, read and validated as
one type. Upstream's keys keep their meaning; ours stand beside them."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from msgspec import Struct, field

from core import files
from core.backends.energy import PhaseEnergy
from core.errors import FileError
from core.experiment import dose, events
from core.experiment.dose import Dose
from core.load.metrics import Metrics
from core.load.record import Records, RequestRecord
from core.load.trust import Trust, trust
from core.routing.expected import Expected
from core.routing.imbalance import Imbalance
from core.routing.replayed import Replayed
from core.routing.run import LongestStep
from core.rundir import possible
from core.rundir.journal import stream_events

if TYPE_CHECKING:
    from core.load.client import Load
    from core.workload.predictor import Prediction

LABEL = re.compile(r"[0-9]{3,}(-s[0-9]+)?(-r[0-9]+)?")


class GateLogPart(Struct, frozen=True, kw_only=True):
    """Where a run's routing was logged, and how many of its tokens are there."""

    folder: str = ""  # inside the run directory
    segment: str = ""
    tokens_due: int | None = 0  # None: the server did not count the prompts
    tokens_seen: int = 0
    left_out: str = ""  # why tokens are missing; empty if none are


class Result(Metrics, frozen=True, kw_only=True):
    """One run. Lists have one entry a request, in dataset order; a request that failed is None in
    `ttfts`, has no gaps, and its error stands in `errors`. What another tool did not write is None
    or empty."""

    date: str | None = None  # UTC, YYYYmmdd-HHMMSS
    backend: str | None = None  # its name, or the URL that `gatescope bench` was given
    start: int | None = None  # which of its backend's server starts it was sent to, from 1
    engine: str | None = None
    model_id: str | None = None
    tokenizer_id: str | None = None
    dataset_name: str | None = None
    dataset_path: str | None = None
    forced_routing: Dose | None = None
    replayed_routing: Replayed | None = None
    endpoint: str | None = None  # "completions" or "chat"
    temperature: float | None = None  # None: the server's own
    request_rate: float | str | None = None  # requests/s, or "inf"
    arrival: str | None = None
    burstiness: float | None = None
    ramp_up_s: float | None = None
    max_concurrency: int | None = None  # 0: no limit
    seed: int | None = None
    slo: dict[str, float] = field(default_factory=dict)
    asked_output_len: int | None = None  # tokens per answer at most; None: no limit
    input_lens: list[int | None] = field(default_factory=list)
    output_lens: list[int] = field(default_factory=list)
    visible_tokens: list[int | None] = field(default_factory=list)  # those of events with text
    ttfts: list[float | None] = field(default_factory=list)  # seconds
    ttfts_from_due: list[float | None] = field(default_factory=list)  # seconds
    itls: list[list[float]] = field(default_factory=list)  # seconds
    generated_texts: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    client: Trust | None = None  # how far the times can be trusted
    imbalance_score: float | None = None  # predicted from the texts
    imbalance_components: dict[str, dict[str, float]] = field(default_factory=dict)
    imbalance_raw_metrics: dict[str, float] = field(default_factory=dict)
    predicted: Expected | None = None  # of the model's router, by `predict --run`
    measured_imbalance: Imbalance | None = None
    measured_imbalance_reason: str | None = None  # why there is none
    decode_step_ms: float | None = None  # median over the run's own steps without prompt tokens
    longest_step: LongestStep | None = None
    delivery_lag_ms: float | None = None  # last token's arrival - end of the last engine step
    gate_log: GateLogPart | None = None
    energy_j: float | None = None  # of the server's GPUs, from the first request to the last token
    energy_reason: str | None = None  # why it is unknown, or not known by phase
    j_per_output_token: float | None = None
    sm_clock_mhz: float | None = None  # mean over that time, and over GPUs
    node: str | None = None  # the machine, by the cluster's name for it where it has one
    gpus: list[str] = field(default_factory=list)  # serial number or UUID of each that it used
    power_limit_w: float | None = None  # of one GPU
    energy_phases: dict[str, PhaseEnergy] = field(default_factory=dict)  # prefill, decode

    def number(self, name: str) -> float | None:
        """The figure of that key, such as "mean_tpot_ms"; None if it is unknown or no number."""
        value = getattr(self, name, None)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return float(value) if math.isfinite(value) else None

    @property
    def numbers(self) -> list[str]:
        """The keys that hold a number, sorted."""
        return sorted(name for name in self.__struct_fields__ if self.number(name) is not None)

    @property
    def excess_cv(self) -> float | None:
        return self.measured_imbalance.excess_cv if self.measured_imbalance else None

    @property
    def excess_squared(self) -> float | None:
        """Signed, so that it has a value at the noise floor too; older results hold only the
        root of what is above it."""
        measured, root = self.measured_imbalance, self.excess_cv
        if measured and measured.excess_squared is not None:
            return measured.excess_squared
        return None if root is None else root**2

    @property
    def predicted_work(self) -> float | None:
        """Active experts of the busiest rank, in the mean over layers of a decode step; of a
        prefill step where decode was not predicted."""
        if not self.predicted:
            return None
        phase = self.predicted.decode or self.predicted.prefill
        busiest = phase.busiest_rank_experts
        return phase.active_experts if busiest is None else busiest


def of_load(
    load: Load,
    records: Sequence[RequestRecord],
    figures: Metrics,
    prediction: Prediction | None,
    *,
    backend: str,
    dataset: str,
    path: str,
) -> Result:
    """What a load gave, before anything is known of its routing. `dataset` names the run's dataset,
    start and repeat ("001-s2-r2")."""
    return Result(
        date=datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S"),
        backend=backend,
        model_id=load.model,
        dataset_name=dataset,
        dataset_path=path,
        endpoint="chat" if load.chat else "completions",
        temperature=_temperature(load),
        request_rate=load.request_rate,
        arrival=load.arrival,
        burstiness=load.burstiness,
        ramp_up_s=load.ramp_up_s,
        max_concurrency=load.max_concurrency,
        seed=load.seed,
        slo=dict(load.slo),
        asked_output_len=load.asked_tokens,
        **msgspec.structs.asdict(figures),
        input_lens=[r.prompt_tokens for r in records],
        output_lens=[r.output_tokens for r in records],
        visible_tokens=[r.visible_tokens for r in records],
        ttfts=[r.ttft_s if r.ok else None for r in records],
        ttfts_from_due=[r.ttft_from_due_s if r.ok else None for r in records],
        itls=[r.itls_s if r.ok else [] for r in records],
        generated_texts=[r.text for r in records],
        errors=[r.error for r in records],
        client=trust(records.workers, figures) if isinstance(records, Records) else None,
        **(prediction.as_result() if prediction else {}),
    )


class Found(NamedTuple):
    """What a folder of results holds, by label."""

    results: dict[str, Result]
    unreadable: dict[str, str]  # what is wrong with a file that is not a result
    impossible: dict[str, list[str]]  # the figures of a result that are unknown, a phrase each


def _temperature(load: Load) -> float | None:
    """What the requests ask for, which `extra_body` may change or remove."""
    asked = load.extra_body.get("temperature", load.temperature)
    return float(asked) if isinstance(asked, int | float) else None


def decode(data: bytes) -> Result:
    """A result file's bytes. An error of files.NOT_JSON if they are not one."""
    return possible.decode(data, Result)[0]


def read(file: Path) -> Result:
    """One result file. FileError if it cannot be read, or is not a result."""
    return files.read_by(file, decode)


def write_predicted(file: Path, predicted: Expected) -> None:
    """Into a result file, all else as it stands. FileError if it cannot be read."""
    known = files.read(file, dict[str, msgspec.Raw])
    known["predicted"] = msgspec.Raw(msgspec.json.encode(predicted))
    files.write_whole(file, files.formatted(known))


def read_all(folder: Path) -> Found:
    """Every `<label>.json` in a results folder, forced and replayed routing included."""
    found = Found({}, {}, {})
    for label, file in sorted(result_files(folder).items()):
        try:
            taken, odd = files.read_by(file, lambda data: possible.decode(data, Result))
        except FileError as error:
            found.unreadable[label] = str(error).removeprefix(f"{file}: ")
            continue
        found.results[label] = taken
        if odd:
            found.impossible[label] = odd
    return found


def result_files(folder: Path) -> dict[str, Path]:
    """Label → file of every result in a results folder, readable or not."""
    found = {p.stem: p for p in folder.glob("*.json") if LABEL.fullmatch(p.stem.partition("~")[0])}
    return {
        label: path for label, path in found.items() if "~" not in label or dose.of_label(label)
    }


def done_runs(path: Path) -> set[str]:
    """Ids of the runs whose journal entry and result file agree that they are done."""
    return {
        event.run
        for event in stream_events(path)
        if isinstance(event, events.RunFinished)
        and _is_inside(event.result)
        and _is_readable(path / event.result)
    }


def _is_inside(name: str) -> bool:
    """Whether the path that a journal names stays in its run directory."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def _is_readable(file: Path) -> bool:
    try:
        read(file)
    except FileError:
        return False
    return True
