"""The cells of a sweep: each is one server configuration, with all that it is sent."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from core.errors import ConfigError
from core.experiment import config, sweep
from core.experiment.config import Config
from core.experiment.sweep import NAME, Settings, Sweep

ODD = re.compile(r"[^A-Za-z0-9._=+-]+")
LONGEST = 120  # characters of a folder's name


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """`slug` names its folder; `settings` are the swept keys that concern it; `config` has its one
    backend alone, and the engine and the starts that it is run with. `base`: the cell whose load is
    searched, of which this is a point."""

    slug: str
    settings: Settings
    config: Config
    base: str = ""

    @property
    def backend(self) -> str:
        return self.config.backends[0].name

    @property
    def server(self) -> bytes:
        """What its server is; the same for cells that one start can serve."""
        own = self.config.experiment
        asked = (own.engine, own.seed, own.strict, self.config.model, self.config.backends)
        return msgspec.json.encode((*asked, self.config.dose, self.config.replays))

    @property
    def starts(self) -> int:
        starts = self.config.experiment.starts
        return 1 if starts == "auto" else starts


def of_sweep(path: Path, table: Sweep, base: Settings, backends: Sequence[str] = ()) -> list[Cell]:
    """The cells of the config file at `path`, each once: a combination makes one of every backend
    (or of those that are named), and what does not concern a backend does not multiply it.
    `base`: settings of all cells. ConfigError as `config.load`, with the combination's name."""
    cells: dict[tuple[str, str], Cell] = {}
    for settings in sweep.combinations(table):
        whole = _loaded(path, base, settings)
        for backend in whole.backends:
            own = {key: v for key, v in settings.items() if sweep.concerns(key, backend.name)}
            key = (backend.name, repr(sorted(own.items())))
            if key in cells or (backends and backend.name not in backends):
                continue
            slug = _free(slug_of(backend.name, own), [cell.slug for cell in cells.values()])
            alone = msgspec.structs.replace(
                whole, backends=(backend,), sweep=None, search=None, cluster=None
            )
            cells[key] = Cell(slug=slug, settings=own, config=alone)
    return list(cells.values())


def on_one_node(cells: Sequence[Cell], pair: Literal["node", "none"]) -> list[list[Cell]]:
    """The cells that one task of a cluster runs: with "node" all backends of a combination, so that
    they are compared on one machine; a key of one backend does not part it from the others."""
    if pair == "none":
        return [[cell] for cell in cells]
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        own = f"backends.{cell.backend}."
        shared = sorted((k, v) for k, v in cell.settings.items() if not k.startswith(own))
        groups.setdefault(repr(shared), []).append(cell)
    return list(groups.values())


def slug_of(backend: str, settings: Settings) -> str:
    """`baseline,max_num_seqs=8`; `tp4-baseline` for a cell with a name."""
    named = f"{settings[NAME]}-{backend}" if NAME in settings else backend
    values = [f"{sweep.short(k)}={shown(v)}" for k, v in settings.items() if k != NAME]
    return ",".join(ODD.sub("-", part) for part in (named, *values))[:LONGEST]


def shown(value: object) -> str:
    """A setting's value in words: `true`, `8`, `triton`."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def order(cells: Sequence[Cell], start: int, seed: int) -> list[Cell]:
    """The order in which the cells are given their start of that number: those of one server
    together, else drawn from the seed for every two starts, and the other way round at the second,
    so that a steady drift over time affects all cells alike."""
    draw = random.Random(f"{seed}/sweep/{(start + 1) // 2}")
    by_server: dict[bytes, list[Cell]] = {}
    for cell in cells:
        by_server.setdefault(cell.server, []).append(cell)
    groups = list(by_server.values())
    draw.shuffle(groups)
    for group in groups:
        draw.shuffle(group)
    drawn = [cell for group in groups for cell in group]
    return drawn if start % 2 else drawn[::-1]


def _loaded(path: Path, base: Settings, settings: Settings) -> Config:
    try:
        return config.load(path, {**base, **settings})
    except ConfigError as error:
        named = ", ".join(f"{k} = {shown(v)}" for k, v in settings.items())
        raise ConfigError(
            f"{error}\n{path}: [sweep]: that is of the combination {named}; exclude it, or change"
            " its values"
        ) from None


def _free(slug: str, taken: Sequence[str]) -> str:
    """`slug`, numbered where another has it, also where file names ignore case."""
    same = [one.lower() for one in taken]
    tries = [slug, *(f"{slug}-{n}" for n in range(2, len(same) + 3))]
    return next(one for one in tries if one.lower() not in same)
