"""Reports in this process whose pictures are one pixel each: for tests of their words alone."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from core import cli
from core.plots import png
from core.plots.figure import Figure


def report(run_dir: Path, only: str = "") -> str:
    """The text of report.md, made anew; report.html lies beside it."""
    arguments = ["--only", only] if only else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(png, "write", _write)
        patch.setattr(png, "narrow", lambda _: _pixel())
        assert cli.main(["report", str(run_dir), *arguments]) == 0
    names = sorted(name.strip() for name in only.split(","))
    return (run_dir / ("-".join(["only", *names]) if only else "") / "report.md").read_text()


def _write(_: Figure, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(_pixel())
    return file


def _pixel() -> bytes:
    made = io.BytesIO()
    Image.new("L", (1, 1)).save(made, "PNG")
    return made.getvalue()
