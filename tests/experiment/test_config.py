"""experiments.toml: what it resolves to, and that every mistake is one line that says where, what
and what else."""

from __future__ import annotations

import os
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.about import about

from core import files
from core.errors import ConfigError, FileError
from core.experiment import config
from core.experiment.config import Config
from core.experiment.tables import Backend, Experiment, Forcing, Model
from core.rundir import about as run_json

SHIPPED = Path(__file__).parents[2] / "experiments.toml"
BACKEND = '[[backends]]\nname = "baseline"\n'


def write(folder: Path, text: str | bytes, datasets: int = 2) -> Path:
    """An experiments.toml beside `datasets` files of one prompt each."""
    (folder / "datasets").mkdir(parents=True, exist_ok=True)
    for i in range(1, datasets + 1):
        (folder / "datasets" / f"{i:03d}_0.5000.jsonl").write_text('{"id": "a", "text": "b"}\n')
    file = folder / "experiments.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def mistake(file: Path) -> str:
    """The text of the ConfigError, without the file's name that it starts with."""
    with pytest.raises(ConfigError) as caught:
        config.load(file)
    said = str(caught.value)
    assert said.startswith(f"{file}: ")
    assert len(said.splitlines()) == 1
    return said.removeprefix(f"{file}: ")


def test_the_shipped_file_holds_every_key_with_its_default() -> None:
    loaded = config.load(SHIPPED)
    assert loaded.experiment == Experiment(starts="auto")
    assert loaded.model == Model()
    assert loaded.backends == (
        Backend(name="baseline"),
        Backend(
            name="all2all",
            tensor_parallel=1,
            data_parallel=4,
            expert_parallel=True,
            moe_backend="flashinfer_cutlass",
            all2all_backend="allgather_reducescatter",
        ),
    )
    text = SHIPPED.read_text()
    for table in (Experiment, Model, Backend):
        for key in table.__struct_fields__:
            assert f"\n{key} = " in text, f"{key} is not shown to the reader of experiments.toml"
    for key in Forcing.__struct_fields__:
        assert f"\n# {key} = " in text
    assert loaded.dose is None
    assert [p.name[:3] for p in loaded.dataset_paths] == [f"{i:03d}" for i in range(1, 51)]


def test_left_out_keys_and_tables_take_their_defaults(tmp_path: Path) -> None:
    loaded = config.load(write(tmp_path, BACKEND))
    assert (loaded.experiment, loaded.model, loaded.backends) == (
        Experiment(),
        Model(),
        (Backend(name="baseline"),),
    )
    assert loaded.dataset_paths == tuple(sorted((tmp_path / "datasets").iterdir()))


def test_paths_are_absolute_so_that_a_run_resumes_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write(tmp_path, BACKEND).parent)
    loaded = config.load(Path("experiments.toml"))
    assert loaded.path == tmp_path / "experiments.toml"
    assert loaded.dataset_paths == tuple(sorted((tmp_path / "datasets").iterdir()))


def test_a_path_that_json_cannot_name_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, BACKEND)
    odd = os.fsencode(tmp_path / "datasets") + b"/003_\xff.jsonl"
    Path(os.fsdecode(odd)).write_text("")
    with pytest.raises(
        FileError, match=r"003_\\udcff\.jsonl': expected a path in UTF-8; rename it$"
    ):
        config.load(file)


def test_ranks_are_tensor_times_data_parallel() -> None:
    assert Backend(name="a", tensor_parallel=2, data_parallel=3).ranks == 6


@pytest.mark.parametrize(
    ("written", "resolved"),
    [
        ("../env/bin/python", "{folder}/env/bin/python"),
        ("/opt/p", "/opt/p"),
        ("python3", "python3"),
    ],
)
def test_an_interpreter_with_a_slash_is_a_path_from_the_file(
    tmp_path: Path, written: str, resolved: str
) -> None:
    file = write(tmp_path / "inner", f'{BACKEND}python = "{written}"')
    assert config.load(file).backends[0].python == resolved.format(folder=tmp_path)


