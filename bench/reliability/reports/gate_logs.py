"""Line B11: odd folders of gate logs in the older layout, and line C4: those of a run directory."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench.reliability.reports.case import Case, gatescope, wrong

Layer = dict[str, Any]
STEPS = 40


def layer(experts: int = 8, tokens: int = 32, steps: int = STEPS) -> Layer:
    """A layer of a fair top-2 router."""
    rng = random.Random(1)
    rows = [[0] * experts for _ in range(steps)]
    for row in rows:
        for _ in range(tokens):
            for expert in rng.sample(range(experts), 2):
                row[expert] += 1
    return {"step": [*range(steps)], "num_tokens": [tokens] * steps, "expert_loads": rows}


def write(folder: Path, layers: int = 3) -> Path:
    folder.mkdir(parents=True)
    for number in range(layers):
        (folder / f"gate_logs_{number}.json").write_text(json.dumps(layer()))
    return folder


def measured(make: Callable[[Path], object], said: str, layers: Sequence[int], place: Path) -> str:
    """What `make` puts beside or into a folder of three good layers is named by the words `said`
    with exit code 1; or, if those are empty or a verdict, read with 0. `layers`: of each folder
    that is measured."""
    code = 1 if said and not said.startswith("INVALID") else 0
    write(place / "gates_logs_1")
    make(place)
    answer = gatescope(place, "imbalance", ".", "--json")
    found = answer.data or {}
    facts = {
        f"exit code {code}": answer.code == code,
        f"stderr has {said!r}": said in answer.err,
        f"layers {[*layers]}": sorted(m["layers"] for m in found.values()) == sorted(layers),
    }
    return wrong(facts, answer)


def changed(number: int = 1, **values: Any) -> Callable[[Path], object]:
    """Other values in one layer's file."""

    def make(place: Path) -> None:
        file = place / "gates_logs_1" / f"gate_logs_{number}.json"
        file.write_text(json.dumps({**layer(), **values}))

    return make


def loads(edit: Callable[[list[list[Any]]], object]) -> Callable[[Path], object]:
    rows = layer()["expert_loads"]
    edit(rows)
    return changed(expert_loads=rows)


def one_load(value: float) -> Callable[[Path], object]:
    return loads(lambda rows: rows[3].__setitem__(2, value))


def as_bytes(convert: Callable[[bytes], bytes], suffix: str = "") -> Callable[[Path], object]:
    def make(place: Path) -> None:
        file = place / "gates_logs_1" / "gate_logs_1.json"
        data = convert(file.read_bytes())
        file.unlink()
        file.with_name(file.name + suffix).write_bytes(data)

    return make


def renamed(name: str) -> Callable[[Path], object]:
    folder = Path("gates_logs_1")
    return lambda place: (place / folder / "gate_logs_1.json").rename(place / folder / name)


def a_mac(place: Path) -> None:
    (place / ".DS_Store").write_bytes(b"x")
    (place / "gates_logs_1" / "._gate_logs_0.json").write_bytes(b"\0\5")
    (place / "__MACOSX" / "gates_logs_1").mkdir(parents=True)


def a_dead_link(place: Path) -> None:
    (place / "gates_logs_1" / "gate_logs_3.json").symlink_to(place / "gone.json")


def a_second_layer_1(place: Path) -> None:
    other = json.dumps({**layer(), "num_tokens": [31] * STEPS})
    (place / "gates_logs_1" / "gate_logs_01.json").write_text(other)


def stray_files(place: Path) -> None:
    for file in (place / "gates_logs_1").iterdir():
        shutil.copy(file, place / file.name)


def more_folders(*names: str) -> Callable[[Path], object]:
    return lambda place: [write(place / name) for name in names]


def every_load(convert: Callable[[int], object]) -> Callable[[Path], object]:
    return loads(lambda rows: [row.__setitem__(slice(None), map(convert, row)) for row in rows])


def each_as_an_object(rows: list[Any]) -> None:
    rows[:] = [{str(e): v for e, v in enumerate(row)} for row in rows]


