"""Whether a calibration predicts other starts' runs: the sweep's run directory, then the others'.

    python3 bench/backends/cost_proof.py [-o FILE.png] CALIBRATED RUN_DIR…

Prints the median decode step of every run beside its prediction, then R², the mean error over all
and R² within each size; and beside it R² of a line in requests and CV, fitted to the very runs.
The picture sets every run's median decode step against its CV, and against its prediction.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from core.analysis import calibration, cost_model, step_sample
from core.analysis import cost_sentences as cost
from core.analysis.step_sample import StepSample

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")  # Okabe-Ito
MARKS = ("o", "x", "s", "^", "D")


def medians(of: StepSample, values: np.typing.NDArray[np.float64]) -> dict[str, float]:
    """Run → median of its steps' values."""
    runs = np.unique(of["run"]).astype(int)
    return {of.labels[run]: float(np.median(values[of["run"] == run])) for run in runs}


def draw(points: list[tuple[float, float, float, float]], file: Path) -> None:
    """`points`: tokens, CV, measured and predicted ms of each run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.4), layout="constrained")
    by_cv, by_model = figure.subplots(1, 2, sharey=True)
    for size, colour, mark in zip(sorted({p[0] for p in points}), COLOURS, MARKS, strict=False):
        _, cv, took, said = np.array([p for p in points if p[0] == size]).T
        for axes, x in ((by_cv, cv), (by_model, said)):
            axes.plot(x, took, mark, color=colour, alpha=0.7, label=f"{size:.0f} requests")
    ends = [min(p[3] for p in points), max(p[3] for p in points)]
    by_model.plot(ends, ends, "-", color="0.6", zorder=0)
    by_cv.set(xlabel="CV of expert load", ylabel="median decode step, ms", title="Against CV")
    by_model.set(xlabel="predicted step, ms", title="Against the calibrated cost model")
    by_cv.legend()
    for axes in (by_cv, by_model):
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", dest="picture", type=Path)
    parser.add_argument("calibrated", type=Path)
    parser.add_argument("run_dirs", nargs="+", type=Path)
    asked = parser.parse_args()
    found = calibration.read(asked.calibrated)
    points: list[tuple[float, float, float, float]] = []
    for line in cost.in_words(found.decode, found.backend):
        print(line)
    for row in (cost.QUALITY_HEAD, *cost.quality_rows(found.decode)):
        print("| " + " | ".join(row) + " |")
    for folder in asked.run_dirs:
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
        points += [(sizes[k], cvs[k], took[k] / 1e3, said[k] / 1e3) for k in took]
        print(cost.checked(cost_model.check(found.decode, sample), "this start"))
        y = np.array(list(took.values()))
        design = np.column_stack([np.ones(len(y)), list(sizes.values()), list(cvs.values())])
        guess = design @ np.linalg.lstsq(design, y, rcond=None)[0]
        r2 = 1 - ((y - guess) ** 2).sum() / ((y - y.mean()) ** 2).sum()
        print(f"requests and CV, fitted to these very runs: R² {r2:.3f}")
    if asked.picture:
        draw(points, asked.picture)


if __name__ == "__main__":
    main()
