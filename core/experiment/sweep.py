"""[sweep]: which settings are varied, and the combinations of values that it asks for."""

from __future__ import annotations

import copy
import itertools
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from core.errors import ConfigError

Settings = dict[str, Any]
"""Key ("backends.*.max_num_seqs", "experiment.request_rate") → value."""
TABLES = ("experiment", "model", "backends")
EVERY = "*"  # in place of a backend's name
NAME = "name"  # of a listed cell; a key of no table
Axes = dict[str, Any]  # key → its values; TOML's dotted keys stand as tables in tables


class Until(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A cell is given another start until the 95 % interval of `metric` reaches at most
    `half_width_pct` to either side of its value, or it has had `max_starts`."""

    metric: str = "mean_tpot_ms"
    half_width_pct: Annotated[float, Meta(gt=0, le=100)] = 2.0
    max_starts: Annotated[int, Meta(ge=2, le=1000)] = 6


class Sweep(msgspec.Struct, frozen=True, kw_only=True):
    """[sweep]. Where several of `grid`, `zip` and `cells` are given, each combination of one is
    run with each of the others."""

    grid: Axes = {}  # every value with every other
    zip: Axes = {}  # the first values together, then the second ones, …
    cells: list[Settings] = []  # as they stand; `name` begins the cell's name
    exclude: list[Settings] = []  # combinations that are left out
    until: Until | None = None


def combinations(table: Sweep) -> list[Settings]:
    """The settings of every combination, in order. ConfigError for a table that names none."""
    axes, rows = flat(table.grid), flat(table.zip)
    _check(table, axes, rows)
    grid = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    zipped = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
    made = [
        {**flat(cell), **of_grid, **of_zip}
        for cell in table.cells or [{}]
        for of_grid, of_zip in itertools.product(grid, zipped or [{}])
    ]
    excluded = [flat(one) for one in table.exclude]
    kept = [one for one in made if not any(_holds(one, out) for out in excluded)]
    if not kept:
        raise ConfigError("[sweep]: no combination is left; exclude fewer")
    return kept


def flat(settings: Settings) -> Settings:
    """Dotted keys instead of tables in tables."""
    found: Settings = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            found |= {f"{key}.{inner}": own for inner, own in flat(value).items()}
        else:
            found[key] = value
    return found


def concerns(key: str, backend: str) -> bool:
    """Whether a setting changes what that backend's server is, or what it is sent."""
    table, _, rest = key.partition(".")
    return table != "backends" or rest.startswith((f"{EVERY}.", f"{backend}."))


def short(key: str) -> str:
    """`max_num_seqs` of `backends.*.max_num_seqs`."""
    return key.rpartition(".")[2]


def apply(raw: dict[str, Any], settings: Settings) -> None:
    """Put `settings` in place of the values of a config file's tables. ConfigError for a key of no
    table, or of a backend that is not there."""
    for key, value in settings.items():
        for table, rest in _tables(raw, key) if key != NAME else ():
            *path, last = rest.split(".")
            holder = table
            for step in path:
                holder = holder.setdefault(step, {})
                if not isinstance(holder, dict):
                    raise ConfigError(f"{key}: {step} is no table, so it has no {last}")
            holder[last] = copy.deepcopy(value)


def _tables(raw: dict[str, Any], key: str) -> list[tuple[dict[str, Any], str]]:
    """The tables that hold a key, each with what is left of the key in it."""
    table, _, rest = key.partition(".")
    if table not in TABLES or not rest:
        raise ConfigError(
            f"{key}: expected a key such as experiment.request_rate, model.max_model_len,"
            " backends.baseline.max_num_seqs or backends.*.max_num_seqs"
        )
    if table != "backends":
        return [(raw, f"{table}.{rest}")]
    backends = [one for one in raw.get("backends", []) if isinstance(one, dict)]
    found = [
        (one, rest.removeprefix(f"{name}."))
        for one in backends
        for name in (EVERY, str(one.get(NAME)))
        if rest.startswith(f"{name}.")
    ]
    if not found or found[0][1] == NAME:
        known = ", ".join(str(one.get(NAME)) for one in backends)
        raise ConfigError(
            f"{key}: expected backends.NAME.KEY, with * or one of {known} as the name,"
            " and no key that is the name itself"
        )
    return found


def _check(table: Sweep, grid: Axes, rows: Axes) -> None:
    if not grid and not rows and not table.cells:
        raise ConfigError(
            "[sweep]: expected grid, zip or cells, got none of them; or name values with"
            " --set KEY=V1,V2"
        )
    for kind, axes in (("grid", grid), ("zip", rows)):
        for key, values in axes.items():
            if not isinstance(values, list) or not values:
                raise ConfigError(f"[sweep], {kind}, {key}: expected a list with a value or more")
    lengths = {key: len(values) for key, values in rows.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{key} has {count}" for key, count in lengths.items())
        raise ConfigError(f"[sweep], zip: expected lists of one length; {shown}")


def _holds(settings: Settings, part: Settings) -> bool:
    return all(key in settings and settings[key] == value for key, value in part.items())
