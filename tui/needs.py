"""What actions need, and what is said where it is lacking."""

from __future__ import annotations

from core.experiment import dose
from core.experiment.state import Phase
from tui.model.view import View

NO_DOSE = f"no forced run is done; to measure some: {dose.EXAMPLE}"


def lacking(need: str, view: View) -> str:
    """Why one need is not met now; "" where it is."""
    phases = {r.phase for r in view.snapshot.runs.values()}
    servers = view.snapshot.backends.values()
    reasons = {
        "started": (not view.run_dir, "nothing has been started yet; r starts it"),
        "live": (view.stage != "running", "no engine is running; r starts it"),
        "running": (not view.running, "no run is in progress"),
        "ended": (not phases & {"failed", "cancelled"}, "no run has failed or been cancelled"),
        "queued": ("queued" not in phases, "no run is queued"),
        "runs": (not phases, "there are no runs"),
        "pinned": (not view.pinned, "Live follows the run in progress already"),
        "points": ("done" not in phases, "no run is done yet"),
        "forced": (not any(r.run.dose and r.figures for r in view.snapshot.runs.values()), NO_DOSE),
        "server": (not any(s.phase in ("starting", "ready") for s in servers), "no server is up"),
        "log": (not servers, "no server has been started yet"),
    }
    if need == "idle":
        return _busy(view, phases)
    lacks, reason = reasons[need]
    return reason if lacks else ""


def _busy(view: View, phases: set[Phase]) -> str:
    if view.stage in ("running", "reading"):
        return "the engine is running already" if view.stage == "running" else "still reading"
    left = phases - {"done", "cancelled"}
    if not phases or left:
        return ""
    if "cancelled" in phases:
        return "only cancelled runs are left; R runs them"
    return "nothing is left to run; start a new run directory with: gatescope --out DIR"
