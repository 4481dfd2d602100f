"""Runs' directories by name: what is found, and how little is read for it."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from tether.recipe import from_plain, to_plain
from tether.runs.comparing import folders, worker
from tether.runs.comparing.crew import Crew
from tether.runs.comparing.folders import RunFolders
from tether.runs.comparing.jobs import Job

RESULT = {
    "alpha": 1.0,
    "alpha_reason": "",
    "test": {"colour": {}},
    "validation": [],
    "trained_parameters": 1,
    "file_bytes": 1,
    "peak_memory_bytes": 1,
}


@pytest.fixture
def job(tiny_recipe):
    def make(**options):
        return Job(recipe=from_plain({**tiny_recipe, **options}), label="")

    return make


def save(root, name, job, result=RESULT):
    """What a run of a job leaves, as far as it is asked for here."""
    path = root / name
    path.mkdir(parents=True)
    (path / "environment.json").write_text("{}")
    (path / "config.json").write_text(json.dumps(to_plain(job.recipe)))
    if result:
        (path / "result.json").write_text(json.dumps(result))
    return path


def look(root, *jobs):
    listed = RunFolders(root, jobs)
    listed.refresh()
    return listed


def test_a_run_is_found_by_the_name_it_always_had(job, tmp_path):
    """A name of before: results of years are found by it."""
    one = job()
    assert one.name.rpartition("-")[0] == "tiny" and len(one.name) == len("tiny-0123456789")
    assert look(tmp_path / "none").state(one) == (None, "open")
    (tmp_path / f"{one.name}-001").mkdir()  # killed before it held anything
    assert look(tmp_path).state(one) == (None, "open")
    begun = save(tmp_path, f"{one.name}-002", one, result=None)
    assert look(tmp_path).state(one) == (begun, "open")
    finished = save(tmp_path, f"{one.name}-010", one)
    assert look(tmp_path).state(one) == (finished, "finished")
    assert look(tmp_path).state(job(alpha={"value": 1.0})) == (None, "open")


def test_a_trial_is_finished_without_tests_and_may_have_diverged(tiny_recipe, job, tmp_path):
    recipe = job().recipe
    trial = Job(recipe=recipe, label="", test=False, may_diverge=True)
    path = save(tmp_path, f"{trial.name}-001", trial, result=None)
    (path / "non-finite-step-3.json").write_text("{}")
    assert look(tmp_path).state(trial) == (path, "diverged")
    assert look(tmp_path).state(job()) == (path, "open")
    (path / "result.json").write_text(json.dumps({**RESULT, "test": {}}))
    assert look(tmp_path).state(trial) == (path, "finished")
    assert look(tmp_path).state(job()) == (path, "open")


def test_weights_are_found_in_runs_of_other_comparisons(job, tmp_path):
    one, other = job(name="one", alpha={"value": 0.25}), job(name="other", training={"epochs": 9})
    wanted = job()
    same = save(tmp_path, f"{one.name}-001", one)
    save(tmp_path, f"{other.name}-001", other)
    save(tmp_path, "unfinished-001", one, result=None)
    save(tmp_path, "damaged-001", one).joinpath("config.json").write_text("{")
    (tmp_path / "a-file-001").write_text("")
    assert wanted.training == one.training != other.training
    assert list(look(tmp_path, wanted).trained(wanted.training)) == [same]


@pytest.fixture
def reads(monkeypatch):
    """How often the disk was asked, by what and of which file."""
    counts = Counter()

    def counted(module, name):
        real = getattr(module, name)

        def call(path, *rest, **options):
            counts[name, Path(path).name] += 1
            return real(path, *rest, **options)

        monkeypatch.setattr(module, name, call)

    counted(os, "listdir")
    counted(os, "scandir")
    counted(Path, "is_file")
    counted(folders, "read_json")
    monkeypatch.setattr(Path, "glob", lambda path, pattern: pytest.fail(f"searched {path} for {pattern}"))
    return counts


def files(count, *names):
    """That so many files of each name were asked for."""
    return {("is_file", name): count for name in names}


def test_hundreds_of_runs_cost_one_listing_a_pass(tiny_recipe, job, tmp_path, reads):
    """300 runs that are wanted, of which 100 are finished, beside 50 of another comparison."""
    jobs = [job(training={**tiny_recipe["training"], "seed": seed}) for seed in range(300)]
    for one in jobs[:100]:
        save(tmp_path, f"{one.name}-001", one)
    for seed in range(50):
        other = job(name="other", training={**tiny_recipe["training"], "seed": 1000 + seed})
        save(tmp_path, f"{other.name}-001", other)
    reads.clear()

    listed = look(tmp_path, *jobs)
    states = [listed.state(one)[1] for one in jobs]
    assert states == ["finished"] * 100 + ["open"] * 200
    assert reads == {("listdir", tmp_path.name): 1, **files(100, "environment.json", "result.json")}

    reads.clear()
    for one in jobs:
        assert len(list(listed.trained(one.training))) == (one in jobs[:100])
    read = {("read_json", "config.json"): 50}  # those whose names say nothing, once each
    assert reads == {**read, **files(100, "result.json")}


def test_a_worker_lists_the_folder_once_a_pass(tiny_recipe, job, tmp_path, reads, monkeypatch):
    """All are finished after the second of two passes; between them the last one ends elsewhere."""
    jobs = [job(training={**tiny_recipe["training"], "seed": seed}) for seed in range(300)]
    paths = [tmp_path / f"{one.name}-001" for one in jobs]
    for one, path in zip(jobs[:-1], paths, strict=False):
        save(tmp_path, path.name, one)

    class Others(Crew):
        does_everything = True

        def has_ended(self):
            if reads["listdir", tmp_path.name]:
                save(tmp_path, paths[-1].name, jobs[-1])
            return False

    monkeypatch.setattr(worker._Sources, "changed", lambda self, path, recipe: "")
    assert worker.Worker(tmp_path, crew=Others()).finish(jobs) == paths
    assert reads["listdir", tmp_path.name] == 2 and not reads["scandir", tmp_path.name]
    assert not reads["read_json", "config.json"]