def test_globs_are_relative_to_the_file_and_each_file_is_taken_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    folder = tmp_path / "with [brackets] and *"
    globs = f'["datasets/002*.jsonl", "datasets/*.jsonl", "{tmp_path}/*.jsonl"]'
    text = f"[experiment]\ndatasets = {globs}\n{BACKEND}"
    (tmp_path / "000_0.1.jsonl").write_text('{"id": "a", "text": "b"}\n')
    found = config.load(write(folder, text)).dataset_paths
    assert [str(p.relative_to(tmp_path)) for p in found] == [
        "000_0.1.jsonl",
        "with [brackets] and */datasets/001_0.5000.jsonl",
        "with [brackets] and */datasets/002_0.5000.jsonl",
    ]


def test_a_byte_order_mark_and_crlf_are_read(tmp_path: Path) -> None:
    assert (
        config.load(
            write(tmp_path, b"\xef\xbb\xbf[experiment]\r\nseed = 3\r\n" + BACKEND.encode())
        ).experiment.seed
        == 3
    )


@pytest.mark.parametrize(
    ("written", "rate"), [('"inf"', "inf"), ("inf", "inf"), ("2", 2.0), ("0.5", 0.5)]
)
def test_a_rate_is_a_number_or_inf(tmp_path: Path, written: str, rate: float | str) -> None:
    text = f"[experiment]\nrequest_rate = {written}\n{BACKEND}"
    assert config.load(write(tmp_path, text)).experiment.request_rate == rate


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("num_prompt = 3", "num_prompt: unknown key; did you mean 'num_prompts'?"),
        ("port = 8000", "port: unknown key; it belongs in [[backends]]"),
        ("max_model_len = 1", "max_model_len: unknown key; it belongs in [model]"),
        (
            '"a\\nb" = 1',
            r"'a\nb': unknown key; known: name, engine, datasets, num_prompts, input_len,",
        ),
        ("num_prompts = 0", "num_prompts: expected a whole number of at least 1, got 0"),
        ("num_prompts = -3", "num_prompts: expected a whole number of at least 1, got -3"),
        ('num_prompts = "3"', "num_prompts: expected a whole number of at least 1, got '3'"),
        ("num_prompts = true", "num_prompts: expected a whole number of at least 1, got true"),
        ("num_prompts = 3.0", "num_prompts: expected a whole number of at least 1, got 3.0"),
        ("num_prompts = [3]", "num_prompts: expected a whole number of at least 1, got a list"),
        ("num_prompts.a.b = 3", "num_prompts: expected a whole number of at least 1, got a table"),
        (
            "seed = 99999999999",
            "seed: expected a whole number of at most 2147483647, got 99999999999",
        ),
        ("pause_s = -0.5", "pause_s: expected a number of at least 0, got -0.5"),
        ("pause_s = nan", "pause_s: expected a number of at least 0, got nan"),
        ("pause_s = inf", "pause_s: expected a number of at most 1000000000, got inf"),
        ("pause_s = 1979-05-27", "pause_s: expected a number of at least 0, got 1979-05-27"),
        ("stall_timeout_s = 0", "stall_timeout_s: expected a number above 0, got 0"),
        ("max_error_rate = 1.5", "max_error_rate: expected a number of at most 1, got 1.5"),
        ("strict = 1", "strict: expected true or false, got 1"),
        ('engine = "gpu"', 'engine: expected "auto" or "builtin" or "vllm", got \'gpu\''),
        (
            "request_rate = 0",
            "request_rate: expected a number of requests per second, at least 0.000001,"
            ' or "inf", got 0',
        ),
        (
            'request_rate = "2"',
            "request_rate: expected a number of requests per second, at least 0.000001,"
            " or \"inf\", got '2'",
        ),
        (
            "temperature = -0.1",
            'temperature: expected a number from 0 to 100, or "auto", got -0.1',
        ),
        ("temperature = nan", 'temperature: expected a number from 0 to 100, or "auto", got nan'),
        (
            'temperature = "cold"',
            "temperature: expected a number from 0 to 100, or \"auto\", got 'cold'",
        ),
        ("weights = 1", "weights: unknown key; it belongs in [model]"),
        ("slo = {ttft_ms = -1}", "slo, ttft_ms: expected a number above 0, got -1"),
        ("slo.ttft = 1", "slo, ttft: unknown key; did you mean 'ttft_ms'?"),
        ("slo = 3", "slo: expected a table, got 3"),
        ("load_workers = 0", 'load_workers: expected a whole number above 0, or "auto", got 0'),
        (
            'arrival = "uniform"',
            'arrival: expected "constant" or "poisson" or "trace", got \'uniform\'',
        ),
        (
            'name = "../up"',
            "name: expected at most 80 letters, digits, '.', '_' and '-', starting with a letter",
        ),
        (
            'name = "end\\n"',
            "name: expected at most 80 letters, digits, '.', '_' and '-', starting with a letter",
        ),
        ("datasets = 3", "datasets: expected a glob, or a list of globs, got 3"),
        ("datasets = [3]", "datasets, item 1: expected a text, got 3"),
        ("datasets = []", "datasets: expected at least one glob, got none"),
        (
            'datasets = "nope/*.jsonl"',
            "datasets: expected a glob that matches files, 'nope/*.jsonl' matches none in ",
        ),
        (
            'datasets = "datasets"',
            "datasets: expected a glob that matches files, 'datasets' matches none in ",
        ),
        ('datasets = ""', "datasets: expected a glob that matches files, '' matches none in "),
        ('datasets = "a\\u0000b"', r"datasets: expected a text without NUL, got 'a\x00b'"),
        (
            "output_len = 4096",
            "output_len: expected prompt and output within [model] max_model_len (4096),"
            " got 4097 token",
        ),
        (
            "input_len = 4047",
            "output_len: expected prompt and output within [model] max_model_len (4096),"
            " got 4097 token",
        ),
    ],
)
def test_a_mistake_in_experiment_is_one_line(tmp_path: Path, line: str, said: str) -> None:
    assert mistake(write(tmp_path, f"[experiment]\n{line}\n{BACKEND}")).startswith(
        f"[experiment], {said}"
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("tensor_paralel = 4", "tensor_paralel: unknown key; did you mean 'tensor_parallel'?"),
        ("port = -1", "port: expected a whole number of at least 0, got -1"),
        ("port = 65536", "port: expected a whole number of at most 65535, got 65536"),
        ("data_parallel = 0", "data_parallel: expected a whole number of at least 1, got 0"),
        ('extra_args = "--x"', "extra_args: expected a list, got '--x'"),
        ("extra_args = [1]", "extra_args, item 1: expected a text, got 1"),
        ('env = "A=1"', "env: expected a table, got 'A=1'"),
        ("env = {A = 1}", "env, A: expected a text, got 1"),
        ('env = {"A=B" = "1"}', "env: expected names of environment variables, got 'A=B'"),
        ('env = {A = "\\u0000"}', r"env, A: expected a text without NUL, got '\x00'"),
        (
            "max_num_batched_tokens = 31",
            "max_num_batched_tokens: expected at least max_num_seqs (32), since a running",
        ),
        ('extra_args = ["--api_key=k"]', "extra_args: expected no API key; leave it out"),
        ('env = { VLLM_API_KEY = "k" }', "env: expected no API key; leave it out"),
        ('name = "graphs"', "name: expected a name of its own, 'graphs' is taken; rename it"),
        ('name = "Baseline"', "name: expected a name of its own, 'Baseline' is taken; rename it"),
        ("port = 1", "name: expected a value, the key is missing"),
    ],
)
def test_a_mistake_in_a_backend_is_one_line(tmp_path: Path, line: str, said: str) -> None:
    named = "" if line.startswith("name") or "missing" in said else 'name = "second"\n'
    found = mistake(write(tmp_path, f"{BACKEND}[[backends]]\n{named}{line}\n"))
    assert found.startswith(f"[[backends]] number 2, {said}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "[[backends]]: expected at least one [[backends]] table (in double brackets)"),
        (
            '[backends]\nname = "a"',
            "[[backends]]: expected at least one [[backends]] table (in double brackets)",
        ),
        ("backends = [1]", "[[backends]] number 1: expected a table, got 1"),
        (f"experiment = 3\n{BACKEND}", "[experiment]: expected a table, got 3"),
        (f'[model]\nid = ""\n{BACKEND}', "[model], id: expected a text that is not empty, got ''"),
        (
            f"[experimnt]\n{BACKEND}",
            "the top level, experimnt: unknown table; did you mean 'experiment'?",
        ),
        (f"seed = 3\n{BACKEND}", "the top level, seed: unknown table; it belongs in [experiment]"),
        (
            f"{BACKEND}{BACKEND}",
            "[[backends]] number 2, name: expected a name of its own, 'baseline' is taken",
        ),
        (
            "a b",
            "not valid TOML: Expected '=' after a key in a key/value pair (at line 1, column 3)",
        ),
        ("seed = " + "9" * 5000, "not valid TOML: Exceeds the limit (4300 digits)"),
        ("a = " + "[" * 5000, "not valid TOML: nested too deeply"),
        ("experiment.seed" + ".a" * 5000, "not valid TOML: nested too deeply"),
        (
            "experiment.seed" + ".a" * 500 + f" = 1\n{BACKEND}",
            "[experiment], seed: expected a whole number of at least 0, got a tab",
        ),
        (b"\xff\xfe", "expected UTF-8 text, byte 0 is not: invalid start byte"),
    ],
    ids=range(14),
)
def test_a_mistake_in_the_file_is_one_line(tmp_path: Path, text: str | bytes, said: str) -> None:
    assert mistake(write(tmp_path, text)).startswith(said)


