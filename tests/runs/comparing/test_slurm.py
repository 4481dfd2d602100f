"""Jobs that a comparison submits: joined, killed at their time limit, refused. submitit's local executor runs them."""

import importlib.util
import os
import signal
import time

import pytest

from tether._files import read_json
from tether.cli import main
from tether.errors import TetherError
from tether.recipe import from_plain
from tether.runs.comparing import slurm, worker
from tether.runs.comparing.comparison import _help, compare
from tether.runs.comparing.launch import Launch
from tether.runs.comparing.plan import Plan
from tether.runs.comparing.slurm import SlurmJobs, slurm_options
from tether.training.run_directory import read_metrics


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("partition=gpu,gpus=1,time=600", {"partition": "gpu", "gpus": "1", "time": "600"}),
        ("--cpus_per_task=8, mem=32G", {"cpus-per-task": "8", "mem": "32G"}),
    ],
)
def test_options_of_sbatch_are_read(text, options):
    assert slurm_options(text) == options


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "found ''"),
        ("gpu", "found 'gpu'"),
        ("partition=", "found 'partition='"),
        ("gpus=1,gpus=2", "has gpus twice: '1' and '2'"),
        ("time=1-00:00:00", "whole number of minutes, such as time=600"),
        ("time=0", "whole number of minutes"),
    ],
)
def test_what_sbatch_could_not_be_given_is_refused(text, told):
    with pytest.raises(TetherError, match=told):
        slurm_options(text)


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(slurm, "find_spec", lambda name: None)
    assert main(["compare", "full", "--slurm", "partition=gpu", "--out", "out"]) == 2
    assert r"pip install '.[slurm]'" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


submitit = pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="needs the extra slurm")


@pytest.fixture
def options(tiny_recipe):
    training = {**tiny_recipe["training"], "epochs": 1, "checkpoint_every": 1, "log_every": 1}
    return {**tiny_recipe, "training": training}


@submitit
def test_the_options_reach_sbatch(tmp_path, monkeypatch):
    """A stand-in for SLURM's two commands keeps what it is given."""
    for name, text in (("srun", ""), ("sbatch", 'cp "$1" "$0.given"\necho Submitted batch job 7')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    jobs = SlurmJobs(2, {"partition": "gpu", "gpus": "1", "time": "90"}, tmp_path / "logs", _help)
    assert jobs.start() == f"Submitted 7_0, 7_1; their logs: {tmp_path / 'logs'}"
    assert jobs.start() == ""
    given = (tmp_path / "sbatch.given").read_text()
    for line in ("--partition=gpu", "--gpus=1", "--time=90", "--array=0-1%2", "--job-name=tether"):
        assert f"#SBATCH {line}\n" in given


@submitit
def test_where_there_is_no_slurm_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(TetherError, match=r"could not be submitted to slurm: .*srun"):
        SlurmJobs(1, {}, tmp_path, _help).start()


@submitit
@pytest.mark.slow
def test_jobs_do_all_the_runs(options, tmp_path, monkeypatch):
    """Every run was made by a process that is not this one, and what is finished needs no job."""
    monkeypatch.setattr(worker, "LONGEST_WAIT", 0.5)
    monkeypatch.setattr(worker, "run", lambda *_, **__: pytest.fail("this process waits"))
    plan = Plan(recipes=[from_plain(options)], root=tmp_path / "runs", seeds=[3, 4])
    launch = Launch(workers=2, slurm={"time": "60"}, cluster="local")
    said = []
    (comparison,) = compare(plan, launch, announce=said.append, show_progress=False)
    assert comparison.results.method("tiny").seeds == (3, 4)
    assert said[0] == "2 runs, 2 trainings"
    assert said[1].startswith("Submitted ") and said[1].endswith(f"logs: {tmp_path / 'runs' / 'slurm'}")
    assert {"[1/2] tiny, seed 3, fold 0", "[2/2] tiny, seed 4, fold 0"} < set(said)

    said.clear()
    compare(plan, launch, announce=said.append, show_progress=False)
    assert said == ["2 runs, 2 trainings", "[1/2] tiny, seed 3, fold 0", "[2/2] tiny, seed 4, fold 0"]


@submitit
@pytest.mark.slow
def test_jobs_that_all_fail_are_not_waited_for(options, tmp_path):
    plan = Plan(recipes=[from_plain({**options, "model": str(tmp_path / "none")})], root=tmp_path)
    jobs = SlurmJobs(2, {}, tmp_path / "logs", _help, plan, cluster="local")
    assert not jobs.has_ended()
    jobs.start()
    while not jobs.has_ended():
        time.sleep(0.1)
    told = jobs.last_words("tiny, seed 3, fold 0")
    assert "All jobs (2) have ended, and these runs are not done: tiny, seed 3, fold 0" in told
    assert "One ended with: tether.errors.TetherError: " in told and str(tmp_path / "logs") in told
    jobs.stop(failed=True)


@submitit
@pytest.mark.slow
def test_a_job_at_its_time_limit_writes_its_checkpoint_and_goes_on(options, tmp_path, monkeypatch):
    """USR2 is what SLURM sends before the limit; no other checkpoint is written before the end."""
    training = {**options["training"], "epochs": 40, "checkpoint_every": 100_000}
    monkeypatch.setattr(worker, "LONGEST_WAIT", 0.5)
    plan = Plan(recipes=[from_plain({**options, "training": training})], root=tmp_path, seeds=[3])
    checkpoints = []

    def signal_once(line):
        """When this process begins to wait, and the job to train."""
        if not line.startswith("Waiting"):
            return
        while not (logs := list(tmp_path.glob("tiny-*/metrics.jsonl"))) or not read_metrics(logs[0].parent):
            time.sleep(0.05)
        os.kill(read_json(logs[0].parent / "lock")["pid"], signal.SIGUSR2)
        while not checkpoints:
            time.sleep(0.05)
            checkpoints.extend(logs[0].parent.glob("checkpoints/step-*"))

    compare(plan, Launch(slurm={}, cluster="local"), announce=signal_once, show_progress=False)
    steps = [row["step"] for row in read_metrics(checkpoints[0].parents[1]) if row["kind"] == "train"]
    assert steps == list(
        range(1, 121)
    )  # 18 pictures in batches of 6: no step is missing, none was made twice
    (checkpoint,) = checkpoints
    assert 0 < int(checkpoint.name.removeprefix("step-")) < steps[-1]
    log = next((tmp_path / "slurm").glob("*_log.out")).read_text()
    assert log.count("[1/1] tiny, seed 3, fold 0") == 2 and "Requeued job" in log
