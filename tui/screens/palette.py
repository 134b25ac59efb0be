"""The palette's entries: every action with its key, and why it cannot be done now."""

from __future__ import annotations

from functools import partial

from textual.command import DiscoveryHit, Hit, Hits, Provider

from tui.actions import ACTIONS, Action, why_not


class Actions(Provider):
    async def discover(self) -> Hits:
        for action in sorted(
            ACTIONS, key=lambda a: bool(self._reason(a))
        ):  # what can be done first
            yield DiscoveryHit(
                self._named(action), partial(self._do, action), help=self._help(action)
            )

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for action in ACTIONS:
            score = matcher.match(f"{action.label} {action.help}")
            if score > 0:
                named = self._named(action)
                yield Hit(
                    score, named, partial(self._do, action), text=named, help=self._help(action)
                )

    def _named(self, action: Action) -> str:
        off = "  not now" if self._reason(action) else ""
        return f"{action.label}  ({action.key_text}){off}"

    def _help(self, action: Action) -> str:
        reason = self._reason(action)
        return f"not now: {reason}" if reason else action.help

    def _reason(self, action: Action) -> str:
        return why_not(action, self.app.view)  # type: ignore[attr-defined]  # our own App

    def _do(self, action: Action) -> None:
        self.app.action_do(action.name)  # type: ignore[attr-defined]  # our own App
