"""Where gate logs lie: in a folder, in its folders, or in both; and what is meant to be a gate log
there but cannot be read as one."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from core.routing import upstream
from core.routing.folder import start_of

MEANT = re.compile(r"gates?_logs?|.*\.gatelog", re.IGNORECASE)
BESIDE = (
    ".gatelog.json",
    ".gatelog.about.json",
    ".eplb.jsonl",
)  # what the recorder writes beside its logs
DIGITS = re.compile(r"(\d+)")


def find(folder: Path) -> tuple[list[Path], list[str]]:
    """The folders to read, `folder` among them if it holds gate logs itself, by server start and
    number; and a sentence for everything that is meant to be a gate log and is in none of them."""
    inner = [place for place in _shown(folder) if place.is_dir()]
    inner.sort(key=lambda place: (start_of(place), _natural(place.name)))
    meant = [place for place in inner if _is_meant(place)]
    places = [folder, *meant] if holds_logs(folder) else meant
    deeper = [
        f"{place}: holds no gate log itself, but its folders do; measure it by itself"
        for place in inner
        if place not in meant and any(holds_logs(p) for p in _shown(place) if p.is_dir())
    ]
    return places, [*deeper, *_shared(meant), *_unread({folder, *places})]


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


def _is_meant(place: Path) -> bool:
    """An empty folder beside others is one whose logs were lost or never written."""
    return holds_logs(place) or bool(MEANT.match(place.name)) or not any(place.iterdir())


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
    """The files of these folders that are named like gate logs and are none that can be read."""
    return [
        f"{file}: not read: gate logs are *.gatelog and gate_logs_<layer>.json, or .json.gz;"
        " unpack, rename or remove it"
        for folder in sorted(folders)
        for file in sorted(_shown(folder))
        if file.is_file()
        and MEANT.match(file.name)
        and file.suffix != ".gatelog"
        and not file.name.endswith(BESIDE)
        and not upstream.LAYER_FILE.fullmatch(file.name)
    ]


def _shown(folder: Path) -> list[Path]:
    """What is in a folder, without the hidden files and __MACOSX that a copy from a Mac brings."""
    return [p for p in folder.iterdir() if not p.name.startswith(".") and p.name != "__MACOSX"]


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts gates_logs_2 before gates_logs_10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in DIGITS.split(name)]
