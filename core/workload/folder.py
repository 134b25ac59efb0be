"""The folder that drawn datasets are written to.

`{index:03d}_{score:.4f}.jsonl`, one {"id", "text", "category"} a line, and `metadata.json` beside
them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.workload.generator import Dataset

_METADATA = "metadata.json"


def write(datasets: Sequence[Dataset], folder: Path) -> list[Path]:
    """Write `datasets` and their metadata to `folder`, replacing what an earlier call wrote there.

    No file is ever half-written. ValueError where the folder holds datasets that its metadata.json
    does not list: those came from somewhere else, and nothing is touched. Other files stay as they
    are.
    """
    contents = {dataset.file: _lines(dataset) for dataset in datasets}
    if len(contents) != len(datasets):
        raise ValueError("two datasets have the same index and score, so the same file name")
    before = _listed(folder)
    own = {entry["file"] for entry in before}
    _refuse_foreign(folder, own)
    folder.mkdir(parents=True, exist_ok=True)
    after = [_entry(dataset) for dataset in datasets]
    # Listing both sets first keeps every file owned if this stops half-way: the next call then
    # cleans up.
    _write_metadata(folder, [*after, *(entry for entry in before if entry["file"] not in contents)])
    for name, content in contents.items():
        _replace(folder / name, content)
    for path in folder.glob("*.jsonl"):
        if path.name in own - contents.keys():
            path.unlink()
    _write_metadata(folder, after)
    return [folder / name for name in contents]


def _lines(dataset: Dataset) -> str:
    rows = ({"id": p.id, "text": p.text, "category": p.category} for p in dataset.prompts)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _entry(dataset: Dataset) -> dict[str, Any]:
    return {
        "index": dataset.index,
        "file": dataset.file,
        "score": round(
            dataset.score, 12
        ),  # the last bits differ between processors; the file must not
        "strategy": dataset.strategy,
        "domains": list(dataset.domains),
        "queries": len(dataset.prompts),
        "seed": dataset.seed,
    }


def _listed(folder: Path) -> list[dict[str, Any]]:
    """The entries of the folder's metadata.json; none where it has no such file."""
    file = folder / _METADATA
    if not file.exists():
        return []
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not a JSON file in UTF-8: {error}") from error
    if not isinstance(entries, list) or not all(map(_names_a_file, entries)):
        raise ValueError(f"{file}: not written by gatescope generate; choose another folder")
    return entries


def _refuse_foreign(folder: Path, own: Collection[str]) -> None:
    foreign = sorted(path.name for path in folder.glob("*.jsonl") if path.name not in own)
    if foreign:
        raise ValueError(
            f"{folder} holds {len(foreign)} dataset(s) that its {_METADATA} does not list, "
            f"{foreign[0]} first: move them away, or choose another folder"
        )


def _write_metadata(folder: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    _replace(folder / _METADATA, json.dumps(entries, ensure_ascii=False, indent=1) + "\n")


def _replace(file: Path, content: str) -> None:
    """Write under a temporary name in the same folder, then rename: readers see the old file or the
    new."""
    temporary = file.with_name(".generate.tmp")
    try:
        temporary.write_bytes(content.encode("utf-8"))
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _names_a_file(entry: object) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("file"), str)
