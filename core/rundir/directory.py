"""The run directory: made, written, read back. events.jsonl is the truth about what was done."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import msgspec
import numpy as np

from core.experiment import dose, events
from core.experiment.config import Config, ConfigError, Name, check_name
from core.experiment.events import AnyEvent
from core.experiment.plan import Run
from core.load.metrics import RequestRecord

LABEL = re.compile(r"[0-9]{3,}(-r[0-9]+)?")
PART_BYTES = 1 << 23  # of a journal, read at once; a day's is over 100 MB
TAIL_BYTES = 1 << 16
SYNCED = (
    events.ExperimentStarted,
    events.RunFinished,
    events.RunFailed,
    events.RunCancelled,
    events.ExperimentFinished,
    events.ExperimentInterrupted,
)


def new_path(name: str, parent: Path = Path("runs")) -> Path:
    """`runs/<name>-<utc time>`, numbered where two start within a second."""
    base = f"{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    tries = [base, *(f"{base}-{n}" for n in range(2, 100))]
    return next(parent / t for t in tries if not (parent / t).exists())


class RunDirectory:
    """One experiment's files, and the lock that keeps a second gatescope out while this one writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = open(path / ".lock", "a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.seek(0)
            owner = self._lock.read().strip() or "unknown"
            self._lock.close()
            raise ConfigError(f"{path}: in use by another gatescope, process {owner}; wait for it or stop it") from None
        self._lock.truncate(0)
        self._lock.write(f"{os.getpid()}\n")
        self._lock.flush()
        self._journal = open(path / "events.jsonl", "ab", buffering=0)
        self._drop_torn_line()

    @classmethod
    def create(cls, path: Path) -> RunDirectory:
        """A new directory, 0700. ConfigError where it is not empty or cannot be made."""
        check_name(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise ConfigError(
                    f"{path}: --out must be new or empty; to go on with an interrupted run use: --resume {path}"
                )
            path.chmod(0o700)
            return cls(path)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None

    @classmethod
    def reopen(cls, path: Path) -> RunDirectory:
        """An existing run directory, to resume. ConfigError where it is none."""
        if not (path / "run.json").is_file() or not (path / "events.jsonl").is_file():
            raise ConfigError(f"{path}: not a run directory: run.json and events.jsonl are expected in it")
        try:
            return cls(path)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._journal.close()
        self._lock.close()

    @property
    def mark(self) -> str:
        """What tells this directory's servers from all other processes (see core.backends.supervise): its lock file's
        device and inode, which stay as they are where the directory is renamed, and are others' where it is copied."""
        about = os.fstat(self._lock.fileno())
        return f"{about.st_dev:x}-{about.st_ino:x}."

    def append(self, event: AnyEvent) -> None:
        """Append one event; on disk before this returns where a run ended. OSError where that fails."""
        if not os.fstat(self._journal.fileno()).st_nlink:
            raise FileNotFoundError(errno.ENOENT, "the run directory has been deleted", str(self.path))
        line = events.encode(event) + b"\n"
        if (written := self._journal.write(line)) != len(line):  # a disk that fills up takes a part
            os.ftruncate(self._journal.fileno(), os.fstat(self._journal.fileno()).st_size - written)
            raise OSError(errno.ENOSPC, "no room for the journal", str(self.path))
        if isinstance(event, SYNCED):
            os.fsync(self._journal.fileno())

    def write_json(self, name: str, value: Any) -> Path:
        """Write a JSON file under a temporary name, then rename it: it is whole or not there."""
        file = self.path / name
        write_whole(file, formatted(value))
        return file

    def note_server(self, backend: str, about: dict[str, Any]) -> None:
        """Add to run.json what a server was asked to be, and what really ran."""
        run = read_json(self.path / "run.json")
        run["servers"][backend] = about
        self.write_json("run.json", run)

    def write_result(self, run: Run, result: dict[str, Any]) -> str:
        """results_json/<label>.json of one run; its path inside the directory."""
        name = f"{run.backend}/results_json/{run.label}.json"
        self.write_json(name, result)
        return name

    def write_requests(self, run: Run, records: list[RequestRecord]) -> None:
        """requests/<label>.npz: per request its times (ns), counts and status; token stamps flattened."""
        file = self.path / run.backend / "requests" / f"{run.label}.npz"
        file.parent.mkdir(parents=True, exist_ok=True)
        names = (
            "t_due_ns",
            "t_start_ns",
            "t_sent_ns",
            "t_first_byte_ns",
            "t_done_ns",
            "prompt_tokens",
            "output_tokens",
        )
        columns: dict[str, Any] = {n: np.array([getattr(r, n) for r in records], dtype=np.int64) for n in names}
        columns["t_first_ns"] = np.array([r.stamps_ns[0] if r.stamps_ns else 0 for r in records], dtype=np.int64)
        columns["ok"] = np.array([r.ok for r in records])
        columns["events"] = np.array([len(r.stamps_ns) for r in records], dtype=np.int64)
        columns["stamps_ns"] = np.array([s for r in records for s in r.stamps_ns], dtype=np.int64)
        columns["event_tokens"] = np.array([n for r in records for n in r.event_tokens], dtype=np.int64)
        temporary = file.with_suffix(".tmp.npz")
        with _or_nothing(temporary):
            np.savez(temporary, **columns)
            os.replace(temporary, file)

    def gate_logs(self, backend: str) -> Path:
        """The folder that the next server of this backend logs into: one a start, since a log is never reopened."""
        folders = (self.path / backend / f"gate_logs{f'-start{n}' if n > 1 else ''}" for n in itertools.count(1))
        return next(folder for folder in folders if not folder.exists())

    def _drop_torn_line(self) -> None:
        """A last line without its newline was being written when the machine stopped; it never happened."""
        file = self.path / "events.jsonl"
        size = end = file.stat().st_size
        with open(file, "rb") as journal:
            while end > 0:
                start = max(0, end - TAIL_BYTES)
                journal.seek(start)
                if (found := journal.read(end - start).rfind(b"\n")) >= 0:
                    end = start + found + 1
                    break
                end = start
        if end < size:
            os.truncate(file, end)


class Journal:
    """Reads a growing events.jsonl: each `poll()` returns the whole events that came since the last, or a part of them
    where they are many."""

    def __init__(self, run_dir: Path) -> None:
        self.file = run_dir / "events.jsonl"
        self._offset = self._lines = 0

    def poll(self) -> list[AnyEvent]:
        """New events, oldest first. ConfigError where the journal cannot be read, or a line is not an event."""
        try:
            with open(self.file, "rb") as file:
                file.seek(self._offset)
                data = file.read(PART_BYTES)
                whole, newline, _ = (data + file.readline() if len(data) == PART_BYTES else data).rpartition(b"\n")
        except OSError as error:
            raise ConfigError(f"{self.file}: cannot be read: {error.strerror}") from None
        if not newline:
            return []
        self._offset += len(whole) + 1
        return [self._decoded(line) for line in whole.split(b"\n")]

    def _decoded(self, line: bytes) -> AnyEvent:
        self._lines += 1
        try:
            return events.decode(line)
        except msgspec.DecodeError as error:
            raise ConfigError(f"{self.file}:{self._lines}: not an event: {error}") from None


def stream_events(run_dir: Path) -> Iterator[AnyEvent]:
    """Every whole event of a run directory, a part of them in memory. ConfigError as `Journal.poll`."""
    journal = Journal(run_dir)
    while part := journal.poll():
        yield from part


def read_events(run_dir: Path) -> list[AnyEvent]:
    """All of `stream_events`."""
    return list(stream_events(run_dir))


def done_runs(path: Path) -> set[str]:
    """Ids of the runs whose journal entry and result file agree that they are done."""
    return {
        event.run
        for event in stream_events(path)
        if isinstance(event, events.RunFinished) and _is_inside(path, event.result) and _is_whole(path / event.result)
    }


def read_json(file: Path) -> dict[str, Any]:
    """One JSON object. ConfigError where it is not readable."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{file}: not a JSON object: {error}") from None


class _Measured(msgspec.Struct):
    """The part of a result's imbalance that readers take apart."""

    excess_cv_reason: str | None = None
    rank_imbalance: float | None = None
    rank_loads: list[float] | None = None
    intervals: dict[str, tuple[float, float] | None] | None = None


class _Result(msgspec.Struct):
    """The part of a result file that readers take apart; what stands alone is taken as a number, or as none."""

    mean_ttft_ms: float | None = None
    mean_tpot_ms: float | None = None
    mean_e2e_ms: float | None = None
    ttfts: list[float | None] | None = None
    itls: list[list[float]] | None = None
    output_lens: list[int] | None = None
    measured_imbalance: _Measured | None = None


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """Label → result of every `<label>.json` in a results folder, forced routing included. ConfigError for a file that
    is no result."""
    return {label: _checked(file, _Result) for label, file in sorted(result_files(folder).items())}


def result_files(folder: Path) -> dict[str, Path]:
    """Label → file of every result in a results folder, read or not."""
    found = {p.stem: p for p in folder.glob("*.json") if LABEL.fullmatch(p.stem.partition("~")[0])}
    return {label: path for label, path in found.items() if "~" not in label or dose.of_label(label)}


class _Host(msgspec.Struct):
    system: str
    cpus: int | None


class _Server(msgspec.Struct):
    ran: dict[str, str] = {}
    mismatches: list[str] = []


class _Facts(msgspec.Struct):
    """The part of run.json that a report takes apart."""

    engine: str
    backends: list[Name]
    started: str
    versions: dict[str, str]
    host: _Host
    gpus: list[str]
    servers: dict[str, _Server]
    runs: list[Run]
    git: dict[str, str | int | None] | None = None


class _Names(msgspec.Struct):
    engine: str
    backends: list[Name]


def read_names(path: Path) -> tuple[list[str], str]:
    """The backends that run.json says were run, in order, and the engine's name. ConfigError where it does not."""
    try:
        found = _checked(path / "run.json", _Names)
    except ConfigError as error:
        raise ConfigError(f"{path}: not a run directory: {error}") from None
    return list(found["backends"]), str(found["engine"])


def read_facts(path: Path) -> dict[str, Any]:
    """run.json of a run directory as it stands. ConfigError where it does not hold what a report tells."""
    return _checked(path / "run.json", _Facts)


def _checked(file: Path, kind: type[msgspec.Struct]) -> dict[str, Any]:
    """A JSON object that has the shape of `kind`, whatever else is in it."""
    found = read_json(file)
    try:
        msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file}: not as gatescope writes it: {error}") from None
    return found


