"""`gatescope bench`: sends one dataset to a running OpenAI-compatible server."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.commands import arguments as arg
from core.commands import bench_table, results, sending
from core.commands.sending import tell
from core.errors import BackendError, LoadError, UsageError

if TYPE_CHECKING:
    from core.load.client import Load
    from core.load.metrics import Metrics
    from core.load.record import Records, RequestRecord
    from core.rundir.result import Result
    from core.workload.predictor import Prediction


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "dataset",
        type=Path,
        metavar="DATASET",
        help="JSON lines, or a JSON array, of texts, prompts, messages or conversations",
    )
    _add_server(parser)
    _add_requests(parser)
    _add_rate(parser)
    parser.add_argument(
        "--slo",
        type=arg.slo,
        default={},
        metavar="ttft_ms=500,tpot_ms=50",
        help="latency limits that a request must meet to count for goodput; e2e_ms too",
    )
    parser.add_argument(
        "--load-workers",
        type=arg.workers,
        default="auto",
        metavar="N",
        help='client processes, or "auto" (default: auto)',
    )
    parser.add_argument(
        "--result-dir", type=Path, metavar="DIR", help="write DIR/<dataset index>.json"
    )
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout")


def _add_server(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--base-url",
        type=arg.base_url,
        metavar="URL",
        help="server, such as http://host:8000 or https://user:password@host/v1",
    )
    where.add_argument(
        "--port", type=arg.port, metavar="P", help="port of a server on this machine"
    )
    parser.add_argument(
        "--model",
        type=arg.model,
        metavar="ID",
        help="model to request (default: the first in /v1/models)",
    )
    parser.add_argument(
        "--header",
        type=arg.header,
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="header of every request, in place of one of the same name; repeatable",
    )


def _add_requests(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--num-prompts",
        type=arg.at_least(1),
        default=30,
        metavar="N",
        help="send at most this many prompts of the dataset (default: 30)",
    )
    parser.add_argument(
        "--input-len",
        type=arg.at_least(0),
        default=0,
        metavar="N",
        help="cut or repeat each prompt to N tokens (default: 0, as written)",
    )
    parser.add_argument(
        "--output-len",
        type=arg.at_least(1),
        default=50,
        metavar="N",
        help="tokens that each request generates (default: 50)",
    )
    parser.add_argument(
        "--temperature",
        type=arg.between(0, 100),
        default=0.0,
        metavar="T",
        help="0 is greedy; above, request i is drawn with --seed + i (default: 0)",
    )
    parser.add_argument(
        "--warmup",
        type=arg.at_least(0),
        default=0,
        metavar="N",
        help="requests to send first and leave out of the results (default: 0)",
    )
    parser.add_argument(
        "--chat", action="store_true", help="use /v1/chat/completions instead of /v1/completions"
    )
    parser.add_argument(
        "--extra-body",
        type=arg.extra_body,
        default={},
        metavar="JSON",
        help="object to merge into every request body; null removes a field",
    )
    parser.add_argument(
        "--stall-timeout",
        type=arg.between(1e-3, arg.LONGEST_S),
        default=120.0,
        metavar="S",
        help="seconds without a new token after which a request has failed (default: 120)",
    )


def _add_rate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--request-rate",
        type=arg.rate,
        default="inf",
        metavar="R",
        help='requests per second, or "inf" for all at once (default: inf)',
    )
    parser.add_argument(
        "--arrival",
        choices=("poisson", "constant", "trace"),
        default="poisson",
        help="how requests are spaced at a rate; trace: at the dataset's timestamps"
        " (default: poisson)",
    )
    parser.add_argument(
        "--trace-unit",
        choices=("s", "ms"),
        default="s",
        help="unit of the dataset's timestamps: seconds or milliseconds (default: s)",
    )
    parser.add_argument(
        "--burstiness",
        type=arg.between(1e-3, 1e3),
        default=1.0,
        metavar="B",
        help="shape of the gamma distribution of intervals: 1 is Poisson, less is burstier"
        " (default: 1)",
    )
    parser.add_argument(
        "--ramp-up",
        type=arg.between(0, arg.LONGEST_S),
        default=0.0,
        metavar="S",
        help="seconds until the full rate or concurrency is reached (default: 0)",
    )
    parser.add_argument(
        "--max-concurrency",
        type=arg.at_least(0),
        default=0,
        metavar="N",
        help="requests in flight at most (default: 0, no limit)",
    )
    parser.add_argument(
        "--seed",
        type=arg.at_least(0),
        default=0,
        metavar="N",
        help="random seed of the arrivals and, at a temperature, of the answers (default: 0)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Send each prompt once; 0 if all were answered, else 1; 128+n if signal n ended it.
    BackendError if the server cannot be reached."""
    import httpx

    from core.load import metrics
    from core.load.trust import trust

    load = _load(arguments)
    try:
        taken = asyncio.run(sending.taken(load, arguments.warmup))
    except LoadError as error:
        raise BackendError(f"nothing was sent: {error}") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise BackendError(f"{_shown_url(load)}: {_without_secrets(load, error)}") from None
    if taken.stopped_by:
        tell(f"stopped by {taken.stopped_by.name}: {_sent(taken.records, load)}")
        if not taken.records:
            return 128 + taken.stopped_by
    figures = metrics.summarise(taken.records, load.slo)
    result = _result(arguments.dataset, load, taken.records, figures)
    is_written = _write(arguments, result, is_partial=taken.stopped_by > 0)
    table = bench_table.lines(result, trust(taken.records.workers, figures))
    where = f"{_shown_url(load)}, model {load.model}"
    tell("\n".join([where, *table]))
    if arguments.json:
        _print_json(result)
    if taken.stopped_by:
        return 128 + taken.stopped_by
    return 0 if is_written and figures.completed == figures.num_prompts else 1


