"""The content of a scheduled step: prefill and decode tokens, requests, and tokens by segment."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from .prompts import Prompts

# the client's X-Request-Id, somewhere inside vLLM's request id
SEGMENT = re.compile(r"seg\.(.+)\.\d+")


@dataclass(frozen=True, slots=True)
class Batch:
    """Tokens of one step."""

    tokens: int
    prefill_tokens: int
    requests: int
    segments: dict[str, int]


class Requests:
    """Prompt length and segment of every live request, learned from the scheduler's output."""

    def __init__(self) -> None:
        self.prompts = Prompts()
        self._known: dict[str, tuple[int, str]] = {}

    def read(self, scheduled: Any) -> Batch:
        """The batch of one SchedulerOutput. Every output must be read, in order, because a new
        request is announced only once."""
        computed: dict[str, int] = {}
        for new in scheduled.scheduled_new_reqs:
            self._known[new.req_id] = (_prompt_length(new), segment_of(new.req_id))
            computed[new.req_id] = new.num_computed_tokens
            self.prompts.add(new.prompt_token_ids)
        cached = scheduled.scheduled_cached_reqs
        computed.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        prefill = 0
        segments: Counter[str] = Counter()
        for request, tokens in scheduled.num_scheduled_tokens.items():
            prompt, segment = self._known.get(request, (0, segment_of(request)))
            prefill += min(tokens, max(0, prompt - computed.get(request, prompt)))
            segments[segment] += tokens
        for request in scheduled.finished_req_ids:
            self._known.pop(request, None)
        total = scheduled.total_num_scheduled_tokens
        return Batch(total, prefill, len(scheduled.num_scheduled_tokens), dict(segments))


def segment_of(request: str) -> str:
    """The label in `seg.<label>.<i>`; empty if there is none."""
    found = SEGMENT.search(request)
    return found.group(1) if found else ""


def _prompt_length(new: Any) -> int:
    if new.prompt_token_ids is not None:
        return len(new.prompt_token_ids)
    embeddings = getattr(new, "prompt_embeds", None)
    return 0 if embeddings is None else int(embeddings.shape[0])
