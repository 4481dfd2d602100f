"""Each row is a process of its own; one beyond its bound is told and ends in exit code 1."""

import csv

from benchmarks import start


def test_rows_are_measured_held_against_their_bounds_and_written(monkeypatch, tmp_path, capsys):
    rows = {"nothing": (("-c", ""), 1e6), "work": (("-c", "sum(range(10**6))"), 0.0)}
    monkeypatch.setattr(start, "ROWS", rows)
    assert start.main(["--rounds", "1", "--csv", str(tmp_path / "start.csv")]) == 1
    nothing, work = capsys.readouterr().out.splitlines()[1:]
    assert nothing.startswith("nothing") and "MISSED" not in nothing and work.endswith("MISSED")
    with open(tmp_path / "start.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["what"] for row in table] == ["nothing", "work"] and float(table[1]["wall s"]) > 0
