"""experiments.toml → frozen structs. Every mistake is one line: file, table, key, what was
expected, nearest name."""

from __future__ import annotations

import difflib
import glob
import math
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from core.errors import ConfigError, FileError
from core.experiment.dose import Dose, Pattern
from core.workload.trace import TraceUnit

T = TypeVar("T", bound=msgspec.Struct)
Engine = Literal["auto", "vllm", "builtin"]
Rate = Annotated[float, msgspec.Meta(ge=1e-6)] | Literal["inf"]
MAX_INT = 2**31 - 1  # what every server and every JSON reader takes
Natural = Annotated[int, msgspec.Meta(ge=0, le=MAX_INT)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=MAX_INT)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Burstiness = Annotated[float, msgspec.Meta(ge=1e-3, le=1e3)]
Deadline = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*\Z", max_length=80)]
Workers = Positive | Literal["auto"]
Level = Annotated[float, msgspec.Meta(ge=0, le=100)]

EXPECTED: dict[Any, str] = {
    Name: "at most 80 letters, digits, '.', '_' and '-', starting with a letter or digit",
    Rate: 'a number of requests per second, at least 0.000001, or "inf"',
    Workers: 'a whole number above 0, or "auto"',
    str | list[str]: "a glob, or a list of globs",
    Level: "a CV of expert load, a number of at least 0",
}
# msgspec's names of types, as a writer of TOML knows them.
TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "array": "a list",
}
# What else lies in a run directory, where every backend has a folder.
RESERVED = (
    "graphs",
    "export",
    "run.json",
    "events.jsonl",
    "control.sock",
    "summary.csv",
    "summary.json",
)


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
    datasets: str | list[str] = "datasets/*.jsonl"
    num_prompts: Positive = 30
    input_len: Natural = 0
    output_len: Positive = 50
    request_rate: Rate = "inf"
    arrival: Literal["poisson", "constant", "trace"] = "poisson"
    trace_unit: TraceUnit = "s"
    burstiness: Burstiness = 1.0
    ramp_up_s: Seconds = 0.0
    max_concurrency: Natural = 0
    load_workers: Workers = "auto"
    slo: Slo = Slo()
    repeats: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    shuffle: bool = True
    interleave: bool = False
    seed: Natural = 0
    warmup_requests: Natural = 8
    pause_s: Seconds = 0.0
    stall_timeout_s: Deadline = 120.0
    max_error_rate: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    strict: bool = False


class Forcing(msgspec.Struct, frozen=True, kw_only=True):
    """[dose]: every dataset once with its natural routing, and once at each of these CVs of expert
    load with routing forced to it, in each pattern."""

    levels: list[Level] = msgspec.field(default_factory=lambda: [0.0, 0.25, 0.5, 1.0, 1.5])
    patterns: list[Pattern] = msgspec.field(default_factory=lambda: ["hot-experts"])
    rotate_steps: Positive = 64

    @property
    def doses(self) -> list[Dose]:
        """All of them, each once."""
        return list(
            dict.fromkeys(
                Dose(pattern, level) for pattern in self.patterns for level in self.levels
            )
        )


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """[model]: what vLLM serves. The built-in engine has a model of its own and takes only
    `max_model_len`."""

    id: Annotated[str, msgspec.Meta(min_length=1)] = "mistralai/Mixtral-8x7B-v0.1"
    max_model_len: Positive = 4096
    load_format: str = "auto"


