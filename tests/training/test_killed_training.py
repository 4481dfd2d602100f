"""Kill -9 of a real training process, at every moment of a save and at random times; preemption."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tether.training import read_metrics
from tether.training.checkpoint import latest_checkpoint, load_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    script = Path(__file__).parent / "killed_training.py"
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def report(folder, name):
    return json.loads((folder / "report.json").read_text())[name]


def plain(value):
    """Tensors as bytes, so that == compares bits."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value.numpy().tobytes() if hasattr(value, "numpy") else value


def rows(path):
    return [{k: v for k, v in row.items() if k != "examples_per_second"} for row in read_metrics(path)]


@pytest.mark.parametrize("name", ["in-saves", "at-random", "tpgm", "preempted"])
def test_the_end_is_bit_equal_to_that_of_a_run_that_was_never_stopped(folder, name):
    whole, killed = folder / ("whole-tpgm-001" if name == "tpgm" else "whole-001"), folder / f"{name}-001"
    expected = load_checkpoint(latest_checkpoint(whole / "checkpoints"))
    assert expected["step"] == 30
    assert plain(load_checkpoint(latest_checkpoint(killed / "checkpoints"))) == plain(expected)
    assert rows(killed) == rows(whole)


@pytest.mark.parametrize("name", ["in-saves", "at-random", "tpgm"])
def test_no_kill_loses_a_checkpoint(folder, name):
    steps = report(folder, name)["steps"]
    assert steps == sorted(steps)
    assert not list((folder / f"{name}-001").rglob("*.tmp"))


def test_there_were_kills_in_every_part_of_a_save(folder):
    codes = report(folder, "in-saves")["codes"]
    assert codes[-1] == 0 and set(codes[:-1]) == {-9} and len(codes) > 25
    for name in ("at-random", "tpgm"):
        codes = report(folder, name)["codes"]
        assert codes.count(-9) >= 3 and set(codes) <= {0, -9}


def test_preemption_ends_with_143_and_a_checkpoint_of_the_step_it_came_in(folder):
    assert report(folder, "preempted") == {"steps": [10], "codes": [143]}
