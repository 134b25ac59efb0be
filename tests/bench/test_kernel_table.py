"""The kernel's R² table, made from lists that are there already: no GPU is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support.kernel_points import h200_list, needs_points

from core import files

SCRIPT = Path(__file__).parents[2] / "bench" / "kernel" / "table.py"


@needs_points
def test_the_table_of_one_h200(tmp_path: Path) -> None:
    files.write_whole(tmp_path / "TP1.json", files.formatted(h200_list()))
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path, "TP1"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1] == "TP1: NVIDIA H200, vllm 0.25.1, tuned tiling"
    cells = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ") for line in lines[5:]}
    sizes = (8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 1024)
    assert list(cells) == [str(size) for size in sizes]
    _, tiling, _, cv, _, active, tiles, both = cells["128"]
    # by hand (skew-cost.md, section 1): CV 0.07, tiles 0.98, active and waves 0.994
    assert (tiling, cv, tiles, both) == ("64x128", "0.07", "0.98", "0.994")
    assert float(active) < 0.5
