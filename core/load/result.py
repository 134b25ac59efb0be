"""The measured part of a result file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from core.load.metrics import Metrics
from core.load.record import Records
from core.load.record import RequestRecord as RequestRecord


def as_result(records: Sequence[RequestRecord], figures: Metrics) -> dict[str, Any]:
    """The measured part of a result file: upstream's keys and ours; lists are in dataset order.

    `client` says how far the times can be trusted; None if `records` are not from core.load.client.
    """
    from core.load.trust import trust

    return {
        **asdict(figures),
        "input_lens": [r.prompt_tokens for r in records],
        "output_lens": [r.output_tokens for r in records],
        "ttfts": [r.ttft_s if r.ok else None for r in records],
        "ttfts_from_due": [r.ttft_from_due_s if r.ok else None for r in records],
        "itls": [r.itls_s if r.ok else [] for r in records],
        "generated_texts": [r.text for r in records],
        "errors": [r.error for r in records],
        "client": asdict(trust(records.workers, figures)) if isinstance(records, Records) else None,
    }