class TestSeveralMistakes:
    """Each is a line of its own, in the order of the file."""

    def lines(self, file: Path) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            config.load(file)
        return [line.removeprefix(f"{file}: ") for line in str(caught.value).splitlines()]

    def test_in_every_table_are_all_named(self, tmp_path: Path) -> None:
        text = """
extra = 1
[experiment]
datasets = ["nope/*.jsonl", "datasets/*.jsonl"]
output_len = "x"
num_prompt = 3
slo = {ttft_ms = -1, tpot = 2}
[[backends]]
port = -1
max_num_batched_tokens = 16
env = {A = "1", B = 2, C = 3}
[model]
max_model_len = 0
id = 3
[[backends]]
name = "second"
extra_args = ["a", 1, "b", 2, "--api-key=k"]
nme = "x"
[dose]
levels = [0.5, 0.123456, -1, 2, "x"]
patterns = ["hot-ranks"]
"""
        assert self.lines(write(tmp_path, text)) == [
            "the top level, extra: unknown table; known: experiment, model, backends, dose,"
            " sweep, search, cluster",
            "[experiment], datasets: expected a glob that matches files, 'nope/*.jsonl' matches"
            f" none in {tmp_path}; make some with: gatescope generate",
            "[experiment], output_len: expected a whole number of at least 1, got 'x'",
            "[experiment], num_prompt: unknown key; did you mean 'num_prompts'?",
            "[experiment], slo, ttft_ms: expected a number above 0, got -1",
            "[experiment], slo, tpot: unknown key; did you mean 'tpot_ms'?",
            "[[backends]] number 1, port: expected a whole number of at least 0, got -1",
            "[[backends]] number 1, max_num_batched_tokens: expected at least max_num_seqs (32),"
            " since a running request takes a token of every step, got 16",
            "[[backends]] number 1, env, B: expected a text, got 2",
            "[[backends]] number 1, env, C: expected a text, got 3",
            "[[backends]] number 1, name: expected a value, the key is missing",
            "[[backends]] number 2, extra_args: expected no API key; leave it out: each start"
            " gets a key of its own",
            "[[backends]] number 2, extra_args, item 2: expected a text, got 1",
            "[[backends]] number 2, extra_args, item 4: expected a text, got 2",
            "[[backends]] number 2, nme: unknown key; did you mean 'name'?",
            "[model], max_model_len: expected a whole number of at least 1, got 0",
            "[model], id: expected a text that is not empty, got 3",
            "[dose], levels, item 3: expected a CV of expert load, a number from 0 to 100, got -1",
            "[dose], levels, item 5: expected a CV of expert load, a number from 0 to 100, got 'x'",
            '[dose], patterns, item 1: expected "few-experts" or "hot-experts" or "hot-rank" or'
            ' "rotating" or "spread", got \'hot-ranks\'',
        ]

    def test_one_that_follows_from_another_is_left_out(self, tmp_path: Path) -> None:
        """With the default in place of the wrong value, these would be mistakes too."""
        text = f"""
[experiment]
datasets = [3]
output_len = 3000
[model]
max_model_len = "2048"
{BACKEND}max_num_seqs = 16.0
max_num_batched_tokens = 16
[[backends]]
name = "../up"
[[backends]]
name = "unnamed"
[[backends]]
[dose]
levels = [-1]
"""
        assert self.lines(write(tmp_path, text)) == [
            "[experiment], datasets, item 1: expected a text, got 3",
            "[model], max_model_len: expected a whole number of at least 1, got '2048'",
            "[[backends]] number 1, max_num_seqs: expected a whole number of at least 1, got 16.0",
            "[[backends]] number 2, name: expected at most 80 letters, digits, '.', '_' and '-',"
            " starting with a letter or digit, got '../up'",
            "[[backends]] number 4, name: expected a value, the key is missing",
            "[dose], levels, item 1: expected a CV of expert load, a number from 0 to 100, got -1",
        ]

    def test_tables_that_are_none(self, tmp_path: Path) -> None:
        text = 'backends = [1, {name = "b"}, "x"]\ndose = true\nexperiment = "x"\n'
        assert self.lines(write(tmp_path, text, datasets=0)) == [
            "[[backends]] number 1: expected a table, got 1",
            "[[backends]] number 3: expected a table, got 'x'",
            "[dose]: expected a table, got true",
            "[experiment]: expected a table, got 'x'",
        ]


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    assert mistake(tmp_path / "none.toml") == "no such file; write one with: gatescope init"
    assert mistake(tmp_path) == "cannot be read: Is a directory"


