"""Whether a calibration predicts other starts' runs: the sweep's run directory, then the others'.

    python3 bench/backends/cost_proof.py CALIBRATED RUN_DIR…

Prints the median decode step of every run beside its prediction, then R², the mean error over all
and R² within each size; and beside it R² of a line in requests and CV, fitted to the very runs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from core.analysis import calibration, cost_model, step_sample
from core.analysis.step_sample import StepSample
from core.report import cost


def medians(of: StepSample, values: np.typing.NDArray[np.float64]) -> dict[str, float]:
    """Run → median of its steps' values."""
    runs = np.unique(of["run"]).astype(int)
    return {of.labels[run]: float(np.median(values[of["run"] == run])) for run in runs}


def main() -> None:
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    found = calibration.read(Path(sys.argv[1]))
    for line in cost.in_words(found.decode, found.backend):
        print(line)
    for row in (cost.QUALITY_HEAD, *cost.quality_rows(found.decode)):
        print("| " + " | ".join(row) + " |")
    for folder in map(Path, sys.argv[2:]):
        prices = found.prices()
        sample = step_sample.of_backend(folder, found.backend, prices=prices, forced=True)
        of = sample.of_phase("decode")
        took, said = medians(of, of["duration_us"]), medians(of, found.decode.predict_us(of))
        cvs, sizes = medians(of, of["cv"]), medians(of, of["tokens"])
        print(f"\n{folder}")
        for label in sorted(took):
            print(
                f"{label:24} {sizes[label]:4.0f} tokens, CV {cvs[label]:.2f}:"
                f" {took[label] / 1e3:.3f} ms, predicted {said[label] / 1e3:.3f}"
                f" ({said[label] / took[label] - 1:+.1%})"
            )
        print(cost.checked(cost_model.check(found.decode, sample), "this start"))
        y = np.array(list(took.values()))
        design = np.column_stack([np.ones(len(y)), list(sizes.values()), list(cvs.values())])
        guess = design @ np.linalg.lstsq(design, y, rcond=None)[0]
        r2 = 1 - ((y - guess) ** 2).sum() / ((y - y.mean()) ** 2).sum()
        print(f"requests and CV, fitted to these very runs: R² {r2:.3f}")


if __name__ == "__main__":
    main()
