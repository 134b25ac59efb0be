"""Where gate logs lie: in a folder, in its folders, or in both; and what is meant to be a gate log
there but cannot be read as one."""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from core.routing import upstream
from core.routing.folder import start_of

MEANT = re.compile(r"gates?_logs?|.*\.gatelog", re.IGNORECASE)
BESIDE = (
    ".gatelog.json",
    ".gatelog.about.json",
    ".eplb.jsonl",
)  # what the recorder writes beside its logs
RESULTS = ("results_json", "requests", "graphs")  # what a run writes beside its gate logs
DIGITS = re.compile(r"(\d+)")


def find(folder: Path) -> tuple[list[Path], list[str]]:
    """The folders to read, `folder` among them if it holds gate logs itself, by server start and
    number; and a sentence for everything else in `folder` that is, or may be, gate logs. OSError if
    `folder` cannot be read."""
    inner, problems = _readable(place for place in folder.iterdir() if place.is_dir())
    inner.sort(key=lambda place: (start_of(place), _natural(place.name)))
    meant = [place for place in inner if _is_meant(place)]
    places = [folder, *meant] if holds_logs(folder) else meant
    others = [place for place in inner if place not in meant]
    problems += filter(None, (_passed(place, beside=bool(places)) for place in others))
    return places, [*problems, *_shared(meant), *_unread({folder, *places})]


def foreign(run_dir: Path, backends: Sequence[str]) -> list[str]:
    """A sentence for each folder of a run directory with gate logs that are not the run's own; its
    export holds copies."""
    own = (*backends, *RESULTS, "export", "replay")
    others = [p for p in run_dir.iterdir() if p.is_dir() and p.name not in own]
    return [*filter(None, (_passed(place, beside=False) for place in sorted(others)))]


def holds_logs(folder: Path) -> bool:
    return any(
        file.suffix == ".gatelog" or file.name.lower().startswith("gate_logs_")
        for file in _shown(folder)
        if file.is_file()
    )


def all_in(folder: Path) -> list[Path]:
    """Every folder with binary logs: `folder` itself, in it (as `gatescope record` makes them), or
    in a run directory's backends."""
    places = [folder, *folder.glob("gate_logs*"), *folder.glob("*/gate_logs*")]
    return sorted(place for place in places if any(place.glob("*.gatelog*")))


def _readable(folders: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """Those whose names can be listed, and why the others cannot."""
    found, problems = [], []
    for place in folders:
        try:
            next(place.iterdir(), None)
            found.append(place)
        except OSError as error:
            problems.append(f"{place}: cannot be read: {error.strerror}")
    return found, problems


def _is_meant(place: Path) -> bool:
    """An empty folder beside others is one whose logs were lost or never written."""
    if _is_hidden(place):
        return False
    return holds_logs(place) or bool(MEANT.match(place.name)) or not any(place.iterdir())


def _passed(place: Path, *, beside: bool) -> str:
    """Why a folder is not read; empty where it is known to hold no gate logs. `beside`: gate logs
    are beside it, so that it may be meant to hold some."""
    if logs := _first_below(place):
        if _is_hidden(place):
            return f"{place}: not read: its name hides it, but it holds gate logs; rename it"
        if logs == place:
            return f"{place}: not read: no backend of this run wrote it; give it itself"
        return f"{place}: not read: gate logs lie deeper, as in {logs}; give {logs.parent} itself"
    if not beside or _is_hidden(place) or place.name in RESULTS:
        return ""
    return f"{place}: not read: it holds no gate logs; move it elsewhere"


def _first_below(place: Path) -> Path | None:
    """The first folder with gate logs: `place`, or one up to three folders below it."""
    below = (sorted(place.glob(pattern)) for pattern in ("*", "*/*", "*/*/*"))
    for found in (place, *chain.from_iterable(below)):
        with contextlib.suppress(OSError):
            if found.is_dir() and holds_logs(found):
                return found
    return None


def _shared(folders: list[Path]) -> list[str]:
    """Folders of upstream's layout that name one dataset twice, as gates_logs_3 and gates_logs_03
    do."""
    by_label: dict[str, list[Path]] = defaultdict(list)
    for place in folders:
        if upstream.layer_files(place):
            by_label[upstream.label(place.name)].append(place)
    return [
        f"{', '.join(str(place) for place in same)}: {len(same)} folders of dataset {label};"
        " rename or remove one"
        for label, same in by_label.items()
        if len(same) > 1
    ]


def _unread(folders: set[Path]) -> list[str]:
    """The files of these folders that are named like gate logs and are none that can be read, among
    them half copies (.gate_logs_1.json.Xa3f9Q) and links that lead nowhere."""
    return [
        f"{file}: not read: gate logs are *.gatelog and gate_logs_<layer>.json, or .json.gz;"
        " unpack, rename or remove it"
        for folder in sorted(folders)
        for file in sorted(folder.iterdir())
        if not file.is_dir()
        and not file.name.startswith("._")
        and MEANT.match(file.name.removeprefix("."))
        and not file.name.endswith(BESIDE)
        and not (file.is_file() and _is_log(file.name))
    ]


def _is_log(name: str) -> bool:
    is_binary = name.endswith(".gatelog") and not name.startswith(".")
    return is_binary or bool(upstream.LAYER_FILE.fullmatch(name))


def _shown(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if not _is_hidden(p)]


def _is_hidden(place: Path) -> bool:
    """Hidden files and folders, and the __MACOSX that a copy from a Mac brings."""
    return place.name.startswith(".") or place.name == "__MACOSX"


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts gates_logs_2 before gates_logs_10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in DIGITS.split(name)]
