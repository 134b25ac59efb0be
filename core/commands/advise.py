"""`gatescope advise`: whether another placement of the experts would pay, and the map for it."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from core.commands import arguments as arg
from core.errors import FileError, UsageError
from core.terminal import complain, printable

if TYPE_CHECKING:
    from core.analysis.advice import Advised, Option, PhaseAdvice, Pricing
    from core.analysis.traffic import Steps

COSTS = {
    "µs": "of the step's time, by the cost model",
    "work": "of the busiest ranks' work in the MoE layers",
    "tokens": "of the busiest ranks' tokens in the MoE layers",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        type=Path,
        metavar="LOGS",
        help="what `gatescope record` writes into, a run directory, or a folder of gate logs; of"
        " several starts, the last one written to",
    )
    parser.add_argument(
        "--ranks",
        type=arg.at_least(2, 1 << 12),
        metavar="N",
        help="expert-parallel ranks to place on (default: those that ran)",
    )
    parser.add_argument(
        "--spare",
        type=arg.names,
        metavar="R,…",
        help="replicas that EPLB may add, in all (default: one a rank)",
    )
    parser.add_argument(
        "--smallest",
        type=arg.percentage,
        default=1.0,
        metavar="P%",
        help="the smallest saving that matters (default: 1%%)",
    )
    parser.add_argument(
        "--split",
        choices=("time", "dataset"),
        default="time",
        help="judge placements on the second half of the log, or on other datasets than they were"
        " made from (default: time)",
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="F",
        help="what `gatescope calibrate` wrote for this server: savings are then in ms",
    )
    parser.add_argument(
        "-o", dest="out", type=Path, metavar="DIR", help="folder of the maps (default: LOGS/advice)"
    )
    parser.add_argument("--json", action="store_true", help="all of it as JSON on stdout")
    parser.add_argument(
        "--prove",
        action="store_true",
        help="then start the server without EPLB and with it, measure both, and keep how far the"
        " prediction was off",
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=Path("experiments.toml"),
        metavar="F",
        help="what --prove starts and sends (default: experiments.toml)",
    )
    parser.add_argument(
        "--backend", default="", metavar="NAME", help="its backend with expert parallelism"
    )
    parser.add_argument(
        "--starts",
        type=arg.at_least(2, 1000),
        default=3,
        metavar="N",
        help="starts of each (default: 3)",
    )
    parser.add_argument(
        "--run",
        type=Path,
        metavar="DIR",
        help="run directory of --prove; one that was begun is resumed (default: runs/…)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the verdict, write the maps where it is that rebalancing pays, and prove it on
    request."""
    from core import files
    from core.analysis import advice, proof, traffic
    from core.routing import repeats
    from core.routing.folder import GateFolder
    from core.routing.windows import newest_logs

    logs = newest_logs(arguments.folder)
    if logs is None:
        raise FileError(f"{arguments.folder}: no gate logs in it")
    phases = traffic.read(GateFolder(logs).blocks())
    if not phases:
        raise FileError(f"{logs}: holds no step")
    found = _advised(phases, arguments)
    main = found.get("decode") or found["prefill"]
    out = arguments.out or arguments.folder / "advice"
    proofs = proof.read(out)
    if arguments.json:
        whole: dict[str, object] = {"logs": str(logs), "verdict": main.advice.verdict}
        whole |= {name: one.advice for name, one in found.items()} | {"proofs": proofs}
        sys.stdout.write(files.formatted(whole).decode())
    else:
        print("\n".join(_text([one.advice for one in found.values()], main.advice, arguments)))
        for one in proofs:
            print(printable(f"proved {one.made[:16]}: {one.in_words()}"))
    if warning := repeats.random_prompts(logs):
        complain(f"{warning}: that of your users will be routed otherwise")
    if main.advice.verdict == advice.PAYS:
        _write(main, next(iter(phases.values())), out)
    return _prove(main.advice, out, arguments) if arguments.prove else 0


def _prove(main: PhaseAdvice, out: Path, arguments: argparse.Namespace) -> int:
    """Measure the server without EPLB and with it, and keep the prediction's error."""
    from datetime import UTC, datetime

    from core.analysis import proof
    from core.commands import batch
    from core.experiment import config
    from core.experiment.invocation import Invocation
    from core.rundir import about, directory

    if main.phase != "decode" or main.reason:
        raise UsageError("--prove measures decode steps, and of them nothing is predicted")
    path: Path = arguments.run or directory.new_path("prove")
    if (path / about.NAME).is_file():
        code = batch.run(Invocation(resume=path), json=False)
    else:
        asked = config.load(arguments.config)
        pair = proof.pair(asked, arguments.backend, arguments.starts, proof.predicted(main))
        if batch.kind_of(pair) == "builtin":
            raise UsageError("--prove: the built-in engine has no EPLB; it takes vLLM and its GPUs")
        code = batch.run_config(pair, Invocation(arguments.config, out=path), json=False)
    if code:
        again = f"--prove --run {shlex.quote(str(path))}"
        complain(f"not proved: runs are missing; go on with the same command and {again}")
        return code
    found = proof.of_run(path, datetime.now(UTC).isoformat(timespec="seconds"), main)
    file = proof.keep(out, found)
    print(printable(found.in_words()))
    print(f"kept in {file}", file=sys.stderr)
    return 0


