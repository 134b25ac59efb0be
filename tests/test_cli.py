"""The command line: exit codes, data on stdout, messages on stderr, one line for every mistake."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from support.watched import free_port

from core import cli
from core.commands import attach, doctor, plot, report, serve
from core.errors import GateLogError, GatescopeError, LoadError
from core.workload import predictor

SHIPPED = Path(__file__).parents[1] / "datasets"
PNG = b"\x89PNG\r\n\x1a\n"


class Answer:
    """The exit code and output of one command."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


Gatescope = Callable[..., Answer]


@pytest.fixture
def gatescope(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Gatescope:
    """Runs `gatescope ARGUMENTS…` in an empty directory of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: str | Path) -> Answer:
        try:
            code = cli.main([str(a) for a in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        return Answer(code, *capfd.readouterr())

    return run


class TestUsage:
    @pytest.mark.parametrize("kind", [GateLogError, LoadError])
    def test_an_error_of_the_family_is_a_line_and_exit_2(
        self, kind: type[GatescopeError], gatescope: Gatescope, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(arguments: Namespace) -> int:
            raise kind("what happened; what to do")

        monkeypatch.setattr(plot, "run", fail)
        answer = gatescope("plot", "run")
        assert (answer.code, answer.out) == (2, "")
        assert answer.err == "gatescope: what happened; what to do\n"

    def test_help_names_every_command_and_the_exit_codes(self, gatescope: Gatescope) -> None:
        answer = gatescope("--help")
        assert (answer.code, answer.err) == (0, "")
        for command, line in cli.COMMANDS.items():
            assert f"\n    {command} " in answer.out
            assert line in " ".join(answer.out.split())
        assert "0 all done; 1 some run, file or item failed; 2 bad usage" in answer.out

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--batc"], "gatescope: unrecognized arguments: --batc"),
            (
                ["--batch", "--only", ""],
                "gatescope: argument --only: expected names with commas between them, got ''",
            ),
            (
                ["--batch", "--only", "001,,2"],
                "gatescope: argument --only: expected names with commas between them",
            ),
            (
                ["--batch", "--backend", ","],
                "gatescope: argument --backend: expected names with commas between them",
            ),
            (["--batch", "--engine", "gpu"], "gatescope: argument --engine: invalid choice: 'gpu'"),
            (["--batch", "--config"], "gatescope: argument --config: expected one argument"),
            (["frobnicate"], "gatescope: argument COMMAND: invalid choice: 'frobnicate'"),
            (["predict"], "gatescope predict: one of the arguments FILE --run is required"),
            (
                ["generate", "--count", "0"],
                "gatescope generate: argument --count: expected a whole number of at least 1",
            ),
            (["generate", "--seed", "-1"], "gatescope generate: argument --seed: expected "),
            (
                ["generate", "--target", "1.5"],
                "gatescope generate: argument --target: expected scores between 0 and 1",
            ),
            (
                ["generate", "--target", "nan"],
                "gatescope generate: argument --target: expected scores between 0 and 1",
            ),
            (
                ["generate", "--target", "0.3,"],
                "gatescope generate: argument --target: expected scores between 0 and 1",
            ),
            (
                ["bench", "f.jsonl", "--port", "0"],
                "gatescope bench: argument --port: expected a port, 1 to 65535, got '0'",
            ),
            (
                ["serve", "baseline", "--ep-size", "0"],
                "gatescope serve: argument --ep-size: expected a whole number of at",
            ),
            (
                ["bench", "f.jsonl", "--port", "65536"],
                "gatescope bench: argument --port: expected a port, 1 to 65535",
            ),
            (
                ["bench", "f.jsonl"],
                "gatescope bench: one of the arguments --base-url --port is required",
            ),
            (
                ["bench", "f.jsonl", "--port", "1", "--request-rate", "nan"],
                "gatescope bench: argument --request-rate: ",
            ),
            (
                ["bench", "f.jsonl", "--port", "1", "--num-prompts", "1.5"],
                "gatescope bench: argument --num-prompts: ",
            ),
        ],
    )
    def test_a_mistake_is_one_line_with_the_way_to_help(
        self, gatescope: Gatescope, tmp_path: Path, arguments: list[str], said: str
    ) -> None:
        answer = gatescope(*arguments)
        assert (answer.code, answer.out) == (2, "")
        assert answer.err.startswith(said)
        assert answer.err.endswith("--help\n")
        assert len(answer.err.splitlines()) == 1
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("command", ["", *cli.COMMANDS])
    def test_every_argument_has_a_help_text(self, gatescope: Gatescope, command: str) -> None:
        """On the argument's own line, or on the next one, which is indented further."""
        answer = gatescope(*command.split(), "--help")
        assert (answer.code, answer.err) == (0, "")
        heads = re.compile(r"  (COMMAND|\w+(\|\w+)+)")  # of a list of commands
        lines = [line for line in answer.out.splitlines() if not heads.fullmatch(line)]
        arguments = [n for n, line in enumerate(lines) if re.match(r"  \S", line)]
        assert arguments
        for n in arguments:
            own = re.match(r"  .*\S  +\S", lines[n])
            assert own or re.match(r" {4,}\S", lines[n + 1]), lines[n]

    def test_the_config_s_default_is_named(self, gatescope: Gatescope) -> None:
        for command in ([], ["serve"], ["doctor"]):
            text = " ".join(gatescope(*command, "--help").out.split())
            assert "--config F config file (default: experiments.toml)" in text

    def test_version(self, gatescope: Gatescope) -> None:
        answer = gatescope("--version")
        assert (answer.code, answer.out, answer.err) == (
            0,
            f"gatescope {version('gatescope')}\n",
            "",
        )
        assert re.fullmatch(r"gatescope \d+\.\d+\.\d+\n", answer.out)


class TestOptionsBeforeACommand:
    """They act as they would after it, or are refused."""

    @pytest.mark.parametrize(
        ("before", "command"),
        [
            (["--config", "nope.toml"], ["doctor"]),
            (["--config", "nope.toml"], ["serve", "baseline"]),
            (["--config=nope.toml"], ["serve", "baseline"]),
            (["--engine", "builtin"], ["serve", "baseline"]),
            (["--only", "001"], ["report", "none"]),
            (["--only", "001"], ["plot"]),
            (["--backend", "baseline"], ["plot", "none"]),
            (["--ascii"], ["attach", "none"]),
            (["--json"], ["predict", "none.jsonl"]),
            (["--json"], ["bench", "none.jsonl", "--port", "1"]),
            (["--json"], ["imbalance", "none"]),
            (["--out", "file"], ["generate", "--count", "1"]),
        ],
    )
    def test_that_the_command_takes_act(
        self, gatescope: Gatescope, tmp_path: Path, before: list[str], command: list[str]
    ) -> None:
        (tmp_path / "file").touch()
        answer, same = gatescope(*before, *command), gatescope(*command, *before)
        assert (answer.code, answer.out, answer.err) == (same.code, same.out, same.err)
        assert "does not apply" not in answer.err

    def test_reach_the_command(self, gatescope: Gatescope, monkeypatch: pytest.MonkeyPatch) -> None:
        found: list[Namespace] = []

        def kept(arguments: Namespace) -> int:
            found.append(arguments)
            return 0

        for module in (attach, doctor, plot, report, serve):
            monkeypatch.setattr(module, "run", kept)
        gatescope("--ascii", "attach", "RUN")
        gatescope("--config", "a.toml", "doctor")
        gatescope("--only", "001,002", "report", "RUN")
        gatescope("--only", "001", "--backend", "all2all", "plot", "RUN", "--only", "002")
        gatescope("--engine=builtin", "--config", "a.toml", "serve", "baseline")
        a, d, r, p, s = found
        assert a.ascii
        assert d.config == Path("a.toml")
        assert r.only == ["001", "002"]
        assert (p.only, p.backend) == (["002"], "all2all")  # the later one counts, as always
        assert (s.engine, s.config, s.name) == ("builtin", Path("a.toml"), "baseline")

    @pytest.mark.parametrize("command", cli.COMMANDS)
    @pytest.mark.parametrize(
        "option",
        [
            ["--batch"],
            ["--config=F"],
            ["--out", "DIR"],
            ["--only", "001"],
            ["--backend", "NAME"],
            ["--engine", "vllm"],
            ["--dose", "0.5"],
            ["--pattern", "spread"],
            ["--json"],
            ["--resume", "DIR"],
            ["--retry-cancelled"],
            ["--ascii"],
        ],
        ids=lambda option: option[0],
    )
    def test_that_it_does_not_take_are_refused_by_name(
        self, gatescope: Gatescope, tmp_path: Path, command: str, option: list[str]
    ) -> None:
        name = option[0].partition("=")[0]
        if f"{name} " in gatescope(command, "--help").out.replace("]", " "):
            return
        answer = gatescope(*option, command)
        assert (answer.code, answer.out) == (2, "")
        assert answer.err == (
            f"gatescope {command}: {name} does not apply to this command; leave it out;"
            f" see gatescope {command} --help\n"
        )
        assert not list(tmp_path.iterdir())


class TestCompletion:
    @pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
    def test_knows_every_command_and_its_options(self, gatescope: Gatescope, shell: str) -> None:
        answer = gatescope("--print-completion", shell)
        assert (answer.code, answer.err) == (0, "")
        for name in (*cli.COMMANDS, "retry-cancelled", "print-completion"):
            assert name in answer.out
        for option in ("stall-timeout", "baseline-imbalance", "batch-tokens", "layout"):
            assert option in answer.out

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (["plo"], {"plot"}),
            (["bench", "--stall"], {"--stall-timeout"}),
            (["plot", "--figure", "he"], {"heatmap"}),
            (["predict", "da"], {"data.jsonl", "datasets"}),
            (["report", "da"], {"datasets"}),
            (["--config", "da"], {"data.jsonl", "datasets"}),
        ],
    )
    def test_completes_in_bash(
        self, gatescope: Gatescope, tmp_path: Path, words: list[str], expected: set[str]
    ) -> None:
        (tmp_path / "datasets").mkdir()
        (tmp_path / "data.jsonl").touch()
        script = gatescope("--print-completion", "bash").out
        typed = shlex.join(["gatescope", *words])
        end = (
            f"COMP_WORDS=({typed}); COMP_CWORD={len(words)}; _shtab_gatescope gatescope {words[-1]}"
        )
        program = f"{script}\n{end}\nprintf '%s\\n' \"${{COMPREPLY[@]}}\""
        done = subprocess.run(
            ["bash", "-c", program], cwd=tmp_path, capture_output=True, timeout=60
        )
        assert {name.rstrip("/") for name in done.stdout.decode().split()} == expected

    def test_a_shell_that_is_not_known_is_refused(self, gatescope: Gatescope) -> None:
        answer = gatescope("--print-completion", "fish")
        assert (answer.code, answer.out) == (2, "")
        assert answer.err.startswith("gatescope: argument --print-completion: invalid choice")


