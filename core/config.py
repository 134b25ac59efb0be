"""experiments.toml → frozen structs. Every mistake is one line: file, table, key, what was expected, nearest name."""

from __future__ import annotations

import difflib
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import msgspec

T = TypeVar("T", bound=msgspec.Struct)
Engine = Literal["auto", "vllm", "builtin"]
Rate = Annotated[float, msgspec.Meta(gt=0)] | Literal["inf"]
Natural = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)]


class ConfigError(Exception):
    """The configuration cannot be run; the text is one line for the user."""


class Experiment(msgspec.Struct, frozen=True, kw_only=True):
    """[experiment]: what is sent, how often, and what counts as a failure."""

    name: Name = "load-imbalance"
    engine: Engine = "auto"
    datasets: str | list[str] = "datasets/*.jsonl"
    num_prompts: Positive = 30
    input_len: Natural = 0
    output_len: Positive = 50
    request_rate: Rate = "inf"
    max_concurrency: Natural = 0
    repeats: Positive = 1
    shuffle: bool = True
    seed: Natural = 0
    warmup_requests: Natural = 8
    pause_s: Seconds = 0.0
    stall_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 120.0
    max_error_rate: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    strict: bool = False


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """[model]: what vLLM serves. The built-in engine has a model of its own and takes only `max_model_len`."""

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
    startup_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 1800.0
    extra_args: list[str] = []
    env: dict[str, str] = {}

    @property
    def ranks(self) -> int:
        """GPUs (for the built-in engine, rank threads) that one server spans."""
        return self.tensor_parallel * self.data_parallel


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file, defaults filled in, and the data set files that its globs match."""

    path: Path
    experiment: Experiment
    model: Model
    backends: tuple[Backend, ...]
    dataset_paths: tuple[Path, ...]


TABLES = {"experiment": Experiment, "model": Model, "backends": Backend}


def load(path: Path) -> Config:
    """Read and check one experiments.toml. ConfigError names the first mistake."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; write one with: gatescope init") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    _known(path, "the top level", "table", raw, list(TABLES))
    experiment = _table(path, "[experiment]", raw.get("experiment", {}), Experiment)
    model = _table(path, "[model]", raw.get("model", {}), Model)
    backends = _backends(path, raw.get("backends"))
    datasets = _datasets(path, experiment.datasets)
    return Config(path=path, experiment=experiment, model=model, backends=backends, dataset_paths=datasets)


def _backends(path: Path, raw: Any) -> tuple[Backend, ...]:
    if not isinstance(raw, list) or not raw:
        raise ConfigError(f"{path}: [[backends]]: expected at least one [[backends]] table")
    backends: list[Backend] = []
    for number, entry in enumerate(raw, 1):
        backend = _table(path, f"[[backends]] number {number}", entry, Backend)
        if any(b.name == backend.name for b in backends):
            raise ConfigError(
                f"{path}: [[backends]] number {number}, name: expected a name of its own,"
                f" {backend.name!r} is taken; rename one of the two"
            )
        backends.append(backend)
    return tuple(backends)


def _table(path: Path, table: str, raw: Any, kind: type[T]) -> T:
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: {table}: expected a table, got {_shown(raw)}")
    hints = get_type_hints(kind, include_extras=True)
    _known(path, table, "key", raw, list(hints))
    values = {key: _value(path, table, key, raw[key], hints[key]) for key in raw}
    missing = [f.name for f in msgspec.structs.fields(kind) if f.required and f.name not in values]
    if missing:
        raise ConfigError(f"{path}: {table}, {missing[0]}: expected a value, the key is missing")
    return kind(**values)


def _value(path: Path, table: str, key: str, value: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        expected = str(error).split(" - at ")[0]
        expected = expected[0].lower() + expected[1:]
        if kind is Rate:
            expected = 'expected a number of requests per second above 0, or "inf"'
        elif kind is Name:
            expected = "expected letters, digits, '.', '_' and '-' only, starting with a letter or digit"
        else:
            expected = expected.split(", got")[0].replace("`", "")
        raise ConfigError(f"{path}: {table}, {key}: {expected}, got {_shown(value)}") from None


def _known(path: Path, table: str, noun: str, raw: dict[str, Any], names: list[str]) -> None:
    for key in raw:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(names)}"
            raise ConfigError(f"{path}: {table}, {key}: unknown {noun}{hint}")


def _datasets(path: Path, globs: str | list[str]) -> tuple[Path, ...]:
    found: set[Path] = set()
    for pattern in [globs] if isinstance(globs, str) else globs:
        base = path.parent if not os.path.isabs(pattern) else Path("/")
        relative = pattern.lstrip("/") if os.path.isabs(pattern) else pattern
        try:
            matches = {p for p in base.glob(relative) if p.is_file()}
        except (ValueError, NotImplementedError) as error:
            raise ConfigError(f"{path}: [experiment], datasets: expected a glob, got {pattern!r}: {error}") from None
        if not matches:
            raise ConfigError(
                f"{path}: [experiment], datasets: expected a glob that matches files,"
                f" {pattern!r} matches none in {base.resolve()}; make some with: gatescope generate"
            )
        found |= matches
    if not found:
        raise ConfigError(f"{path}: [experiment], datasets: expected at least one glob, got none")
    return tuple(sorted(found, key=lambda p: (p.name, str(p))))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
