"""The folder of generated datasets.

Each dataset is `{index:03d}_{score:.4f}.jsonl` with one {"id", "text", "category"} per line;
`metadata.json` lists them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import FileError
from core.workload.generator import Drawn

_METADATA = "metadata.json"
SHOWN = 5  # names in an error


def write(datasets: Sequence[Drawn], folder: Path, *, replace: bool = False) -> list[Path]:
    """Write `datasets` and their metadata to `folder`; with `replace`, in place of what an earlier
    call wrote there.

    No file is ever half-written, and other files stay. FileError, before anything is written, if
    the folder holds datasets that its metadata.json does not list: they came from somewhere else;
    or if files would be lost, and not `replace`.
    """
    contents = {dataset.file: _lines(dataset) for dataset in datasets}
    if len(contents) != len(datasets):
        raise ValueError("two datasets have the same index and score, so the same file name")
    before = _listed(folder)
    own = {entry["file"] for entry in before}
    _refuse_foreign(folder, own)
    if not replace:
        _refuse_loss(folder, own, contents)
    folder.mkdir(parents=True, exist_ok=True)
    after = [_entry(dataset) for dataset in datasets]
    # Both sets are listed first: should this stop half-way, the next call knows every file and
    # cleans up.
    _write_metadata(folder, [*after, *(entry for entry in before if entry["file"] not in contents)])
    for name, content in contents.items():
        _replace(folder / name, content)
    for path in folder.glob("*.jsonl"):
        if path.name in own - contents.keys():
            path.unlink()
    _write_metadata(folder, after)
    return [folder / name for name in contents]


def _lines(dataset: Drawn) -> str:
    rows = ({"id": p.id, "text": p.text, "category": p.category} for p in dataset.prompts)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _entry(dataset: Drawn) -> dict[str, Any]:
    aimed = {} if dataset.excess_cv is None else {"excess_cv": round(dataset.excess_cv, 6)}
    return {
        "index": dataset.index,
        "file": dataset.file,
        # The last bits differ between processors; the file must not.
        "score": round(dataset.score, 12),
        "strategy": dataset.strategy,
        "domains": list(dataset.domains),
        "queries": len(dataset.prompts),
        "seed": dataset.seed,
        **aimed,
    }


def _listed(folder: Path) -> list[dict[str, Any]]:
    """The entries of the folder's metadata.json; empty if there is no such file."""
    file = folder / _METADATA
    if not file.exists():
        return []
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FileError(f"{file}: not a JSON file in UTF-8: {error}") from None
    if not isinstance(entries, list) or not all(map(_names_a_file, entries)):
        raise FileError(f"{file}: not written by gatescope generate; choose another folder")
    return entries


def _refuse_foreign(folder: Path, own: Collection[str]) -> None:
    foreign = sorted(path.name for path in folder.glob("*.jsonl") if path.name not in own)
    if foreign:
        number = "1 dataset" if len(foreign) == 1 else f"{len(foreign)} datasets"
        raise FileError(
            f"{folder} holds {number} not listed in its {_METADATA}, starting with {foreign[0]}; "
            "move what is not listed, or choose another folder"
        )


def _refuse_loss(folder: Path, own: Collection[str], contents: Mapping[str, str]) -> None:
    """FileError where an earlier dataset would be removed, or get another content."""
    lost = sorted(
        path.name
        for path in folder.glob("*.jsonl")
        if path.name in own
        and (path.name not in contents or path.read_bytes() != contents[path.name].encode())
    )
    if lost:
        more = f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else ""
        number = "1 dataset" if len(lost) == 1 else f"{len(lost)} datasets"
        raise FileError(
            f"{folder}: this would remove {number} of an earlier call:"
            f" {', '.join(lost[:SHOWN])}{more}; --replace does so, --out takes another folder"
        )


def _write_metadata(folder: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    _replace(folder / _METADATA, json.dumps(entries, ensure_ascii=False, indent=1) + "\n")


def _replace(file: Path, content: str) -> None:
    """Write under a temporary name in the same folder, then rename: readers see the old file or the
    new one."""
    temporary = file.with_name(".generate.tmp")
    try:
        temporary.write_bytes(content.encode("utf-8"))
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _names_a_file(entry: object) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("file"), str)
