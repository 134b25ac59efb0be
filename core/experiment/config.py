"""experiments.toml → a frozen Config, defaults filled in. All mistakes are reported at once, a line
each: file, table, key, what was expected, nearest name."""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import tomli

from core.errors import ConfigError, FileError
from core.experiment import mistake, owned_flags, sweep
from core.experiment.cluster import Cluster
from core.experiment.mistake import Mistake, Place, shown
from core.experiment.search import SLO_LIMITS, Search
from core.experiment.sweep import Settings, Sweep
from core.experiment.tables import Backend, Document, Engine, Experiment, Forcing, Model

AUTO_STARTS = {
    "vllm": (2, False),
    "builtin": (3, True),
}  # how many; whether they share the datasets

# What else lies in a run directory, where every backend has a folder.
RESERVED = (
    "graphs",
    "export",
    "replay",
    "run.json",
    "events.jsonl",
    "control.sock",
    "summary.csv",
    "summary.json",
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
    replays: tuple[str, ...] = ()  # the recorded runs that the logs of dose.replay hold
    sweep: Sweep | None = None
    search: Search | None = None
    cluster: Cluster | None = None

    @property
    def is_swept(self) -> bool:
        """Whether it asks for more than one setting."""
        return self.sweep is not None or self.search is not None


def load(path: Path, settings: Settings | None = None) -> Config:
    """Read and check one experiments.toml, with `settings` in place of its own values. ConfigError
    names every mistake, a line each."""
    text = _text(path)
    document, mistakes = mistake.converted(_raw(path, text, settings), Document)
    mistakes += _checked(document)
    datasets, unmatched = _datasets(path.parent, document.experiment.datasets)
    mistakes += unmatched
    if mistakes:
        raise mistake.as_error(path, _raw(path, text, settings), mistakes)
    for file in (path.absolute(), *datasets):
        check_name(file)
    experiment = document.experiment
    if experiment.request_rate == math.inf:
        experiment = msgspec.structs.replace(experiment, request_rate="inf")
    return Config(
        path=path.absolute(),
        experiment=experiment,
        model=msgspec.structs.replace(document.model, id=model_id(path.parent, document.model.id)),
        backends=tuple(_resolved(path.parent, backend) for backend in document.backends),
        dataset_paths=datasets,
        dose=_dose(path.parent, document.dose, _raw(path, text, settings)),
        sweep=document.sweep,
        search=document.search,
        cluster=document.cluster,
    )


def _dose(folder: Path, dose: Forcing | None, written: dict[str, Any]) -> Forcing | None:
    """[dose] with its gate logs' path made absolute; these alone, where no levels are written."""
    if dose is None or not dose.replay:
        return dose
    place = os.path.abspath(folder / os.path.expanduser(dose.replay))
    levels = dose.levels if "levels" in written["dose"] else []
    return msgspec.structs.replace(dose, replay=place, levels=levels)


def with_starts(loaded: Config, kind: Literal["vllm", "builtin"]) -> Config:
    """`loaded` with the number of starts that "auto" stands for: 2 at vLLM; 3 at the built-in
    engine, which share the datasets out; 1 where backends take turns."""
    experiment = loaded.experiment
    if experiment.starts != "auto":
        return loaded
    starts, split = AUTO_STARTS[kind]
    if experiment.interleave:
        starts, split = 1, False
    settled = msgspec.structs.replace(experiment, starts=starts, split=split or experiment.split)
    return msgspec.structs.replace(loaded, experiment=settled)


def model_id(folder: Path, given: str) -> str:
    """A model's path made absolute: ~ is home, a relative one starts at `folder`. A name that is no
    path, and names nothing there, is a hub's."""
    expanded = os.path.expanduser(given)
    place = os.path.abspath(folder / expanded)
    is_path = given.startswith((".", "/", "~")) or (given.count("/") > 1 and "://" not in given)
    if expanded.startswith("~"):  # there is no home directory
        return expanded
    return place if is_path or os.path.isdir(place) else given


def check_name(path: Path) -> None:
    """FileError for a path that is not UTF-8: JSON could not name it, nor could a result."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise FileError(f"{str(path)!a}: expected a path in UTF-8; rename it") from None


def check_budget(where: str, backend: Backend) -> None:
    """ConfigError where a step has no room for the requests that run."""
    if problem := _budget_problem(backend):
        raise ConfigError(f"{where}, max_num_batched_tokens: {problem}")


def engine(name: str) -> Engine:
    """The engine of that name, as an option gives it."""
    found: Engine = msgspec.convert(name, Engine)
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # Windows editors write a byte order mark
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; write one with: gatescope init") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: expected UTF-8 text, byte {error.start} is not: {error.reason}"
        ) from None


def _toml(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomli.loads(text)
    except RecursionError:
        raise ConfigError(f"{path}: not valid TOML: nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, and numbers of more digits than Python reads
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def _raw(path: Path, text: str, settings: Settings | None) -> dict[str, Any]:
    """The file's tables, with `settings` in place of its own values."""
    raw = _toml(path, text)
    try:
        sweep.apply(raw, settings or {})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return raw


# --- what values mean together ---


def _checked(document: Document) -> Iterator[Mistake]:
    yield from _lengths(document.experiment, document.model)
    yield from _turns(document.experiment)
    if not document.backends:
        text = "expected at least one [[backends]] table (in double brackets)"
        yield Mistake(("backends",), text, rests_on=(("backends",),))
    for number, backend in enumerate(document.backends):
        yield from _name_taken(number, document.backends)
        yield from _backend(("backends", number), backend)
    if document.search:
        yield from _search(document.search, document.experiment)
    if document.dose:
        for keys, text in dose_problems(document.dose):
            yield Mistake(
                ("dose", *keys), text, rests_on=(("dose", "levels"), ("dose", "patterns"))
            )


def _lengths(experiment: Experiment, model: Model) -> Iterator[Mistake]:
    """A request that the server must refuse, whatever its prompt, is a mistake here."""
    least = max(experiment.input_len, 1) + experiment.output_len
    if least > model.max_model_len:
        output_len = ("experiment", "output_len")
        yield Mistake(
            output_len,
            f"expected prompt and output within [model] max_model_len ({model.max_model_len}),"
            f" got {least} tokens; lower output_len or input_len, or raise max_model_len",
            rests_on=(output_len, ("experiment", "input_len"), ("model", "max_model_len")),
        )


def _search(search: Search, experiment: Experiment) -> Iterator[Mistake]:
    """A search needs an objective, a span of loads, and requests enough to make its highest."""
    if not search.slo or not set(search.slo) <= set(SLO_LIMITS):
        got = ", ".join(search.slo) or "none"
        text = f"expected limits of some of {', '.join(SLO_LIMITS)}, got {got}"
        yield Mistake(("search", "slo"), text)
    if search.low >= search.high:
        text = f"expected more than low ({search.low:g}), got {search.high:g}"
        yield Mistake(("search", "high"), text)
    if search.is_whole and search.high > experiment.num_prompts:
        text = (
            f"expected at most [experiment] num_prompts ({experiment.num_prompts}), since no more"
            f" requests can be in flight, got {search.high:g}; raise num_prompts or lower high"
        )
        yield Mistake(("search", "high"), text)


def _turns(experiment: Experiment) -> Iterator[Mistake]:
    """Backends that take turns are started anew for each turn."""
    if experiment.interleave and experiment.starts not in (1, "auto"):
        starts: Place = ("experiment", "starts")
        yield Mistake(
            starts,
            f"expected 1 with interleave = true, which starts a server for every turn, got"
            f" {experiment.starts}; take repeats instead, or leave interleave out",
            rests_on=(starts, ("experiment", "interleave")),
        )


def _name_taken(number: int, backends: Sequence[Backend]) -> Iterator[Mistake]:
    """Every backend has a folder in the run directory, also where file names ignore case."""
    name = backends[number].name
    places: list[Place] = [("backends", i, "name") for i in range(number + 1)]
    same = [p for p, b in zip(places, backends, strict=False) if b.name.lower() == name.lower()]
    if len(same) > 1 or name.lower() in RESERVED:
        text = f"expected a name of its own, {name!r} is taken; rename it"
        yield Mistake(places[number], text, rests_on=(same[0], same[-1]))


def _backend(place: Place, backend: Backend) -> Iterator[Mistake]:
    if problem := _budget_problem(backend):
        budget = (*place, "max_num_batched_tokens")
        yield Mistake(budget, problem, rests_on=(budget, (*place, "max_num_seqs")))
    over = "data_parallel" if backend.data_parallel > 1 else "tensor_parallel"
    if (count := getattr(backend, over)) % backend.nodes:
        text = f"expected {over} ({count}) in equal shares on each, got {backend.nodes}"
        yield Mistake((*place, "nodes"), text, rests_on=((*place, "nodes"), (*place, over)))
    env = (*place, "env")
    if odd := [name for name in backend.env if not name or "=" in name or "\0" in name]:
        yield Mistake(env, f"expected names of environment variables, got {shown(odd[0])}")
    # `ps` would show a key of the user's own, or run.json hold it.
    given = {argument.split("=")[0].replace("_", "-") for argument in backend.extra_args}
    text = "expected no API key; leave it out: each start gets a key of its own"
    if "--api-key" in given:
        yield Mistake((*place, "extra_args"), text)
    for problem in owned_flags.problems(backend.extra_args):
        yield Mistake((*place, "extra_args"), problem)
    if "VLLM_API_KEY" in backend.env:
        yield Mistake(env, text)


def _budget_problem(backend: Backend) -> str:
    """What is wrong where a step has no room for the requests that run: no engine would start."""
    if backend.max_num_batched_tokens >= backend.max_num_seqs:
        return ""
    return (
        f"expected at least max_num_seqs ({backend.max_num_seqs}), since a running request"
        f" takes a token of every step, got {backend.max_num_batched_tokens}"
    )


def dose_problems(forcing: Forcing) -> Iterator[tuple[tuple[str, ...], str]]:
    """Place in the table and text of what a run's label could not name."""
    if not forcing.doses and not forcing.replay:
        yield (), "expected at least one level and one pattern, got none"
    for level in dict.fromkeys(forcing.levels):
        if round(level, 4) != level:
            yield ("levels",), f"expected at most 4 decimals, got {shown(level)}"


def _datasets(folder: Path, globs: str | list[str]) -> tuple[tuple[Path, ...], list[Mistake]]:
    """The files that the globs match, each once, and the globs that match none."""
    place: Place = ("experiment", "datasets")
    found: set[Path] = set()
    mistakes = []
    for pattern in [globs] if isinstance(globs, str) else dict.fromkeys(globs):
        inside = os.path.join(glob.escape(str(folder.absolute())), os.path.expanduser(pattern))
        files = {Path(f) for f in glob.glob(inside, recursive=True) if os.path.isfile(f)}
        found |= files
        if not files:
            text = (
                f"expected a glob that matches files, {shown(pattern)} matches none in"
                f" {folder.resolve()}; make some with: gatescope generate"
            )
            mistakes.append(Mistake(place, text, rests_on=(place,)))
    if not globs and isinstance(globs, list):
        mistakes.append(Mistake(place, "expected at least one glob, got none", rests_on=(place,)))
    return tuple(sorted(found, key=lambda p: (p.name, str(p)))), mistakes


def _resolved(folder: Path, backend: Backend) -> Backend:
    """With its interpreter as every path in the file: ~ is home, a relative one starts at the
    file."""
    if "/" not in backend.python:
        return backend
    python = os.path.abspath(folder / os.path.expanduser(backend.python))
    return msgspec.structs.replace(backend, python=python)
