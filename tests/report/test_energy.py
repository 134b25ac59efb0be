"""Energy and clocks in the table of a batch, in summaries and in the report's section."""

from __future__ import annotations

from core.analysis.results import Results
from core.backends.energy import PhaseEnergy
from core.report import energy, summary
from core.rundir.result import Result


def run(joules: float, clock: float) -> Result:
    prefill = PhaseEnergy(seconds=1, tokens=100, energy_j=20, j_per_token=0.2, sm_clock_mhz=1700)
    decode = PhaseEnergy(
        seconds=2, tokens=50, energy_j=50 * joules, j_per_token=joules, sm_clock_mhz=clock
    )
    return Result(
        mean_tpot_ms=12.0,
        energy_j=joules * 60,
        j_per_output_token=joules,
        sm_clock_mhz=clock,
        power_limit_w=700.0,
        energy_phases={"prefill": prefill, "decode": decode},
    )


def group() -> Results:
    natural = {"001": run(5.0, 1980.0), "002": run(6.0, 1900.0), "003": run(9.0, 1890.0)}
    forced = {"001~hot-rank~1": run(7.5, 1410.0)}
    replayed = {"001~replay~007": run(5.5, 1900.0)}
    return Results("tp", natural, {}, {}, forced, replayed=replayed)


def test_the_section_has_a_row_for_each_routing_with_its_phases() -> None:
    section = "\n".join(energy.parts([group()]))
    assert "| tp | natural | 3 | 6 | 0.2 | 6 | 1700 | 1900 | 700 |" in section
    assert "| tp | hot-rank 1 | 1 | 7.5 | 0.2 | 7.5 | 1700 | 1410 | 700 |" in section
    assert "| tp | replay 007 | 1 | 5.5 | 0.2 | 5.5 | 1700 | 1900 | 700 |" in section


def test_what_is_unknown_has_its_reason_once_and_old_results_no_section() -> None:
    unknown = {label: Result(energy_reason="no counter") for label in ("001", "002")}
    assert energy.parts([Results("tp", unknown, {}, {})])[-1].strip() == "- unknown: no counter"
    assert energy.parts([Results("tp", {"001": Result()}, {}, {})]) == []


def test_a_summary_has_energy_by_run_and_phase_beside_the_times() -> None:
    row = summary.rows([group()])[0]
    assert (row["energy_j"], row["j_per_output_token"], row["sm_clock_mhz"]) == (300, 5, 1980)
    assert (row["prefill_j_per_token"], row["decode_j_per_token"]) == (0.2, 5)
    assert (row["prefill_sm_clock_mhz"], row["decode_sm_clock_mhz"]) == (1700, 1980)
    assert row["power_limit_w"] == 700


def test_the_table_of_a_batch_shows_joules_only_where_they_are_known() -> None:
    head, line = summary.table([group()]).splitlines()
    assert head.split()[2:9] == ["runs", "TTFT", "ms", "TPOT", "ms", "J/token", "tok/s"]
    assert line.split()[:5] == ["tp", "3", "–", "12.00", "6"]
    assert "J/token" not in summary.table([Results("tp", {"001": Result()}, {}, {})])