def _advised(phases: dict[str, Steps], arguments: argparse.Namespace) -> dict[str, Advised]:
    """Of each phase; decode after prefill, so that each knows the other's placement."""
    from core.analysis import advice

    steps = next(iter(phases.values()))
    ranks, spare = _sizes(steps, arguments)

    def of(name: str, other: Advised | None) -> Advised:
        return advice.of_phase(
            name,
            phases[name],
            _pricing(name, arguments.calibration),
            ranks=ranks,
            spare=spare,
            smallest=arguments.smallest,
            by=arguments.split,
            other=other.placement if other else None,
        )

    first = {name: of(name, None) for name in phases}
    if len(first) < 2:
        return first
    return {name: of(name, first[_other(name)]) for name in phases}


def _other(phase: str) -> str:
    return "prefill" if phase == "decode" else "decode"


def _sizes(steps: Steps, arguments: argparse.Namespace) -> tuple[int, list[int]]:
    """Ranks and spare replicas. UsageError where experts cannot be divided among them."""
    ranks = arguments.ranks or steps.ranks
    if ranks < 2:
        raise UsageError("the log is of a server without expert parallelism; give --ranks N")
    experts = steps.loads.shape[2]
    try:
        spare = [int(text) for text in arguments.spare or [str(ranks)]]
    except ValueError:
        spare = [-1]
    if experts % ranks or any(n < 0 or n % ranks for n in spare):
        raise UsageError(
            f"{experts} experts and {', '.join(map(str, spare))} replicas cannot be shared evenly"
            f" by {ranks} ranks"
        )
    return ranks, spare


def _pricing(phase: str, calibration: Path | None) -> Pricing:
    from core.analysis import calibration as calibrations
    from core.analysis.advice import Pricing

    if calibration is None:
        return Pricing()
    found = calibrations.read(calibration)
    model = found.model(phase)
    return Pricing() if model.reason else Pricing(model, found.prices())


def _write(found: Advised, steps: Steps, out: Path) -> None:
    from core.routing import peers

    assert found.placement is not None  # the verdict rests on it
    assert found.placement.slots is not None
    experts, ranks = steps.loads.shape[2], found.advice.ranks
    try:
        made = peers.write_maps(found.placement.slots, steps.numbers, experts, ranks, out)
    except OSError as error:
        raise FileError(f"{out}: cannot be written: {error.strerror}") from None
    for file in made:
        print(f"wrote {file}", file=sys.stderr)


# --- in words ---


def _text(found: list[PhaseAdvice], main: PhaseAdvice, arguments: argparse.Namespace) -> list[str]:
    verdict = main.verdict + (f": {main.more}" if main.more else "")
    lines = [f"{main.phase}: {verdict}", *_why(main, arguments.smallest)]
    for one in found:
        lines += ["", *_table(one)]
    return lines


def _why(of: PhaseAdvice, smallest: float) -> list[str]:
    if of.reason:
        return [f"  {of.reason}"]
    best = of.option()
    ideal = f"  ranks that all had the same would save {of.ideal:.1f} % of the busiest ones' tokens"
    lines = [
        f"  {best.name} saves {best.saved.shown('.2f')} % {COSTS[of.unit]};"
        f" {smallest:g} % is what matters",
        ideal,
    ]
    if of.of_other is not None:
        name = _other(of.phase)
        lines.append(f"  {name}'s placement saves {of.of_other.shown('.2f')} % of {of.phase}")
    return lines


def _table(of: PhaseAdvice) -> list[str]:
    length = "" if of.minutes is None else f" over {_length(of.minutes)}"
    every = "" if of.every == 1 else f" (one in {of.every})"
    head = f"{of.phase}: {of.steps} steps{every}{length}, {of.ranks} ranks"
    if of.reason:
        return [f"{head}; {of.reason}"]
    judged = f"{of.judged_on} {'windows' if of.split == 'time' else 'other datasets'}"
    head += f"; savings in % {COSTS[of.unit]}, on {judged}"
    return [head, *(_row(option, is_chosen=option.name == of.chosen) for option in of.options)]


def _length(minutes: float) -> str:
    return f"{minutes:.0f} minutes" if minutes >= 2 else f"{60 * minutes:.0f} s"


def _row(of: Option, *, is_chosen: bool) -> str:
    ms = f" ({of.saved_ms.shown('.3f')} ms a step)" if of.saved_ms else ""
    room = f", {_size(of.bytes)} a rank for replicas" if of.bytes else ""
    mark = "  chosen before these" if is_chosen else ""
    return f"  {of.name:<26} saves {of.saved.shown('.2f')} %{ms}, {of.moved} moves{room}{mark}"


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 10**9 else f"{count / 1e6:.1f} MB"
