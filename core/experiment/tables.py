"""The tables of experiments.toml as they are written: keys, types, bounds and defaults."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from core.experiment.cluster import Cluster
from core.experiment.dose import Dose, Pattern
from core.experiment.search import Search
from core.experiment.sweep import Sweep
from core.workload.trace import TraceUnit

MAX_INT = 2**31 - 1  # what every server and every JSON reader takes
Engine = Literal["auto", "vllm", "builtin"]
Metric = Literal["mean_ttft_ms", "mean_tpot_ms", "output_throughput"]
Rate = Annotated[
    Annotated[float, Meta(ge=1e-6)] | Literal["inf"],
    Meta(description='a number of requests per second, at least 0.000001, or "inf"'),
]
Temperature = Annotated[
    Annotated[float, Meta(ge=0, le=100)] | Literal["auto"],
    Meta(description='a number from 0 to 100, or "auto"'),
]
Natural = Annotated[int, Meta(ge=0, le=MAX_INT)]
Positive = Annotated[int, Meta(ge=1, le=MAX_INT)]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
Burstiness = Annotated[float, msgspec.Meta(ge=1e-3, le=1e3)]
Deadline = Annotated[float, Meta(gt=0, le=1e9)]
Port = Annotated[int, Meta(ge=0, le=65535)]  # 0: a free one, at each start
Text = Annotated[str, Meta(pattern=r"^[^\0]*\Z")]  # no process takes a NUL
Name = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*\Z",
        max_length=80,
        description=(
            "at most 80 letters, digits, '.', '_' and '-', starting with a letter or digit"
        ),
    ),
]
Globs = Annotated[Text | list[Text], Meta(description="a glob, or a list of globs")]
Workers = Annotated[
    Positive | Literal["auto"], Meta(description='a whole number above 0, or "auto"')
]
Starts = Annotated[
    Annotated[int, Meta(ge=1, le=1000)] | Literal["auto"],
    Meta(description='a whole number from 1 to 1000, or "auto"'),
]
Level = Annotated[
    float, Meta(ge=0, le=100, description="a CV of expert load, a number from 0 to 100")
]


class Slo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits in ms that a request must meet to count for goodput; TTFT and E2E from the moment it
    was due."""

    ttft_ms: Deadline | None = None
    tpot_ms: Deadline | None = None
    e2e_ms: Deadline | None = None

    @property
    def limits(self) -> dict[str, float]:
        return {
            name: value for name, value in msgspec.structs.asdict(self).items() if value is not None
        }


class Experiment(msgspec.Struct, frozen=True, kw_only=True):
    """[experiment]: what is sent, how often, and what counts as a failure."""

    name: Name = "load-imbalance"
    engine: Engine = "auto"
    datasets: Globs = "datasets/*.jsonl"
    num_prompts: Positive = 30
    input_len: Natural = 0
    output_len: Positive = 50
    temperature: Temperature = "auto"
    request_rate: Rate = "inf"
    arrival: Literal["poisson", "constant", "trace"] = "poisson"
    trace_unit: TraceUnit = "s"
    burstiness: Burstiness = 1.0
    ramp_up_s: Seconds = 0.0
    max_concurrency: Natural = 0
    load_workers: Workers = "auto"
    slo: Slo = Slo()
    repeats: Annotated[int, Meta(ge=1, le=1000)] = 1
    starts: Starts = 1
    split: bool = False
    shuffle: bool = True
    interleave: bool = False
    seed: Natural = 0
    warmup_requests: Natural = 8
    pause_s: Seconds = 0.0
    stall_timeout_s: Deadline = 120.0
    max_error_rate: Annotated[float, Meta(ge=0, le=1)] = 0.0
    metric: Metric = "mean_tpot_ms"
    smallest_effect_pct: Annotated[float, Meta(gt=0, le=100)] = 2.0
    strict: bool = False
    graphs: bool = True


class Forcing(msgspec.Struct, frozen=True, kw_only=True):
    """[dose]: every dataset once with its natural routing, and once at each of these CVs of expert
    load with routing forced to it, in each pattern. `replay`: gate logs whose runs are replayed
    too; without `levels` beside it, these alone."""

    levels: list[Level] = msgspec.field(default_factory=lambda: [0.0, 0.25, 0.5, 1.0, 1.5])
    patterns: list[Pattern] = msgspec.field(default_factory=lambda: ["hot-experts"])
    rotate_steps: Positive = 64
    replay: Text = ""

    @property
    def doses(self) -> list[Dose]:
        """All of them, each once."""
        return list(
            dict.fromkeys(
                Dose(pattern, level) for pattern in self.patterns for level in self.levels
            )
        )


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """[model]: what is served. `id` and `load_format` are vLLM's, `weights` is the built-in
    engine's, which has a model of its own."""

    id: Annotated[Text, Meta(min_length=1)] = "mistralai/Mixtral-8x7B-v0.1"
    max_model_len: Positive = 4096
    load_format: Text = "auto"
    weights: Literal["trained", "random"] = "trained"


class Backend(msgspec.Struct, frozen=True, kw_only=True):
    """[[backends]]: one server to launch and measure."""

    name: Name
    port: Port = 8000
    tensor_parallel: Positive = 4
    data_parallel: Positive = 1
    expert_parallel: bool = False
    nodes: Annotated[int, Meta(ge=1, le=1024)] = 1
    interface: Text = ""
    max_num_batched_tokens: Positive = 8192
    max_num_seqs: Positive = 32
    moe_backend: Text = "triton"
    all2all_backend: Text = ""
    eplb: bool = False
    enforce_eager: bool = False
    python: Text = ""
    startup_timeout_s: Deadline = 1800.0
    extra_args: list[Text] = []
    env: dict[str, Text] = {}

    @property
    def ranks(self) -> int:
        """GPUs (for the built-in engine, rank processes) that one server spans."""
        return self.tensor_parallel * self.data_parallel

    @property
    def ranks_here(self) -> int:
        """Of `ranks`, those on each of its nodes."""
        return self.ranks // self.nodes

    @property
    def trusts_remote_code(self) -> bool:
        return any(
            word.startswith(("--trust-remote-code", "--trust_remote_code"))
            for word in self.extra_args
        )


Backends = Annotated[
    list[Backend], Meta(description="at least one [[backends]] table (in double brackets)")
]


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """The file as it is written."""

    experiment: Experiment = Experiment()
    model: Model = Model()
    backends: Backends = []
    dose: Forcing | None = None
    sweep: Sweep | None = None
    search: Search | None = None
    cluster: Cluster | None = None