# --- whatever is written there ---


def toml(value: Any) -> str:
    """`value` as TOML; a table within a table as an inline one."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        plain = string.ascii_letters + string.digits + " _-*/."
        return '"' + "".join(c if c in plain else f"\\U{ord(c):08X}" for c in value) + '"'
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(k)} = {toml(v)}" for k, v in value.items()) + "}"
    return str(value)


texts = st.text(st.characters(codec="utf-8"), max_size=12)
keys = (
    st.sampled_from([k for t in (Experiment, Model, Backend) for k in t.__struct_fields__]) | texts
)
scalars = (
    st.booleans()
    | st.integers()
    | st.floats()
    | texts
    | st.dates()
    | st.sampled_from(["inf", "datasets/*", "auto"])
)
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(texts, v, max_size=3), max_leaves=5
)
tables = st.dictionaries(keys, values, max_size=4)
documents = st.fixed_dictionaries(
    {},
    optional={
        "experiment": tables | values,
        "model": tables | values,
        "backends": st.lists(tables.map(lambda t: {"name": "a", **t}) | values, max_size=3)
        | values,
    },
).flatmap(lambda tree: st.dictionaries(texts, values, max_size=1).map(lambda odd: {**odd, **tree}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("config"), BACKEND).parent


def loaded_or_refused(folder: Path, text: bytes) -> None:
    """A Config that a resume would read back as it is, or an error of a line for each mistake."""
    file = write(folder, text)
    try:
        loaded: Config | ConfigError = config.load(file)
    except ConfigError as error:
        loaded = error
    if isinstance(loaded, ConfigError):
        lines = str(loaded).splitlines()
        assert lines
        assert all(line.startswith(f"{file}: ") for line in lines)
        assert len(set(lines)) == len(lines)
    else:
        (folder / "run.json").write_bytes(files.formatted(about(config=loaded)))
        assert run_json.read(folder).config == loaded


@given(tree=documents)
def test_any_toml_is_loaded_or_refused_line_by_line(folder: Path, tree: dict[str, Any]) -> None:
    loaded_or_refused(folder, "\n".join(f"{toml(k)} = {toml(v)}" for k, v in tree.items()).encode())


@given(key=keys, value=values)
@example(key="datasets", value=["", ""])
def test_any_value_of_any_key_is_loaded_or_refused_line_by_line(
    folder: Path, key: str, value: Any
) -> None:
    line = f"{toml(key)} = {toml(value)}\n"
    tables = {"experiment": Experiment, "model": Model}
    table = next((t for t, kind in tables.items() if key in kind.__struct_fields__), "")
    loaded_or_refused(
        folder, (f"[{table}]\n{line}{BACKEND}" if table else f"{BACKEND}{line}").encode()
    )


@given(text=st.binary(max_size=60) | texts.map(str.encode))
def test_any_bytes_are_refused_line_by_line(folder: Path, text: bytes) -> None:
    loaded_or_refused(folder, text)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("models/tiny", "{}/models/tiny"),  # it is there
        ("./models/tiny", "{}/models/tiny"),
        ("~/models/tiny", "{}/models/tiny"),
        ("./models/missing", "{}/models/missing"),
        ("models/of/mine", "{}/models/of/mine"),  # no hub has such a name
        ("/data/missing", "/data/missing"),
        ("models/missing", "models/missing"),  # a hub may
        ("gpt2", "gpt2"),
        ("s3://bucket/models/tiny", "s3://bucket/models/tiny"),
    ],
)
def test_a_models_path_starts_at_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, found: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models/tiny").mkdir(parents=True)
    (tmp_path / "001.jsonl").touch()
    file = tmp_path / "experiments.toml"
    file.write_text(
        f'[experiment]\ndatasets = "~/*.jsonl"\n[model]\nid = "{given}"\n[[backends]]\nname = "a"\n'
    )
    monkeypatch.chdir("/")
    assert config.load(file).model.id == found.format(tmp_path)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--port", "9"], "extra_args: expected no --port; set port"),
        (["--port=9"], "extra_args: expected no --port; set port"),
        (["--served_model_name", "x"], "expected no --served-model-name; requests carry id of"),
        (["--tensor-parallel", "2"], "expected no --tensor-parallel-size; set tensor_parallel"),
        (["-tp", "2"], "expected no -tp; set tensor_parallel"),
        (["--moe-backend", "triton"], "expected no --moe-backend; set moe_backend"),
    ],
)
def test_a_flag_that_gatescope_sets_itself_is_refused(
    tmp_path: Path, flags: list[str], text: str
) -> None:
    (tmp_path / "001.jsonl").touch()
    file = tmp_path / "experiments.toml"
    file.write_text(
        f'[experiment]\ndatasets = "*.jsonl"\n[[backends]]\nname = "a"\nextra_args = {flags}\n'
    )
    with pytest.raises(ConfigError) as error:
        config.load(file)
    assert text in str(error.value)


def test_other_flags_pass(tmp_path: Path) -> None:
    (tmp_path / "001.jsonl").touch()
    file = tmp_path / "experiments.toml"
    flags = ["--model-impl", "vllm", "--dtype", "bfloat16", "--eplb-config", "{}", "--no-log"]
    file.write_text(
        f'[experiment]\ndatasets = "*.jsonl"\n[[backends]]\nname = "a"\nextra_args = {flags}\n'
    )
    assert config.load(file).backends[0].extra_args == flags