def nested(place: Path) -> None:
    (place / "exp/run1").mkdir(parents=True)
    (place / "gates_logs_1").rename(place / "exp/run1/gates_logs_1")


FOLDERS: list[tuple[str, Callable[[Path], object], str, Sequence[int]]] = [
    ("plain", lambda place: None, "", [3]),
    ("an empty folder", lambda place: (place / "gates_logs_2").mkdir(), "gates_logs_2: holds", [3]),
    (
        "two folders of a dataset",
        lambda p: write(p / "gates_logs_01"),
        "2 folders",
        [3, 3],
    ),
    ("a layer twice", a_second_layer_1, "layer 1 is in 2 files", [2]),
    (
        "a missing middle layer",
        lambda place: (place / "gates_logs_1" / "gate_logs_1.json").unlink(),
        "no log of layer 1",
        [2],
    ),
    (".JSON", renamed("gate_logs_1.JSON"), "", [3]),
    (".json.gz", as_bytes(gzip.compress, ".gz"), "", [3]),
    ("an odd first layer", changed(0, **layer(experts=6)), "most layers have 8", [2]),
    ("an odd layer", changed(1, **layer(experts=6)), "most layers have 8", [2]),
    ("stray files", stray_files, "", [3, 3]),
    ("a Mac's files", a_mac, "", [3]),
    ("no content", as_bytes(lambda data: b""), "gate_logs_1.json: not a readable", [2]),
    ("cut off", as_bytes(lambda data: data[:200]), "gate_logs_1.json: not a readable", [2]),
    ("byte order mark", as_bytes(lambda data: b"\xef\xbb\xbf" + data), "", [3]),
    ("UTF-16", as_bytes(lambda data: data.decode().encode("utf-16")), "", [3]),
    ("NaN", one_load(float("nan")), "negative, not finite", [2]),
    ("negative", one_load(-4), "negative, not finite", [2]),
    ("huge", one_load(10**30), "negative, not finite", [2]),
    ("fractions of tokens", changed(num_tokens=[32.9] * STEPS), "whole numbers", [2]),
    ("true for a count", changed(num_tokens=[True] * STEPS), "true and false", [2]),
    ("text for a count", changed(num_tokens=["32"] * STEPS), "", [3]),
    ("fractions of loads", every_load(lambda v: v / 2), "INVALID sums of loads", [3]),
    ("texts for loads", every_load(str), "", [3]),
    ("objects for loads", loads(each_as_an_object), "gate_logs_1.json: not a readable", [2]),
    ("killed while it wrote", changed(**layer(steps=STEPS - 1)), "", [3]),
    ("one step", lambda place: [changed(n, **layer(steps=1))(place) for n in range(3)], "", [3]),
    (
        "no tokens",
        lambda place: [changed(n, **layer(tokens=0))(place) for n in range(3)],
        "no step with tokens",
        [],
    ),
    ("datasets 1, 2 and 10", more_folders("gates_logs_2", "gates_logs_10"), "", [3, 3, 3]),
    ("runs two folders below", nested, "as in exp/run1/gates_logs_1; give exp/run1 itself", []),
    ("another folder", lambda place: (place / "exp/a").mkdir(parents=True), "exp: not read", [3]),
    ("logs far below", lambda p: write(p / "a/b/c/gates_logs_2"), "a: not read: gate logs", [3]),
    ("a hidden folder with logs", lambda p: write(p / ".old"), ".old: not read: its name", [3]),
    ("a hidden folder", lambda place: (place / ".git/objects").mkdir(parents=True), "", [3]),
    ("a link that leads nowhere", a_dead_link, "gate_logs_3.json: not read", [3]),
    ("a half copy", renamed(".gate_logs_1.json.Xa3f9Q"), "Xa3f9Q: not read", [2]),
    ("ragged", loads(lambda rows: rows[3].pop()), "not a readable", [2]),
    ("named like a log", renamed("gate_logs_x.json"), "gate_logs_x.json: not read", [2]),
]
CASES = [
    Case("B11", name, partial(measured, make, said, layers)) for name, make, said, layers in FOLDERS
]
