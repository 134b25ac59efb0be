"""Lines whose situation needs a terminal, signals, limits of the machine or a server with a script
of its own. The suite's tests make those with real processes and sockets; a case is one of
them."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock

from bench.reliability.reports.case import LIMIT_S, ROOT, Case

TESTS: list[tuple[str, str, tuple[str, ...]]] = [
    (
        "A6",
        "commands/test_bench.py",
        (
            "test_too_few_files_are_named_before_anything_is_sent",
            "test_connections_that_opened_are_used_where_others_were_refused",
        ),
    ),
    (
        "A6",
        "load/test_transport.py",
        (
            "test_connections_that_opened_are_kept_where_others_did_not",
            "test_a_request_without_a_descriptor_waits_for_another_s_end",
            "test_without_any_descriptor_a_request_fails",
        ),
    ),
    (
        "A7",
        "commands/test_bench.py",
        (
            "test_a_result_is_never_replaced",
            "test_a_folder_that_takes_no_result_is_refused_at_once",
            "test_a_folder_that_fills_up_costs_no_result",
            "test_two_runs_at_once_get_a_file_each",
            "test_a_signal_writes_what_there_is_and_prints_the_table",
            "test_a_signal_before_the_first_request_writes_nothing",
            "test_a_failed_warm_up_is_said",
        ),
    ),
    (
        "A8",
        "commands/test_bench.py",
        (
            "test_a_user_in_the_url_is_basic_auth_everywhere_and_in_no_file",
            "test_a_key_that_the_server_quotes_is_not_shown",
        ),
    ),
    (
        "A9",
        "commands/test_bench.py",
        (
            "test_absurd_values_are_refused",
            "test_what_is_not_absurd_is_sent",
            "test_a_load_of_months_is_refused_before_it_begins",
        ),
    ),
    ("A9", "engine/test_engine.py", ("test_a_dataset_that_went_bad_is_its_run_s_failure_only",)),
    (
        "A11",
        "commands/test_bench.py",
        (
            "test_a_base_may_end_in_any_version_or_be_an_endpoint",
            "test_what_is_no_url_is_refused_without_its_password",
            "test_the_table_shows_the_url_and_the_server_s_words",
        ),
    ),
    (
        "B1",
        "backends/test_nvml.py",
        (
            "test_a_hidden_gpu_is_not_ours",
            "TestWaiting::test_does_not_take_a_lost_gpu_to_be_free",
            "TestWaiting::test_leaves_out_a_hidden_gpu",
        ),
    ),
    ("B2", "commands/test_bench.py", ("test_a_signal_that_was_ignored_stays_ignored",)),
    (
        "B2",
        "commands/test_serve_and_bench.py",
        ("test_serve_ignores_what_it_was_started_to_ignore",),
    ),
    (
        "B2",
        "engine/test_stopping.py",
        ("test_a_batch_outlives_the_signals_that_it_was_started_to_ignore",),
    ),
    (
        "B4",
        "backends/test_vllm.py",
        (
            "TestWorkersOwnRecord::test_is_enough_where_the_log_is_silent",
            "TestWorkersOwnRecord::test_does_not_hide_what_differs",
        ),
    ),
    (
        "B4",
        "backends/test_serverlog.py",
        ("test_colours_line_ends_and_overwritten_progress_are_not_read",),
    ),
    (
        "B5",
        "backends/test_server.py",
        ("test_a_server_that_dies_once_it_is_ready_says_why",),
    ),
    (
        "B6",
        "engine/test_faults.py",
        ("test_without_locks_the_pid_in_the_lock_file_keeps_a_second_one_out",),
    ),
    ("B5", "backends/test_rootcause.py", ("test_is_one_sentence",)),
    ("B8", "backends/test_modelfiles.py", ("test_experts_and_top_k_of",)),
    ("B7", "commands/test_doctor.py", ("test_without_a_home_directory_everything_is_examined",)),
    (
        "B9",
        "routing/test_layer_numbers.py",
        (
            "test_every_reader_calls_them_so",
            "test_upstreams_files_are_named_and_read_so",
            "test_stages_are_joined_by_their_own_numbers",
        ),
    ),
    (
        "B10",
        "commands/test_colour.py",
        ("test_a_terminal_gets_colour_where_it_and_its_user_take_it",),
    ),
    (
        "B10",
        "tui/test_end_to_end.py",
        (
            "test_columns_and_lines_of_a_parent_are_not_this_terminals",
            "test_ctrl_z_suspends_and_fg_goes_on",
            "test_a_dumb_terminal_is_refused_in_a_line",
            "test_a_crash_of_the_screen_is_no_success",
            "test_a_directory_that_cannot_be_written_is_a_line",
        ),
    ),
]


@dataclass
class File:
    """One file of tests, of which those that are named here are run once, by whoever first asks."""

    name: str
    tests: tuple[str, ...]
    lock: Lock = field(default_factory=Lock)
    seen: dict[str, str] = field(default_factory=dict)

    def passes(self, test: str, place: Path) -> str:
        with self.lock:
            self.seen = self.seen or self._run(place)
        return self.seen[test]

    def _run(self, place: Path) -> dict[str, str]:
        """Test → "" if all its cases passed. A skipped test holds nothing."""
        report = place / "report.xml"
        flags = ("-q", "-p", "no:cacheprovider", f"--basetemp={place / 't'}")
        names = (f"tests/{self.name}::{test}" for test in self.tests)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *flags, f"--junitxml={report}", *names],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=2 * LIMIT_S,
        )
        cases = [*ElementTree.parse(report).iter("testcase")]
        said = " ".join(done.stdout.split())[-300:]
        return {test: "" if self._held(test, cases) else said or "no result" for test in self.tests}

    @staticmethod
    def _held(test: str, cases: list[ElementTree.Element]) -> bool:
        name = test.rpartition("::")[2]
        own = [case for case in cases if str(case.get("name")).partition("[")[0] == name]
        bad = ("failure", "error", "skipped")
        return bool(own) and not any(child.tag in bad for case in own for child in case)


FILES = [(line, File(file, tests)) for line, file, tests in TESTS]
CASES = [  # those that run their file first, so that two files run at once
    Case(line, test.rpartition("test_")[2].replace("_", " "), partial(file.passes, test))
    for is_first in (True, False)
    for line, file in FILES
    for test in (file.tests[:1] if is_first else file.tests[1:])
]