class Backend(msgspec.Struct, frozen=True, kw_only=True):
    """[[backends]]: one server to launch and measure."""

    name: Name
    port: Port = 8000
    tensor_parallel: Positive = 4
    data_parallel: Positive = 1
    expert_parallel: bool = False
    max_num_batched_tokens: Positive = 8192
    max_num_seqs: Positive = 32
    moe_backend: str = "triton"
    all2all_backend: str = ""
    eplb: bool = False
    enforce_eager: bool = False
    python: str = ""
    startup_timeout_s: Deadline = 1800.0
    extra_args: list[str] = []
    env: dict[str, str] = {}

    @property
    def ranks(self) -> int:
        """GPUs (for the built-in engine, rank processes) that one server spans."""
        return self.tensor_parallel * self.data_parallel

    @property
    def trusts_remote_code(self) -> bool:
        return any(
            word.startswith(("--trust-remote-code", "--trust_remote_code"))
            for word in self.extra_args
        )


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file, defaults filled in, and the dataset files that its globs match; every path
    is absolute."""

    path: Path
    experiment: Experiment
    model: Model
    backends: tuple[Backend, ...]
    dataset_paths: tuple[Path, ...]
    dose: Forcing | None = None


TABLES = {"experiment": Experiment, "model": Model, "backends": Backend, "dose": Forcing}
TITLES = {
    "experiment": "[experiment]",
    "model": "[model]",
    "backends": "[[backends]]",
    "dose": "[dose]",
}


def load(path: Path) -> Config:
    """Read and check one experiments.toml. ConfigError names the first mistake."""
    raw = _toml(path)
    _known(f"{path}: the top level", "table", raw, list(TABLES))
    experiment = _table(f"{path}: [experiment]", raw.get("experiment", {}), Experiment)
    model = _table(f"{path}: [model]", raw.get("model", {}), Model)
    _check_lengths(path, experiment, model)
    backends = _backends(path, raw.get("backends"))
    datasets = _datasets(path, experiment.datasets)
    for file in (path.absolute(), *datasets):
        check_name(file)
    dose = _table(f"{path}: [dose]", raw["dose"], Forcing) if "dose" in raw else None
    if dose:
        check_doses(f"{path}: [dose]", dose)
    return Config(
        path=path.absolute(),
        experiment=experiment,
        model=model,
        backends=backends,
        dataset_paths=datasets,
        dose=dose,
    )


def with_doses(loaded: Config, levels: list[float], patterns: list[Pattern]) -> Config:
    """The same with what --dose and --pattern name in place of [dose]'s, where they name any.
    ConfigError as `load`."""
    if not levels and not patterns:
        return loaded
    given = {key: value for key, value in (("levels", levels), ("patterns", patterns)) if value}
    dose: Forcing = msgspec.structs.replace(loaded.dose or Forcing(), **given)
    check_doses("--dose", dose)
    return msgspec.structs.replace(loaded, dose=dose)


def check_doses(where: str, forcing: Forcing) -> None:
    """ConfigError for a level that a run's label could not name."""
    if not forcing.doses:
        raise ConfigError(f"{where}: expected at least one level and one pattern, got none")
    for dose in forcing.doses:
        if round(dose.level, 4) != dose.level:
            raise ConfigError(
                f"{where}, levels: expected at most 4 decimals, got {_shown(dose.level)}"
            )


def check_name(path: Path) -> None:
    """FileError for a path that is not UTF-8: JSON could not name it, nor could a result."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise FileError(f"{str(path)!a}: expected a path in UTF-8; rename it") from None


def _toml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(
            encoding="utf-8-sig"
        )  # editors on Windows put a byte order mark first
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; write one with: gatescope init") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: expected UTF-8 text, byte {error.start} is not: {error.reason}"
        ) from None
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"{path}: not valid TOML: nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, and numbers of more digits than Python reads
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def _check_lengths(path: Path, experiment: Experiment, model: Model) -> None:
    """A request that the server must refuse, whatever its prompt, is a mistake here."""
    least = max(experiment.input_len, 1) + experiment.output_len
    if least > model.max_model_len:
        raise ConfigError(
            f"{path}: [experiment], output_len: expected prompt and output within [model] max_model_len"
            f" ({model.max_model_len}), got {least} tokens; lower output_len or input_len, or raise max_model_len"
        )


def engine(name: str) -> Engine:
    """The engine of that name, as an option gives it."""
    found: Engine = msgspec.convert(name, Engine)
    return found


def _backends(path: Path, raw: Any) -> tuple[Backend, ...]:
    if not isinstance(raw, list) or not raw:
        raise ConfigError(
            f"{path}: [[backends]]: expected at least one [[backends]] table (in double brackets)"
        )
    backends: list[Backend] = []
    for number, entry in enumerate(raw, 1):
        where = f"{path}: [[backends]] number {number}"
        backend = _table(where, entry, Backend)
        if backend.name.lower() in [*RESERVED, *(b.name.lower() for b in backends)]:
            raise ConfigError(
                f"{where}, name: expected a name of its own, {backend.name!r} is taken; rename it"
            )
        check_budget(where, backend)
        _check_key(where, backend)
        if (
            "/" in backend.python
        ):  # as every path in the file: ~ is home, a relative one starts at the file
            python = os.path.abspath(path.parent / Path(backend.python).expanduser())
            backend = msgspec.structs.replace(backend, python=python)
        backends.append(backend)
    return tuple(backends)


def check_budget(where: str, backend: Backend) -> None:
    """ConfigError where a step has no room for the requests that run: every engine refuses to start
    so."""
    if backend.max_num_batched_tokens < backend.max_num_seqs:
        raise ConfigError(
            f"{where}, max_num_batched_tokens: expected at least max_num_seqs ({backend.max_num_seqs}),"
            f" since a running request takes a token of every step, got {backend.max_num_batched_tokens}"
        )


def _check_key(where: str, backend: Backend) -> None:
    """ConfigError for a key of the user's own: `ps` would show it, or run.json hold it."""
    given = {argument.split("=")[0].replace("_", "-") for argument in backend.extra_args}
    place = "extra_args" if "--api-key" in given else "env" if "VLLM_API_KEY" in backend.env else ""
    if place:
        raise ConfigError(
            f"{where}, {place}: expected no API key; leave it out: each start gets a key of its own"
        )


