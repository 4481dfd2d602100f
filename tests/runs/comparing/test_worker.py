"""Processes that share the runs of a comparison: they join, wait, die, and are taken over."""

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch

from tether._files import read_json
from tether.errors import TetherError
from tether.recipe import from_plain
from tether.runs.comparing import worker
from tether.runs.comparing.comparison import compare
from tether.runs.comparing.crew import worker_device
from tether.runs.comparing.jobs import Job
from tether.runs.comparing.launch import Launch
from tether.runs.comparing.plan import Plan
from tether.runs.comparing.worker import Worker
from tether.training.lock import claim
from tether.training.run_directory import read_metrics

DIES = """
import os, signal, sys
from tether.cli import main
from tether.training import RunDirectory

log = RunDirectory.log
def log_then_die(self, kind, step, values):
    log(self, kind, step, values)
    if step >= 6:
        os.kill(os.getpid(), signal.SIGKILL)
RunDirectory.log = log_then_die
main(sys.argv[1:])
"""


@pytest.fixture
def options(tiny_recipe):
    training = {**tiny_recipe["training"], "epochs": 3, "checkpoint_every": 4, "log_every": 2}
    return {**tiny_recipe, "training": training}


def start(code, *words):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def directories(root):
    return sorted(path.name for path in root.iterdir() if path.is_dir())


@pytest.mark.slow
def test_a_second_process_skips_what_another_holds_waits_and_takes_it_over(options, tmp_path):
    """The test is the first process: it holds the first of two runs, and gives it back without having made it."""
    (tmp_path / "tiny.yaml").write_text(json.dumps(options))
    recipe = from_plain(options)
    first = [from_plain({**options, "training": {**options["training"], "seed": seed}}) for seed in (3, 4)]
    assert first[0] == recipe
    held = tmp_path / "runs" / f".{Job(recipe=recipe, label='').training}.claim"
    command = ["compare", "tiny.yaml", "--seeds", "3", "4", "--runs", "runs", "--out", "out"]
    code = f"import os, sys; os.chdir({str(tmp_path)!r}); from tether.cli import main; sys.exit(main(sys.argv[1:]))"
    with ExitStack() as ours:
        assert ours.enter_context(claim(held))
        other = start(code, *command)
        lines = [other.stdout.readline() for _ in range(2)]
    rest, told = other.communicate()
    assert other.returncode == 0, told
    assert lines == ["[2/2] tiny, seed 4, fold 0\n", "Waiting for other processes: tiny, seed 3, fold 0\n"]
    assert "[1/2] tiny, seed 3, fold 0" in rest
    assert len(directories(tmp_path / "runs")) == 2 and not held.exists()
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.slow
def test_a_killed_process_s_run_is_gone_on_with(options, tmp_path):
    (tmp_path / "tiny.yaml").write_text(json.dumps(options))
    runs = tmp_path / "runs"
    words = ["compare", str(tmp_path / "tiny.yaml"), "--seeds", "3", "--runs", str(runs)]
    killed = start(DIES, *words, "--out", tmp_path / "out")
    _, told = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, told
    (run,) = (path for path in runs.iterdir() if path.is_dir())
    assert read_json(run / "lock")["pid"] == killed.pid and not (run / "result.json").exists()
    assert list(runs.glob(".*.claim"))

    said = []
    plan = Plan(recipes=[from_plain(options)], root=runs, seeds=[3])
    results = compare(plan, announce=said.append, show_progress=False)[0].results
    assert said == ["[1/1] tiny, seed 3, fold 0"]
    assert directories(runs) == [run.name] and not list(runs.glob(".*.claim"))
    steps = [row["step"] for row in read_metrics(run) if row["kind"] == "train"]
    assert steps == [2, 4, 6, 8, 9]  # from the checkpoint of step 4 on
    assert results.method("tiny").seeds == (3,)


def test_runs_that_differ_after_training_only_train_once(options, tmp_path, monkeypatch):
    half = from_plain(options)
    full = from_plain({**options, "name": "other", "alpha": {"value": 1.0}})
    jobs = [Job(recipe=recipe, label=recipe.name) for recipe in (half, full)]
    assert jobs[0].training == jobs[1].training and jobs[0].name != jobs[1].name
    worker = Worker(tmp_path, show_progress=False)
    first, second = map(worker.outcome, jobs, worker.finish(jobs))
    assert (first.alpha, second.alpha) == (0.5, 1.0) and first.run != second.run
    assert (
        not [row for row in read_metrics(second.run) if row["kind"] == "train"]
        if (second.run / "metrics.jsonl").exists()
        else True
    )
    assert second.test.at(1.0)["outline"].predictions.equal(first.test.at(1.0)["outline"].predictions)
    assert second.seconds == pytest.approx(first.seconds, rel=0.5)


def test_further_processes_of_this_machine_do_the_work(options, tmp_path, monkeypatch):
    """This process gets no claim, so whatever is made was made by the other."""

    @contextmanager
    def never(path):
        yield False

    monkeypatch.setattr(worker, "claim", never)
    monkeypatch.setattr(worker, "LONGEST_WAIT", 0.5)
    threads, said = torch.get_num_threads(), []
    plan = Plan(recipes=[from_plain(options)], root=tmp_path, seeds=[3, 4])
    results = compare(plan, Launch(workers=2), announce=said.append, show_progress=False)[0].results
    assert said[0] == "Waiting for other processes: tiny, seed 3, fold 0; tiny, seed 4, fold 0"
    assert {"[1/2] tiny, seed 3, fold 0", "[2/2] tiny, seed 4, fold 0"} < set(said)
    assert results.method("tiny").seeds == (3, 4) and len(directories(tmp_path)) == 2
    assert torch.get_num_threads() == threads


ENDLESS = """
import os, pathlib, sys, time
from tether.runs.comparing.crew import LocalProcesses

def work(folder, device):
    pathlib.Path(folder, "pid").write_text(str(os.getpid()))
    print(flush=True)
    time.sleep(600)

if __name__ == "__main__":
    with LocalProcesses(1, work, sys.argv[1]) as crew:
        crew.start()
        time.sleep(600)
"""


def lives(process):
    """Whether it is there, and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_processes_of_a_killed_comparison_end_with_it(tmp_path):
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    parent = subprocess.Popen([sys.executable, script, tmp_path], stdout=subprocess.PIPE, text=True)
    parent.stdout.readline()
    child = int((tmp_path / "pid").read_text())
    assert lives(child)
    parent.kill()
    parent.wait()
    parent.stdout.read()  # to its end: nobody holds the other side any more
    parent.stdout.close()
    assert not lives(child)


def test_the_gpus_go_round(monkeypatch):
    assert worker_device("cpu", 3) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [worker_device("cuda", number).index for number in (1, 2, 3)] == [1, 0, 1]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert worker_device("cuda:0", 1) == torch.device("cuda:0")


@pytest.mark.parametrize(("count", "told"), [(0, "one worker or more"), (-1, "found -1")])
def test_a_number_of_workers_that_makes_no_sense_is_refused(count, told):
    with pytest.raises(TetherError, match=told):
        Launch(workers=count)
