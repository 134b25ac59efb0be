"""The pages name what is there: every key, rule, command and binding, and links that lead
somewhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec
import pytest
from textual.binding import Binding

from core import cli
from core.experiment import cluster, search, sweep, tables
from core.validity import problem, verdict
from tui import actions
from tui.widgets.pane import Pane
from tui.widgets.plots import Plots

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
ROW = re.compile(r"^\| `(\w+)` \| (.+?) \|", re.MULTILINE)


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_readme_is_short_and_has_the_two_commands() -> None:
    readme = page("README.md")
    assert len(readme.splitlines()) <= 130
    assert "python3 -m pip install -q uv && uv run gatescope --batch\nuv run pytest\n" in readme


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_link_leads_to_a_file(path: Path) -> None:
    targets = LINK.findall(path.read_text(encoding="utf-8"))
    assert [t for t in targets if not (path.parent / t).exists()] == []


@pytest.mark.parametrize(
    ("title", "table"),
    [
        ("[experiment]", tables.Experiment),
        ("[model]", tables.Model),
        ("[[backends]]", tables.Backend),
        ("[dose]", tables.Forcing),
        ("[sweep]", sweep.Sweep),
        ("[search]", search.Search),
        ("[cluster]", cluster.Cluster),
    ],
)
def test_every_key_stands_with_its_default(title: str, table: type[msgspec.Struct]) -> None:
    sections = dict(
        re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", page("docs/configuration.md"), re.M | re.S)
    )
    written = dict(ROW.findall(sections[title]))
    fields = {f.name: f for f in msgspec.structs.fields(table)}
    assert list(written) == list(fields)
    for name, text in written.items():
        field = fields[name]
        if field.required or field_default(field) is None:
            assert text == "–"
        else:
            value = tomllib.loads(f"value = {text.strip('`')}")["value"]
            assert msgspec.convert(value, field.type) == field_default(field)


def field_default(field: msgspec.structs.FieldInfo) -> object:
    if field.default_factory is msgspec.NODEFAULT:
        return field.default
    return field.default_factory()


def test_every_rule_stands_in_the_page_of_validity() -> None:
    text = page("docs/validity.md")
    rules = [problem.rule_name(rule) for rule in verdict.RULES]
    rows = re.findall(r"^\| ([\w ]+) \| .* \| .* \|$", text, re.M)
    assert sorted(row for row in rows if row != "rule") == sorted(rules)
    assert f"{len(rules)} rules" in text
    assert f"{len(rules)} rules" in page("README.md")


def test_every_key_of_the_terminal_ui_stands_in_its_page() -> None:
    text = page("docs/terminal-ui.md")
    keys = [action.key_text for action in actions.ACTIONS]
    for binding in (*Pane.BINDINGS, *Plots.BINDINGS):
        assert isinstance(binding, Binding)  # ours are all written out
        keys += binding.key.split(",")
    assert [key for key in keys if f"`{key}`" not in text] == []


def test_every_command_stands_in_its_page(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    commands = re.findall(r"^    ([a-z]+) ", capsys.readouterr().out, re.M)
    assert len(commands) >= 11
    text = page("docs/command-line.md")
    assert [name for name in commands if f"`gatescope {name}" not in text] == []