class About(msgspec.Struct, frozen=True, kw_only=True):
    """The part of run.json that rules on resume, whatever experiments.toml says by then."""

    config: Config
    engine_kind: Literal["vllm", "builtin"]
    runs: list[Run]


def read_about(path: Path) -> About:
    """run.json of a run directory. ConfigError where it is not one."""
    raw = read_json(path / "run.json")
    try:
        return msgspec.convert(raw, About, dec_hook=_path)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path / 'run.json'}: does not say what was run: {error}") from None


def _path(kind: type[Path], value: Any) -> Path:
    """What is no JSON type in a config is a path, written as a text."""
    if not isinstance(value, str):
        raise ValueError(f"Expected a path, got {value!r}")
    return kind(value)


def formatted(value: Any) -> bytes:
    """JSON as it stands in files: indented, with a newline at its end."""
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=1) + b"\n"


def write_whole(file: Path, data: bytes) -> None:
    """Write under a temporary name and rename: `file` is whole or not there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(file.name + ".tmp")
    with _or_nothing(temporary):
        with open(temporary, "wb", opener=_private) as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, file)


@contextlib.contextmanager
def _or_nothing(temporary: Path) -> Iterator[None]:
    """What could not be written whole takes no room on a full disk."""
    try:
        yield
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _private(name: str, flags: int) -> int:
    """Opens for the owner only: run.json holds the servers' environment."""
    return os.open(name, flags, 0o600)


def _is_inside(folder: Path, name: str) -> bool:
    """Whether the path that a journal names stays in its run directory."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def _is_whole(file: Path) -> bool:
    try:
        read_json(file)
    except ConfigError:
        return False
    return True
