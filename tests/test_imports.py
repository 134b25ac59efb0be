"""Import hygiene: which packages a part of gatescope may load, and when. The contracts in
pyproject.toml say which modules may import which."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from core.cli import COMMANDS

ROOT = Path(__file__).parents[1]
HEAVY = ("matplotlib", "scipy", "plotext", "sentencepiece", "mistral_common", "textual", "tui")


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def module(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_by(file: Path) -> set[str]:
    """Every top-level package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def loaded_after(code: str) -> set[str]:
    """Top-level packages in sys.modules once a fresh interpreter has run `code`."""
    listed = "print(json.dumps([name for name, module in sys.modules.items() if module]))"
    program = f"import sys, json\n{code}\n{listed}"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_importing_all_of_core_loads_nothing_heavy() -> None:
    """All but the modules that run inside another process (vLLM's), and the one that needs the
    extra gatescope[predict]."""
    files = [f for f in sources("core") if f.stem != "transformers_stack"]
    names = [module(f) for f in files if "recorder" not in f.parts]
    loaded = loaded_after("\n".join(f"import {name}" for name in names))
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["--batc"], *([name, "--help"] for name in COMMANDS)]
)
def test_help_and_usage_errors_load_the_standard_library_only(arguments: list[str]) -> None:
    code = f"from core import cli\ntry: cli.main({arguments!r})\nexcept SystemExit: pass"
    third_party = loaded_after(code) - loaded_after("") - set(sys.stdlib_module_names)
    assert third_party <= {"core"}


def test_a_command_is_imported_only_when_it_is_given() -> None:
    program = (
        "import sys\nfrom core import cli\ntry: cli.main(['init', '--help'])\n"
        "except SystemExit: pass\n"
        "print(*(name for name in sys.modules if name.startswith('core.commands.')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = {name.rpartition(".")[2] for name in done.stdout.splitlines()[-1].split()}
    assert loaded == {"arguments", "experiment", "init"}


@pytest.mark.parametrize(
    "arguments",
    [["predict", "none.jsonl"], ["--batch", "--config", "none.toml"], ["plot", "none"], ["init"]],
)
def test_a_mistake_is_reported_without_loading_what_the_work_needs(arguments: list[str]) -> None:
    assert not loaded_after(f"from core import cli\ncli.main({arguments!r})") & set(HEAVY)


@pytest.mark.parametrize("file", sources("core/recorder"), ids=module)
def test_the_recorder_needs_only_what_every_vllm_environment_has(file: Path) -> None:
    allowed = {
        "gatescope_recorder",
        "numpy",
        "torch",
        "triton",
        "vllm",
        "zstandard",
        *sys.stdlib_module_names,
    }
    assert imported_by(file) <= allowed


@pytest.mark.parametrize("file", sources("core/builtin"), ids=module)
def test_the_built_in_engine_stands_alone(file: Path) -> None:
    """It shares the gate log's writer with vLLM's recorder, and nothing with the measuring side."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "core":
            assert node.module.split(".")[1:2] in (["builtin"], ["recorder"])


def test_datasets_hold_no_code() -> None:
    """A package of that name would shadow Hugging Face's `datasets` when Python starts here."""
    assert not sources("datasets")


def test_the_screen_paints_before_anything_heavy_is_loaded() -> None:
    """A first paint takes as long as its imports."""
    loaded = loaded_after("import tui.app")
    assert not loaded & {"numpy", "scipy", "plotext", "matplotlib", "psutil", "httpx"}
