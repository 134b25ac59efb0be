"""Config → runs: which, in which order, under which names."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from core.errors import ConfigError, DatasetError, UsageError
from core.experiment import config, plan
from core.experiment.config import Config
from core.experiment.plan import Run


def loaded(
    folder: Path,
    experiment: str = "",
    names: tuple[str, ...] = ("001_0.1", "002_0.2", "chat", "010_0.3"),
) -> Config:
    """Two backends and one dataset file for each name."""
    for name in names:
        (folder / f"{name}.jsonl").write_text('{"id": "a", "text": "hello"}\n')
    (folder / "experiments.toml").write_text(
        f'[experiment]\ndatasets = "*.jsonl"\n{experiment}\n'
        '[[backends]]\nname = "baseline"\n[[backends]]\nname = "all2all"\n'
    )
    return config.load(folder / "experiments.toml")


def ids(made: plan.Plan) -> list[str]:
    return [run.id for run in made.runs]


def test_runs_go_backend_by_backend_in_the_order_of_the_files(tmp_path: Path) -> None:
    made = plan.make(loaded(tmp_path, "shuffle = false", names=("001_0.1", "002_0.2", "007_0.3")))
    assert ids(made) == [f"{b}/{d}" for b in ("baseline", "all2all") for d in ("001", "002", "007")]
    run = made.runs[-1]
    assert run == plan.Run("all2all", "007", "007", str(tmp_path / "007_0.3.jsonl"))


def test_a_file_without_an_index_gets_its_place(tmp_path: Path) -> None:
    made = plan.make(loaded(tmp_path, "shuffle = false"))
    assert [made.datasets[i].path.stem for i in ("001", "002", "004", "010")] == [
        "001_0.1",
        "002_0.2",
        "chat",
        "010_0.3",
    ]


def test_two_files_of_one_index_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        plan.make(loaded(tmp_path, names=("001_0.1", "001_0.2")))
    assert str(caught.value) == (
        f"{tmp_path}/experiments.toml: [experiment], datasets: expected an index of its own for"
        " each file,"
        f" {tmp_path}/001_0.1.jsonl and {tmp_path}/001_0.2.jsonl share 001; rename one"
    )


def test_repeats_are_numbered_from_the_second(tmp_path: Path) -> None:
    made = plan.make(
        loaded(tmp_path, "shuffle = false\nrepeats = 3", names=("001_0.1", "002_0.2")),
        backends=["all2all"],
    )
    assert ids(made) == [
        f"all2all/{label}" for label in ("001", "002", "001-r2", "002-r2", "001-r3", "002-r3")
    ]
    assert {run.dataset for run in made.runs} == {"001", "002"}


def test_interleaved_backends_take_turns_and_neighbours_share_a_server(tmp_path: Path) -> None:
    made = plan.make(
        loaded(tmp_path, "shuffle = false\nrepeats = 3\ninterleave = true", names=("001_0.1",))
    )
    passes = (
        "baseline/001",
        "all2all/001",
        "all2all/001-r2",
        "baseline/001-r2",
        "baseline/001-r3",
        "all2all/001-r3",
    )
    assert ids(made) == list(passes)
    assert [(s.cell, s.number, len(s.runs)) for s in made.starts] == [
        ("baseline", 1, 1),
        ("all2all", 1, 2),
        ("baseline", 2, 2),
        ("all2all", 2, 1),
    ]
    assert made.backends == ["baseline", "all2all"]


def test_starts_go_a_b_b_a_and_each_runs_every_dataset_under_a_label_of_its_own(
    tmp_path: Path,
) -> None:
    made = plan.make(
        loaded(tmp_path, "shuffle = false\nstarts = 3\nrepeats = 2", names=("001_0.1", "002_0.2"))
    )
    assert [(start.cell, start.number) for start in made.starts] == [
        ("baseline", 1),
        ("all2all", 1),
        ("all2all", 2),
        ("baseline", 2),
        ("baseline", 3),
        ("all2all", 3),
    ]
    labels = [[run.label for run in start.runs] for start in made.starts]
    assert labels[0] == labels[1] == ["001", "002", "001-r2", "002-r2"]
    assert labels[2] == labels[3] == ["001-s2", "002-s2", "001-s2-r2", "002-s2-r2"]
    assert len({run.id for run in made.runs}) == len(made.runs) == 24
    assert all(run.start == start.number for start in made.starts for run in start.runs)
    assert {plan.dataset_of(run.id) for run in made.runs} == {"001", "002"}


def test_split_starts_share_the_datasets_out_alike_for_every_backend(tmp_path: Path) -> None:
    names = tuple(f"{i:03d}_0.5" for i in range(1, 6))
    made = plan.make(loaded(tmp_path, "shuffle = false\nstarts = 2\nsplit = true", names=names))
    shares = {(s.cell, s.number): [run.label for run in s.runs] for s in made.starts}
    assert shares == {
        (cell, number): labels
        for cell in ("baseline", "all2all")
        for number, labels in ((1, ["001", "003", "005"]), (2, ["002", "004"]))
    }
    alone = plan.make(loaded(tmp_path, "starts = 3\nsplit = true", names=names), ["001"])
    assert [start.number for start in alone.starts] == [1, 1]


def test_auto_is_two_starts_at_vllm_and_three_that_share_at_the_built_in_engine(
    tmp_path: Path,
) -> None:
    known = loaded(tmp_path, 'starts = "auto"')
    counts = {
        kind: (len(made.starts), len(made.runs))
        for kind in ("vllm", "builtin")
        if (made := plan.make(config.with_starts(known, kind)))
    }
    assert counts == {"vllm": (4, 16), "builtin": (6, 8)}
    turns = replace(known, experiment=replace(known.experiment, interleave=True))
    assert config.with_starts(turns, "vllm").experiment.starts == 1
    left_out = loaded(tmp_path)
    assert config.with_starts(left_out, "vllm") == left_out


def test_turns_and_starts_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"starts: expected 1 with interleave = true, .* got 2"):
        loaded(tmp_path, "starts = 2\ninterleave = true")


def test_one_more_run_is_the_last_starts(tmp_path: Path) -> None:
    known = loaded(tmp_path, "shuffle = false\nstarts = 2", names=("001_0.1",))
    runs = {run.id: run for run in plan.make(known).runs}
    (more,) = plan.again(known, runs, ["001"], ["all2all"])
    assert (more.id, more.start) == ("all2all/001-s2-r2", 2)


def test_the_order_is_drawn_from_the_seed_anew_for_every_repeat_and_alike_for_every_backend(
    tmp_path: Path,
) -> None:
    names = tuple(f"{i:03d}_0.5" for i in range(1, 21))
    first = loaded(tmp_path, "repeats = 2", names=names)
    made = plan.make(first)
    order = [run.dataset for run in made.runs]
    orders = [order[i : i + 20] for i in range(0, 80, 20)]
    assert orders[:2] == orders[2:]
    assert orders[0] != orders[1]
    assert all(sorted(order) == [f"{i:03d}" for i in range(1, 21)] for order in orders)
    assert plan.make(first) == made
    other = replace(first, experiment=replace(first.experiment, seed=1))
    assert ids(plan.make(other)) != ids(made)


def test_only_and_backend_narrow_the_plan(tmp_path: Path) -> None:
    made = plan.make(loaded(tmp_path), only=["010", "001", "001"], backends=["all2all"])
    assert sorted(ids(made)) == ["all2all/001", "all2all/010"]
    assert made.backends == ["all2all"]
    assert sorted(made.datasets) == ["001", "010"]


def test_an_unknown_index_or_backend_is_refused_with_the_nearest(tmp_path: Path) -> None:
    known = loaded(tmp_path)
    with pytest.raises(
        UsageError, match=r"^--only 1: no such dataset; there are 4, from 001 to 010$"
    ):
        plan.make(known, only=["1"])
    with pytest.raises(UsageError, match=r"there is no backend 'base'; did you mean 'baseline'\?$"):
        plan.make(known, backends=["base"])
    with pytest.raises(UsageError, match=r"there is no backend 'x'; known: baseline, all2all$"):
        plan.make(known, backends=["x"])


def test_a_trace_needs_a_timestamp_in_every_prompt_that_is_sent(tmp_path: Path) -> None:
    known = loaded(tmp_path, 'arrival = "trace"\nnum_prompts = 1', names=("001_0.1",))
    with pytest.raises(DatasetError, match=r"001_0\.1\.jsonl:1: timestamp: expected a number"):
        plan.make(known)
    timed = '{"id": "a", "text": "hello", "timestamp": 1.5}\n{"id": "b", "text": "not sent"}\n'
    (tmp_path / "001_0.1.jsonl").write_text(timed)
    assert plan.make(known).datasets["001"].prompts[0].timestamp == 1.5


def test_datasets_of_other_benchmarks_are_read_as_by_bench(tmp_path: Path) -> None:
    known = loaded(tmp_path, "num_prompts = 1", names=("001_0.1", "002_0.2"))
    talk = '[{"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]}]'
    (tmp_path / "001_0.1.jsonl").write_text("\ufeff" + talk)
    (tmp_path / "002_0.2.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "id": 0}\n')
    made = plan.make(known).datasets
    assert [[(p.id, p.text) for p in made[index].prompts] for index in ("001", "002")] == [
        [("1", "hi")],
        [("1", "a"), ("0", "b")],
    ]


def test_a_trace_is_checked_in_its_unit_before_anything_starts(tmp_path: Path) -> None:
    rows = '{"prompt": "a", "timestamp": 0}\n{"prompt": "b", "timestamp": 604800000}\n'
    known = loaded(tmp_path, 'arrival = "trace"\ntrace_unit = "ms"', names=("001_0.1",))
    (tmp_path / "001_0.1.jsonl").write_text(rows)
    assert len(plan.make(known).runs) == 2
    with pytest.raises(DatasetError, match=r"001_0\.1\.jsonl:2: timestamp: expected a time"):
        plan.make(replace(known, experiment=replace(known.experiment, trace_unit="s")))


def test_a_bad_dataset_stops_the_plan_unless_it_is_not_wanted(tmp_path: Path) -> None:
    known = loaded(tmp_path)
    (tmp_path / "002_0.2.jsonl").write_text("{}\n")
    with pytest.raises(DatasetError, match=r"002_0\.2\.jsonl:1: expected "):
        plan.make(known)
    assert len(plan.make(known, only=["001"]).runs) == 2


def test_runs_added_beside_those_of_their_server_change_no_server() -> None:
    def of(backend: str, dataset: str, start: int = 1) -> Run:
        return Run(backend, dataset, dataset, "", start=start)

    order = [of("a", "1"), of("a", "2"), of("b", "1")]
    added = [of("a", "3"), of("a", "4"), of("b", "3"), of("c", "1")]
    made = plan.beside(order, added)
    assert [f"{r.backend}{r.dataset}" for r in made] == ["a1", "a2", "a3", "a4", "b1", "b3", "c1"]
    assert (plan.changes([*order, *added]), plan.changes(made)) == (4, 2)
    assert plan.beside([of("a", "1", start=1)], [of("a", "2", start=2)])[-1].start == 2