def _load(arguments: argparse.Namespace) -> Load:
    """The load that the arguments describe. What cannot be sent, or whose result could not be
    written, is refused: DatasetError, FileError, UsageError."""
    from core.experiment import config
    from core.load import address, models
    from core.load.client import Load
    from core.workload import dataset, formats, trace

    config.check_name(arguments.dataset)
    data = formats.read(arguments.dataset, dataset.index_of(arguments.dataset, 1))
    if arguments.arrival == "trace":
        trace.check(data, arguments.num_prompts, arguments.trace_unit)
    if arguments.result_dir:
        results.check(arguments.result_dir, data.index)
    server = arguments.base_url or address.of(f"http://127.0.0.1:{arguments.port}")
    if server.path and arguments.chat != (server.path == "chat/completions"):
        fix = "leave --chat out" if arguments.chat else "add --chat"
        raise UsageError(f"--base-url {server.shown} ends in {server.path}; {fix}")
    api_key = address.key(os.environ)
    headers = address.merged(server.headers, arguments.header)
    sent = address.merged(address.bearer(api_key), headers)
    return Load(
        base_url=server.given,
        model=arguments.model or models.first(server, sent),
        label=data.index,
        prompts=data.prompts[: arguments.num_prompts],
        api_key=api_key,
        headers=tuple(headers),
        chat=arguments.chat,
        extra_body=arguments.extra_body,
        input_len=arguments.input_len,
        output_len=arguments.output_len,
        temperature=arguments.temperature,
        request_rate=arguments.request_rate,
        arrival=arguments.arrival,
        trace_unit=arguments.trace_unit,
        burstiness=arguments.burstiness,
        ramp_up_s=arguments.ramp_up,
        max_concurrency=arguments.max_concurrency,
        seed=arguments.seed,
        stall_timeout_s=arguments.stall_timeout,
        workers=arguments.load_workers,
        slo=arguments.slo,
    )


def _result(path: Path, load: Load, records: Records, figures: Metrics) -> Result:
    from core.load import address
    from core.rundir import result

    return result.of_load(
        load,
        records,
        figures,
        _predicted(load),
        backend=address.of(load.base_url).shown,
        dataset=load.label,
        path=str(path),
    )


def _write(arguments: argparse.Namespace, result: Result, *, is_partial: bool) -> bool:
    """Write the result if that is asked for; false if it could not be written there."""
    from core import files

    if not arguments.result_dir:
        return True
    data, name = files.formatted(result), str(result.dataset_name)
    file = results.write(arguments.result_dir, name, data, is_partial=is_partial)
    if file:
        tell(f"wrote {file}")
    return file is not None


def _print_json(result: Result) -> None:
    from core import files

    sys.stdout.write(files.formatted(result).decode())


def _shown_url(load: Load) -> str:
    """Where the requests go, without a query, which may hold a key."""
    return load.url.partition("?")[0]


def _without_secrets(load: Load, error: Exception) -> str:
    from core.load import address

    sent = [*address.bearer(load.api_key), *load.headers]
    return address.without_secrets(f"{type(error).__name__}: {error}", sent)


def _sent(records: Sequence[RequestRecord], load: Load) -> str:
    done = sum(r.ok for r in records)
    return f"{len(records)} of {len(load.prompts)} requests were sent, {done} were answered"


def _predicted(load: Load) -> Prediction | None:
    """Upstream's score of the texts; None if they have none."""
    from core.workload import predictor

    try:
        return predictor.predict([p.text for p in load.prompts])
    except ValueError:
        return None
