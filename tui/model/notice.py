"""What is worth a bell: the experiment ended, or something failed."""

from __future__ import annotations

from core.experiment.state import Snapshot


def of(before: Snapshot, after: Snapshot) -> str:
    """The news of `after`, "" if there are none; what was so from the start is none."""
    if before is after or not before.started_at:
        return ""
    if after.ended_at and not before.ended_at:
        failed = after.count("failed")
        how = f"stopped by {after.interrupted}" if after.interrupted else "finished"
        return f"{after.name} {how}: {after.count('done')} done, {failed} failed"
    servers = [
        name
        for name, server in after.backends.items()
        if server.phase == "failed" and before.backends.get(name) != server
    ]
    if servers:
        return f"server {servers[0]} failed"
    new = after.count("failed") - before.count("failed")
    return f"{new} run{'s' if new > 1 else ''} failed" if new > 0 else ""
