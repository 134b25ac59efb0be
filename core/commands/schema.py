"""`gatescope schema`: JSON Schema of the files that people and other tools read or write."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

TITLES = {
    "config": "gatescope: experiments.toml",
    "result": "gatescope: results_json/<label>.json",
    "run": "gatescope: run.json",
}
KEY = re.compile(r"(?:# )?(\w+) = .*?  # (.+)$")
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        nargs="?",
        choices=tuple(TITLES),
        default="config",
        help="experiments.toml, a result file, or run.json (default: config)",
    )


def run(arguments: argparse.Namespace) -> int:
    print(text(arguments.file), end="")
    return 0


def text(name: str) -> str:
    """The schema of a file of TITLES, as JSON text."""
    import msgspec

    from core.experiment.tables import Document
    from core.rundir.about import About
    from core.rundir.result import Result

    kinds = {"config": Document, "result": Result, "run": About}
    schema = msgspec.json.schema(kinds[name], schema_hook=_path)
    if name == "config":
        _complete(schema["$defs"])
    whole = {"$schema": DIALECT, "title": TITLES[name], **schema}
    written = json.dumps(whole, indent=1, ensure_ascii=False)
    return written.replace(r"\\Z", "$") + "\n"  # Python's end of text, JSON Schema's


def _path(kind: type) -> dict[str, Any]:
    """msgspec's schema_hook: a path is written as a string."""
    if not issubclass(kind, Path):
        raise NotImplementedError(kind)
    return {"type": "string", "format": "path"}


def _complete(definitions: dict[str, Any]) -> None:
    """Let editors mark unknown keys, and show what the comment of a key in our own experiments.toml
    says."""
    from core.workload import starter

    lines = (starter.root() / "experiments.toml").read_text(encoding="utf-8").splitlines()
    comments = {found[1]: found[2] for line in lines if (found := KEY.match(line))}
    for definition in definitions.values():
        definition["additionalProperties"] = False
        for key, value in definition["properties"].items():
            if key in comments and "$ref" not in value:
                value["description"] = comments[key]
