"""Whether a calibration predicts other starts' runs: the sweep's run directory, then the others'.

    python3 bench/backends/cost_proof.py [-o FILE.png] CALIBRATED RUN_DIR…

Of steps whose work is known (padding may wake experts in others): the median of every run beside
its prediction, then R², the mean error over all and R² within each size (by mean steps too); beside
it R² of a line in requests and CV, fitted to the very runs, and whether the SM clock explains what
is left.
The picture sets every run's median decode step against its CV, and against its prediction.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from core.analysis import calibration, cost_model, step_sample
from core.analysis import cost_sentences as cost
from core.analysis.cost_model import CostModel
from core.analysis.step_sample import StepSample

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")  # Okabe-Ito
CLOCK = 1980  # MHz, an H200's highest
MARKS = ("o", "x", "s", "^", "D", "+", "v")


def recorded(folder: Path) -> list[str]:
    """The backends that have gate logs."""
    return sorted({place.parent.name for place in folder.glob("*/gate_logs*")})


def medians(of: StepSample, values: np.typing.NDArray[np.float64]) -> dict[str, float]:
    """Run → median of its steps' values."""
    runs = np.unique(of["run"]).astype(int)
    return {of.labels[run]: float(np.median(values[of["run"] == run])) for run in runs}


def clocks(folder: Path) -> dict[str, float]:
    """Run → mean SM clock of its decode steps, MHz."""
    found = {}
    for file in (folder / "summary.csv", folder / "summary-forced.csv"):
        for row in csv.DictReader(file.read_text().splitlines()):
            if row.get("decode_sm_clock_mhz"):
                found[row["dataset"]] = float(row["decode_sm_clock_mhz"])
    return found


def left(of: StepSample, model: CostModel, folder: Path) -> np.typing.NDArray[np.float64]:
    """[runs, 4]: the median step, its prediction, its price, all in µs, and 1,980 MHz / clock - 1;
    of the runs whose clock is known."""
    known = clocks(folder)
    took, said = medians(of, of["duration_us"]), medians(of, model.predict_us(of))
    price = medians(of, model.work_us(of))
    rows = [(took[k], said[k], price[k], CLOCK / known[k] - 1) for k in took if k in known]
    return np.array(rows).reshape(-1, 4)


def slowed(runs: np.typing.NDArray[np.float64]) -> np.typing.NDArray[np.float64]:
    """[runs, 2]: 1, and the price × how far the clock is down."""
    return np.column_stack([np.ones(len(runs)), runs[:, 2] * runs[:, 3]])


def within_by_mean(of: StepSample, model: CostModel) -> str:
    runs, said = np.unique(of["run"]), model.predict_us(of)
    sizes = np.array([np.median(of["tokens"][of["run"] == run]) for run in runs])
    y, guess = (
        np.array([v[of["run"] == run].mean() for run in runs]) for v in (of["duration_us"], said)
    )
    found = []
    for size in np.unique(sizes):
        own = sizes == size
        error = y[own] - guess[own] - np.median(y - guess)
        spread = ((y[own] - y[own].mean()) ** 2).sum()
        found.append(f"{size:.0f}: {1 - (error**2).sum() / spread:.2f}")
    return ", ".join(found)


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
    by_model.legend()
    for axes in (by_cv, by_model):
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=110)


def clock(
    model: CostModel,
    calibrated: Path,
    runs: np.typing.NDArray[np.float64],
    found: calibration.Calibration,
) -> None:
    """The coefficient of the clock in the sweep, and the error at `runs` with it and without."""
    sample = step_sample.of_backend(calibrated, found.backend, prices=found.prices(), forced=True)
    sweep = left(cost_model.closed(sample.of_phase("decode"), 1), model, calibrated)
    if not len(runs) or not len(sweep):
        return
    rest, design = sweep[:, 0] - sweep[:, 1], slowed(sweep)
    every = [np.linalg.lstsq(design, rest, rcond=None)[0]]
    for out in range(len(rest)):
        others = np.arange(len(rest)) != out
        every.append(np.linalg.lstsq(design[others], rest[others], rcond=None)[0])
    fit, jackknife = every[0], np.array(every[1:])[:, 1]
    error = np.sqrt((len(rest) - 1) * jackknife.var())
    off = runs[:, 0] - runs[:, 1]
    with_it, without = (
        100 * abs(off - more).mean() / runs[:, 0].mean()
        for more in (slowed(runs) @ fit, rest.mean())
    )
    r = np.corrcoef(off / runs[:, 1], runs[:, 3])[0, 1]
    print(
        f"SM clock: what is left correlates with 1980 MHz / clock - 1 by {r:.2f}; its coefficient"
        f" in the sweep {fit[1]:.3f} ± {error:.3f} of the price; mean error here with it"
        f" {with_it:.2f} %, with the sweep's offset alone {without:.2f} %"
    )


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
    for folder, backend in ((path, name) for path in asked.run_dirs for name in recorded(path)):
        prices = found.prices()
        sample = step_sample.of_backend(folder, backend, prices=prices, forced=True)
        of = cost_model.closed(sample.of_phase("decode"), 1)
        took, said = medians(of, of["duration_us"]), medians(of, found.decode.predict_us(of))
        cvs, sizes = medians(of, of["cv"]), medians(of, of["tokens"])
        print(f"\n{folder} {backend}")
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
        print(f"by mean steps, R² within each number of tokens: {within_by_mean(of, found.decode)}")
        clock(found.decode, asked.calibrated, left(of, found.decode, folder), found)
    if asked.picture:
        draw(points, asked.picture)


if __name__ == "__main__":
    main()