class TestStandardOutput:
    COMMAND = (
        sys.executable,
        "-m",
        "core.cli",
        "predict",
        "--json",
        *map(str, sorted(SHIPPED.glob("00*.jsonl"))),
    )

    def test_whose_reader_leaves_ends_the_command_as_the_signal_would(self) -> None:
        read_end, write_end = os.pipe()
        os.close(read_end)
        with open(write_end, "wb") as out:
            done = subprocess.run(self.COMMAND, stdout=out, stderr=subprocess.PIPE, timeout=60)
        assert (done.returncode, done.stderr) == (128 + 13, b"")

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_on_a_full_disk_is_said_in_one_line(self) -> None:
        with open("/dev/full", "wb") as out:
            done = subprocess.run(self.COMMAND, stdout=out, stderr=subprocess.PIPE, timeout=60)
        assert (done.returncode, done.stderr) == (
            1,
            b"gatescope: [Errno 28] No space left on device\n",
        )

    def test_that_cannot_show_a_character_gets_it_escaped(self, tmp_path: Path) -> None:
        file = tmp_path / "żółć.jsonl"
        file.write_bytes(min(SHIPPED.glob("001_*.jsonl")).read_bytes())
        env = {**os.environ, "PYTHONIOENCODING": "ascii"}
        done = subprocess.run(
            [*self.COMMAND[:4], file.name], cwd=tmp_path, env=env, capture_output=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"\\u017c\\xf3\\u0142\\u0107.jsonl" in done.stdout


class TestGenerate:
    def test_writes_datasets_and_draws_their_scores(
        self, gatescope: Gatescope, tmp_path: Path
    ) -> None:
        answer = gatescope("generate", "--out", "made", "--count", "3", "--seed", "4")
        assert (answer.code, answer.out) == (0, "")
        entries = json.loads((tmp_path / "made" / "metadata.json").read_text())
        files = sorted(p.name for p in (tmp_path / "made").glob("*.jsonl"))
        assert files == [e["file"] for e in entries]
        assert [f[:4] for f in files] == ["001_", "002_", "003_"]
        assert "predicted imbalance score (n = 3)" in answer.err
        assert "wrote 3 datasets to made, and graphs/score_distribution.png" in answer.err
        assert (tmp_path / "graphs" / "score_distribution.png").read_bytes().startswith(PNG)

    def test_targets_are_met(self, gatescope: Gatescope, tmp_path: Path) -> None:
        assert gatescope("generate", "--out", "made", "--target", "0.4,0.9").code == 0
        scores = [e["score"] for e in json.loads((tmp_path / "made" / "metadata.json").read_text())]
        assert scores == pytest.approx([0.4, 0.9], abs=0.005)

    @pytest.mark.parametrize("change", ["fewer", "another seed", "edited"])
    def test_an_earlier_dataset_stays_without_replace(
        self, gatescope: Gatescope, tmp_path: Path, change: str
    ) -> None:
        assert gatescope("generate", "--count", "3").code == 0
        files = {p.name: p for p in (tmp_path / "datasets").glob("*.jsonl")}
        first, third = min(files), max(files)
        if change == "edited":
            files[first].write_text('{"id": "a", "text": "mine"}\n')
        before = {name: file.read_bytes() for name, file in files.items()}
        again = {"fewer": ["--count", "2"], "another seed": ["--count", "3", "--seed", "1"]}
        options = again.get(change, ["--count", "3"])
        answer = gatescope("generate", *options)
        assert answer.code == 2
        lost = third if change == "fewer" else first
        assert "datasets: this would remove " in answer.err
        assert lost in answer.err
        assert "; --replace does so, --out takes another folder" in answer.err
        assert {p.name: p.read_bytes() for p in (tmp_path / "datasets").glob("*.jsonl")} == before

        assert gatescope("generate", *options, "--replace").code == 0
        after = {p.name: p.read_bytes() for p in (tmp_path / "datasets").glob("*.jsonl")}
        assert len(after) == int(options[1])
        assert after != before

    def test_the_same_again_and_more_of_it_replace_nothing(
        self, gatescope: Gatescope, tmp_path: Path
    ) -> None:
        for count in (2, 2, 3):
            assert gatescope("generate", "--count", str(count)).code == 0
            assert len(list((tmp_path / "datasets").glob("*.jsonl"))) == count

    def test_foreign_datasets_are_not_replaced(self, gatescope: Gatescope, tmp_path: Path) -> None:
        (tmp_path / "datasets").mkdir()
        (tmp_path / "datasets" / "001_mine.jsonl").write_text('{"id": "a", "text": "b"}\n')
        answer = gatescope("generate", "--count", "1")
        assert (answer.code, answer.out) == (2, "")
        assert answer.err.startswith(
            "gatescope: datasets holds 1 dataset not listed in its metadata.json"
        )
        assert [p.name for p in (tmp_path / "datasets").iterdir()] == ["001_mine.jsonl"]

    @pytest.mark.parametrize(
        ("where", "said"), [("file", "file: File exists"), ("file/x", "file/x: Not a directory")]
    )
    def test_an_output_that_cannot_be_written_is_named(
        self, gatescope: Gatescope, tmp_path: Path, where: str, said: str
    ) -> None:
        (tmp_path / "file").touch()
        answer = gatescope("generate", "--count", "1", "--out", where)
        assert (answer.code, answer.err) == (2, f"gatescope: {said}\n")


class TestPredict:
    FILE = min(SHIPPED.glob("001_*.jsonl"))

    def test_json_holds_the_whole_prediction_of_every_file(self, gatescope: Gatescope) -> None:
        other = min(SHIPPED.glob("004_*.jsonl"))
        answer = gatescope("predict", self.FILE, other, "--json")
        assert (answer.code, answer.err) == (0, "")
        found = json.loads(answer.out)
        assert list(found) == [str(self.FILE), str(other)]
        texts = [json.loads(line)["text"] for line in self.FILE.read_text().splitlines()]
        expected = predictor.predict(texts)
        assert found[str(self.FILE)] == {
            "score": expected.score,
            "components": expected.components,
            "raw_metrics": expected.raw_metrics,
        }
        assert f"{found[str(other)]['score']:.4f}" in other.name

    def test_a_reader_gets_the_score_and_what_makes_it_up(self, gatescope: Gatescope) -> None:
        answer = gatescope("predict", self.FILE)
        head, *parts = answer.out.splitlines()
        assert head == f"{self.FILE.stem.split('_')[1]}  {self.FILE}"
        assert len(parts) == 7
        assert sum(float(p.split()[1]) for p in parts) == pytest.approx(
            float(head.split()[0]), abs=5e-4
        )
        assert sum(float(p.split()[2]) for p in parts) == pytest.approx(
            100 * float(head.split()[0]), abs=0.5
        )

    def test_a_bad_file_is_named_and_the_rest_is_done(
        self, gatescope: Gatescope, tmp_path: Path
    ) -> None:
        (tmp_path / "bad.jsonl").write_text('{"id": 1}\n')
        answer = gatescope("predict", "none.jsonl", self.FILE, "bad.jsonl", "--json")
        assert answer.code == 1
        assert list(json.loads(answer.out)) == [str(self.FILE)]
        missing, bad = answer.err.splitlines()
        assert missing == "gatescope: none.jsonl: cannot be read: No such file or directory"
        assert bad.startswith("gatescope: bad.jsonl:1: expected ")

    def test_other_benchmarks_datasets_have_the_score_of_their_texts(
        self, gatescope: Gatescope, tmp_path: Path
    ) -> None:
        texts = [json.loads(line)["text"] for line in self.FILE.read_text().splitlines()]
        talks = [
            {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "yes"}]}
            for text in texts
        ]
        (tmp_path / "talks.json").write_text("\ufeff" + json.dumps(talks))
        answer = gatescope("predict", "talks.json", "--json")
        assert (answer.code, answer.err) == (0, "")
        found = json.loads(answer.out)["talks.json"]["score"]
        assert found == pytest.approx(predictor.predict(texts).score)

    def test_nothing_that_can_be_read_is_bad_input(self, gatescope: Gatescope) -> None:
        assert gatescope("predict", "none.jsonl").code == 2


