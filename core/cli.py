"""The command line: arguments in, exit code out. Every command imports only what it uses."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from core.commands import arguments as arg
from core.commands import imbalance, plot
from core.errors import BAD_USAGE, GatescopeError
from core.terminal import complain, refuse

SIGPIPE_CODE = 128 + 13
EXIT_CODES = "exit codes: 0 all done; 1 some run, file or item failed; 2 bad usage, config or input; 128+n by signal n"


class _Parser(argparse.ArgumentParser):
    """argparse without abbreviations, and with the hint that an error should carry."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            **options, allow_abbrev=False
        )  # a script's `--out` must not change meaning with a new flag

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_USAGE, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    _open_standard_streams()
    try:
        arguments = _parser().parse_args(argv)
        command: Callable[[argparse.Namespace], int] = arguments.command
        code = command(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except OSError as error:  # of stdout, as a rule: commands name the files that they cannot write
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(
            error, BrokenPipeError
        ):  # its reader has left (`| head`): end as the signal would
            return SIGPIPE_CODE
        complain(str(error))
        return 1
    except GatescopeError as error:
        return refuse(str(error))


def _open_standard_streams() -> None:
    """Where the caller closed one (`2>&-`), the null device takes its place: else the next file
    that is opened gets its number, and the talk goes into that file. What stdout cannot encode is
    escaped, not an error."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="gatescope",
        description="Does the input skew a Mixture-of-Experts router, and does the skew cost latency?",
        epilog=EXIT_CODES,
    )
    parser.set_defaults(command=_experiment)
    parser.add_argument("--batch", action="store_true", help="run the experiment without a UI")
    parser.add_argument("--config", type=Path, default=Path("experiments.toml"), metavar="F")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="run directory; new or empty (runs/<name>-<time>)"
    )
    parser.add_argument(
        "--only", type=arg.listed, default=[], metavar="001,007", help="these datasets only"
    )
    parser.add_argument(
        "--backend", type=arg.listed, default=[], metavar="NAME", help="these backends only"
    )
    parser.add_argument(
        "--engine", choices=("auto", "vllm", "builtin"), help="instead of the config's"
    )
    parser.add_argument(
        "--dose",
        type=arg.levels,
        action="extend",
        default=[],
        metavar="0,0.5",
        help="CVs that routing is forced to",
    )
    parser.add_argument(
        "--pattern",
        type=arg.patterns,
        action="extend",
        default=[],
        metavar="NAME",
        help=f"of them: {', '.join(arg.PATTERNS)}",
    )
    parser.add_argument("--json", action="store_true", help="events as JSON lines on stdout")
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="DIR",
        help="run what this run directory lacks: what is queued, was cut off or failed",
    )
    parser.add_argument(
        "--retry-cancelled", action="store_true", help="with --resume: what was cancelled, too"
    )
    parser.add_argument(
        "--ascii", action="store_true", help="the terminal UI without characters beyond ASCII"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_attach(commands)
    _add_serve(commands)
    _add_bench(commands)
    _add_generate(commands)
    _add_predict(commands)
    imbalance.add(commands)
    plot.add(commands)
    report = commands.add_parser(
        "report", help="report.md and report.html of a run directory, findings in words"
    )
    report.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    report.add_argument(
        "--only",
        type=arg.listed,
        default=[],
        metavar="001,007",
        help="of these datasets only, into RUN_DIR/only-001-007: the report of all stays as it is",
    )
    report.add_argument(
        "--strict", action="store_true", help="exit code 1 where results are invalid"
    )
    report.set_defaults(command=_report)
    export = commands.add_parser(
        "export", help="a run directory in upstream's layout, or as Parquet tables"
    )
    export.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    export.add_argument("--layout", choices=("upstream", "parquet"), required=True)
    export.add_argument("-o", dest="out", type=Path, metavar="DIR", help="default: RUN_DIR/export")
    export.set_defaults(command=_export)
    doctor = commands.add_parser(
        "doctor", help="what is here, what stands in the way, and the fix for each problem"
    )
    doctor.add_argument("--config", type=Path, default=Path("experiments.toml"), metavar="F")
    doctor.set_defaults(command=_doctor)
    init = commands.add_parser(
        "init", help="write experiments.toml and the datasets into this directory"
    )
    init.set_defaults(command=_init)
    return parser


# --- the experiment ---


def _experiment(arguments: argparse.Namespace) -> int:
    if arguments.retry_cancelled and not arguments.resume:
        return refuse("--retry-cancelled goes with --resume DIR")
    if not (arguments.batch or arguments.resume):
        return _screen(arguments)
    from core.commands import batch

    return batch.run(
        config_path=arguments.config,
        out=arguments.out,
        only=arguments.only,
        backends=arguments.backend,
        engine=arguments.engine,
        resume=arguments.resume,
        retry_cancelled=arguments.retry_cancelled,
        json=arguments.json,
        levels=arguments.dose,
        patterns=arguments.pattern,
    )


def _screen(arguments: argparse.Namespace) -> int:
    if arguments.json:
        return refuse("--json goes with --batch: the terminal UI prints nothing")
    from tui import app  # the one place where core hands over to the UI

    return app.run(
        arguments.config,
        arguments.out,
        arguments.only,
        arguments.backend,
        arguments.engine,
        levels=arguments.dose,
        patterns=arguments.pattern,
        ascii=arguments.ascii,
    )


def _add_attach(commands: argparse._SubParsersAction[_Parser]) -> None:
    attach = commands.add_parser(
        "attach", help="the terminal UI over a run directory, running or not"
    )
    attach.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    attach.add_argument("--ascii", action="store_true", help="no characters beyond ASCII")
    attach.set_defaults(command=_attach)


def _attach(arguments: argparse.Namespace) -> int:
    from tui import app

    return app.attach(arguments.run_dir, ascii=arguments.ascii)


def _doctor(arguments: argparse.Namespace) -> int:
    from core.commands import doctor

    return doctor.run(arguments.config)


def _init(arguments: argparse.Namespace) -> int:
    from core.workload import starter

    for file in starter.write(Path()):
        print(f"wrote {file}", file=sys.stderr)
    print("next: gatescope --batch", file=sys.stderr)
    return 0


# --- serve and bench ---


def _add_serve(commands: argparse._SubParsersAction[_Parser]) -> None:
    serve = commands.add_parser(
        "serve", help="serve one backend of experiments.toml in the foreground"
    )
    serve.add_argument("name", metavar="BACKEND")
    serve.add_argument("--config", type=Path, default=Path("experiments.toml"), metavar="F")
    serve.add_argument("--engine", choices=("auto", "vllm", "builtin"))
    serve.add_argument("--model")
    serve.add_argument("--port", type=arg.port, metavar="P")
    serve.add_argument(
        "--batch-tokens", type=arg.at_least(1), metavar="N", help="max_num_batched_tokens"
    )
    serve.add_argument("--max-seqs", type=arg.at_least(1), metavar="N", help="max_num_seqs")
    serve.add_argument("--max-model-len", type=arg.at_least(1), metavar="N")
    serve.add_argument(
        "--ep-size", type=arg.at_least(1), metavar="N", help="ranks: tensor or expert parallel size"
    )
    serve.set_defaults(command=_serve)


def _serve(arguments: argparse.Namespace) -> int:
    from core.commands import serve

    return serve.run(
        config_path=arguments.config,
        name=arguments.name,
        engine=arguments.engine,
        model_id=arguments.model,
        port=arguments.port,
        batch_tokens=arguments.batch_tokens,
        max_seqs=arguments.max_seqs,
        max_model_len=arguments.max_model_len,
        ranks=arguments.ep_size,
    )


def _add_bench(commands: argparse._SubParsersAction[_Parser]) -> None:
    bench = commands.add_parser("bench", help="stream one dataset at a running server")
    bench.add_argument("dataset", type=Path, metavar="DATASET")
    where = bench.add_mutually_exclusive_group(required=True)
    where.add_argument("--base-url", metavar="URL")
    where.add_argument("--port", type=arg.port, metavar="P", help="of a server on this machine")
    bench.add_argument("--model", help="default: the first that /v1/models lists")
    bench.add_argument("--num-prompts", type=arg.at_least(1), default=30, metavar="N")
    bench.add_argument("--input-len", type=arg.at_least(0), default=0, metavar="N")
    bench.add_argument("--output-len", type=arg.at_least(1), default=50, metavar="N")
    bench.add_argument(
        "--request-rate", type=arg.rate, default="inf", metavar="R", help='requests/s, or "inf"'
    )
    bench.add_argument(
        "--arrival",
        choices=("poisson", "constant", "trace"),
        default="poisson",
        help="trace: timestamps",
    )
    bench.add_argument(
        "--burstiness",
        type=arg.above_zero,
        default=1.0,
        metavar="B",
        help="1: Poisson; less: burstier",
    )
    bench.add_argument(
        "--ramp-up",
        type=arg.seconds,
        default=0.0,
        metavar="S",
        help="seconds to the full rate or concurrency",
    )
    bench.add_argument("--max-concurrency", type=arg.at_least(0), default=0, metavar="N")
    bench.add_argument(
        "--warmup",
        type=arg.at_least(0),
        default=0,
        metavar="N",
        help="requests sent first, in no figure",
    )
    bench.add_argument(
        "--chat", action="store_true", help="/v1/chat/completions instead of /v1/completions"
    )
    bench.add_argument(
        "--header", type=arg.header, action="append", default=[], metavar="'NAME: VALUE'"
    )
    bench.add_argument(
        "--extra-body",
        type=arg.json_object,
        default={},
        metavar="JSON",
        help="merged in; null leaves out",
    )
    bench.add_argument(
        "--slo",
        type=arg.slo,
        default={},
        metavar="ttft_ms=500,tpot_ms=50",
        help="limits for goodput",
    )
    bench.add_argument(
        "--load-workers",
        type=arg.workers,
        default="auto",
        metavar="N",
        help='client processes, or "auto"',
    )
    bench.add_argument(
        "--stall-timeout",
        type=arg.above_zero,
        default=120.0,
        metavar="S",
        help="without a token: failed",
    )
    bench.add_argument("--seed", type=arg.at_least(0), default=0)
    bench.add_argument("--result-dir", type=Path, metavar="D", help="write D/<dataset index>.json")
    bench.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    bench.set_defaults(command=_bench)


def _bench(arguments: argparse.Namespace) -> int:
    from core.commands import bench

    return bench.run(
        dataset_path=arguments.dataset,
        base_url=arguments.base_url or f"http://127.0.0.1:{arguments.port}",
        model=arguments.model,
        num_prompts=arguments.num_prompts,
        warmup_requests=arguments.warmup,
        headers=tuple(arguments.header),
        chat=arguments.chat,
        extra_body=arguments.extra_body,
        input_len=arguments.input_len,
        output_len=arguments.output_len,
        request_rate=arguments.request_rate,
        arrival=arguments.arrival,
        burstiness=arguments.burstiness,
        ramp_up_s=arguments.ramp_up,
        max_concurrency=arguments.max_concurrency,
        stall_timeout_s=arguments.stall_timeout,
        workers=arguments.load_workers,
        slo=arguments.slo,
        seed=arguments.seed,
        result_dir=arguments.result_dir,
        json=arguments.json,
    )


# --- datasets ---


def _add_generate(commands: argparse._SubParsersAction[_Parser]) -> None:
    generator = commands.add_parser(
        "generate", help="make prompt datasets that span the predicted imbalance"
    )
    generator.add_argument("--out", type=Path, default=Path("datasets"), metavar="DIR")
    generator.add_argument("--count", type=arg.at_least(1), default=50, metavar="N")
    generator.add_argument("--seed", type=arg.at_least(0), default=0)
    generator.add_argument(
        "--target", type=arg.scores, metavar="0.3,0.9", help="search mixtures with these scores"
    )
    generator.set_defaults(command=_generate)


def _generate(arguments: argparse.Namespace) -> int:
    from core import terminal
    from core.plots import histogram, png, text
    from core.workload import folder as dataset_folder
    from core.workload import generator, starter

    try:
        queries = generator.load_queries(starter.queries_file(arguments.out))
        if arguments.target:
            made = [
                generator.mix_to_target(queries, target, seed=arguments.seed, index=index)
                for index, target in enumerate(arguments.target, 1)
            ]
        else:
            made = generator.generate(queries, count=arguments.count, seed=arguments.seed)
        files = dataset_folder.write(made, arguments.out)
        columns = min(terminal.terminal_columns(), 100)
        drawn = histogram.of([d.score for d in made], "predicted imbalance score", "datasets")
        print(text.draw(drawn, columns, 30, colour=sys.stderr.isatty()), file=sys.stderr)
        picture = png.write(drawn, Path("graphs") / "score_distribution.png")
    except ValueError as error:
        return refuse(str(error))
    except OSError as error:
        return refuse(f"{error.filename}: {error.strerror}")
    print(f"wrote {len(files)} datasets to {arguments.out}, and {picture}", file=sys.stderr)
    return 0


def _add_predict(commands: argparse._SubParsersAction[_Parser]) -> None:
    predictor = commands.add_parser(
        "predict", help="predicted imbalance score of datasets, with its components"
    )
    predictor.add_argument("files", type=Path, nargs="+", metavar="FILE")
    predictor.add_argument("--json", action="store_true")
    predictor.set_defaults(command=_predict)


def _predict(arguments: argparse.Namespace) -> int:
    import json

    from core import errors
    from core.workload import dataset, predictor

    found, failed = {}, 0
    for place, file in enumerate(arguments.files, 1):
        try:
            prompts = dataset.read(file, dataset.index_of(file, place)).prompts
            found[str(file)] = predictor.predict([p.text for p in prompts])
        except (errors.DatasetError, ValueError) as error:
            complain(str(error))
            failed += 1
    if arguments.json:
        whole = {
            f: {"score": p.score, "components": p.components, "raw_metrics": p.raw_metrics}
            for f, p in found.items()
        }
        print(json.dumps(whole, indent=1))
    else:
        for file_name, prediction in found.items():
            print(f"{prediction.score:.4f}  {file_name}")
            for name, part in prediction.components.items():
                print(
                    f"          {name:<24}{part['contribution']:.4f}  {part['percentage']:5.1f} %"
                )
    return BAD_USAGE if not found else 1 if failed else 0


# --- run directories ---


def _report(arguments: argparse.Namespace) -> int:
    from core.report import report
    from core.terminal import printable

    files, validity = report.write(arguments.run_dir, arguments.only)
    for line in (*validity.in_words(), *(f"wrote {file}" for file in files)):
        print(printable(line), file=sys.stderr)
    return 1 if arguments.strict and validity.is_invalid else 0


def _export(arguments: argparse.Namespace) -> int:
    from core.report import export

    write = export.upstream if arguments.layout == "upstream" else export.parquet
    for file in write(arguments.run_dir, arguments.out or arguments.run_dir / "export"):
        print(f"wrote {file}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