def _table(where: str, raw: Any, kind: type[T]) -> T:
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: expected a table, got {_shown(raw)}")
    hints = get_type_hints(kind, include_extras=True)
    _known(where, "key", raw, list(hints))
    values = {key: _value(f"{where}, {key}", raw[key], hints[key]) for key in raw}
    missing = [f.name for f in msgspec.structs.fields(kind) if f.required and f.name not in values]
    if missing:
        raise ConfigError(f"{where}, {missing[0]}: expected a value, the key is missing")
    return kind(**values)


def _value(where: str, value: Any, kind: Any) -> Any:
    """`value` as `kind`. A mistake inside a list or a table is named at its own place."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _table(where, value, kind)
    if isinstance(value, dict) and get_origin(kind) is dict:
        return {name: _variable(where, name, item) for name, item in value.items()}
    if isinstance(value, list) and (items := _items(kind)):
        return [
            _value(f"{where}, item {place}", item, items) for place, item in enumerate(value, 1)
        ]
    if kind == Rate and value == math.inf:
        return "inf"
    if (
        isinstance(value, str) and "\0" in value
    ):  # no process takes one in its arguments or environment
        raise ConfigError(f"{where}: expected a text without NUL, got {_shown(value)}")
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"{where}: expected {_expected(kind, str(error))}, got {_shown(value)}"
        ) from None


def _items(kind: Any) -> Any:
    """What a list of this kind holds; None where it is no list."""
    lists = [part for part in (kind, *get_args(kind)) if get_origin(part) is list]
    return get_args(lists[0])[0] if lists else None


def _variable(where: str, name: str, value: Any) -> str:
    if not name or "=" in name or "\0" in name:
        raise ConfigError(f"{where}: expected names of environment variables, got {_shown(name)}")
    return str(_value(f"{where}, {_plain(name)}", value, str))


def _expected(kind: Any, said: str) -> str:
    if kind in EXPECTED:
        return EXPECTED[kind]
    if get_origin(kind) is Literal:
        return " or ".join(f'"{choice}"' for choice in get_args(kind))
    wanted = said.removeprefix("Expected ").split(", got")[0].split(" - at ")[0].replace("`", "")
    name, _, limits = wanted.partition(" ")
    return f"{TYPES.get(name, 'a table')} {limits}".rstrip()


def _known(where: str, noun: str, raw: dict[str, Any], names: list[str]) -> None:
    for key in raw:
        if key not in names:
            raise ConfigError(f"{where}, {_plain(key)}: unknown {noun}; {_hint(key, names)}")


def _hint(key: str, names: list[str]) -> str:
    """Where an unknown key belongs, else the nearest name, else all names."""
    homes = [TITLES[t] for t, kind in TABLES.items() if key in kind.__struct_fields__]
    if homes:
        return f"it belongs in {homes[0]}"
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"


def _datasets(path: Path, globs: str | list[str]) -> tuple[Path, ...]:
    found: set[Path] = set()
    for pattern in [globs] if isinstance(globs, str) else globs:
        matches = glob.glob(
            os.path.join(glob.escape(str(path.parent.absolute())), pattern), recursive=True
        )
        files = {Path(match) for match in matches if os.path.isfile(match)}
        if not files:
            raise ConfigError(
                f"{path}: [experiment], datasets: expected a glob that matches files, {_shown(pattern)} matches none"
                f" in {path.parent.resolve()}; make some with: gatescope generate"
            )
        found |= files
    if not found:
        raise ConfigError(f"{path}: [experiment], datasets: expected at least one glob, got none")
    return tuple(sorted(found, key=lambda p: (p.name, str(p))))


def _plain(key: str) -> str:
    """A key as it is written: bare, or in quotes where it would break the line."""
    return key if key.isidentifier() and len(key) <= 60 else _shown(key)


def _shown(value: Any) -> str:
    """A value in a few words on one line; what is nested, however deep, by its kind only."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    text = (
        str(value).lower()
        if isinstance(value, bool)
        else str(value)
        if not isinstance(value, str)
        else repr(value)
    )
    return text if len(text) <= 60 else text[:57] + "..."