class TestBatchMistakes:
    """A mistake starts nothing: no run directory, no server."""

    CONFIG = '[experiment]\nengine = "builtin"\n[[backends]]\nname = "baseline"\nport = {port}\n'

    @pytest.mark.parametrize(
        ("config", "arguments", "said"),
        [
            (None, [], "experiments.toml: no such file; write one with: gatescope init"),
            (
                CONFIG + "pot = 1\n",
                [],
                "experiments.toml: [[backends]] number 1, pot: unknown key; did you mean 'port'?",
            ),
            (CONFIG, ["--only", "9"], "--only 9: no such dataset; there are 2, from 001 to 002"),
            (
                CONFIG,
                ["--backend", "base"],
                "experiments.toml: [[backends]]: there is no backend 'base'; did you mean",
            ),
            (
                CONFIG,
                ["--config", "other.toml"],
                "other.toml: no such file; write one with: gatescope init",
            ),
            (
                CONFIG,
                ["--out", "datasets"],
                "datasets: --out must be new or empty; to resume an interrupted run use",
            ),
            (
                CONFIG,
                ["--resume", "datasets"],
                "datasets: not a run directory: run.json and events.jsonl are expected in",
            ),
            (
                CONFIG,
                ["--resume", "none"],
                "none: not a run directory: run.json and events.jsonl are expected in it",
            ),
            (
                CONFIG,
                ["--resume", "none", "--only", "001"],
                "--resume runs what was selected at the start; leave out --only",
            ),
            (
                CONFIG.replace("port =", 'python = "/none/python"\nport ='),
                ["--engine", "vllm"],
                "/none/python: no such interpreter; python in [[backends]] names one that has vLLM",
            ),
            (
                CONFIG.replace("engine", 'datasets = "bad/*"\nengine'),
                [],
                "bad/001.jsonl:2: expected ",
            ),
        ],
    )
    def test_is_one_line_and_starts_nothing(
        self,
        gatescope: Gatescope,
        tmp_path: Path,
        config: str | None,
        arguments: list[str],
        said: str,
    ) -> None:
        (tmp_path / "bad").mkdir()
        (tmp_path / "bad" / "001.jsonl").write_text('{"id": "a", "text": "b"}\n{}\n')
        (tmp_path / "datasets").mkdir()
        for name in ("001_0.5.jsonl", "002_0.5.jsonl"):
            (tmp_path / "datasets" / name).write_text('{"id": "a", "text": "b"}\n')
        if config is not None:
            (tmp_path / "experiments.toml").write_text(config.format(port=free_port()))
        before = sorted(tmp_path.rglob("*"))
        answer = gatescope("--batch", *arguments)
        assert (answer.code, answer.out) == (2, "")
        assert answer.err.replace(f"{tmp_path}/", "").startswith(f"gatescope: {said}")
        assert len(answer.err.splitlines()) == 1
        assert sorted(tmp_path.rglob("*")) == before
