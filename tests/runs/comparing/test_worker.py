"""Processes that share the runs of a comparison: they join, wait, die, and are taken over."""

import json
import os
import shutil
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
        lines = [other.stdout.readline() for _ in range(3)]
    rest, told = other.communicate()
    assert other.returncode == 0, told
    assert lines == [
        "2 runs, 2 trainings\n",
        "[2/2] tiny, seed 4, fold 0\n",
        "Waiting for other processes: tiny, seed 3, fold 0\n",
    ]
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
    assert said == ["1 run, 1 training", "[1/1] tiny, seed 3, fold 0"]
    assert directories(runs) == [run.name] and not list(runs.glob(".*.claim"))
    steps = [row["step"] for row in read_metrics(run) if row["kind"] == "train"]
    assert steps == [2, 4, 6, 8, 9]  # from the checkpoint of step 4 on
    assert results.method("tiny").seeds == (3,)


PAIRS = {
    "full fine-tuning, then WiSE-FT": (
        {"adapter": {"method": "full"}, "objective": {"method": "cross_entropy"}, "accumulation": None},
        {"alpha": {"value": "auto", "rule": "in distribution", "grid": [0.0, 0.5, 1.0]}},
    ),
    "R-Adapter and its average, at a chosen alpha": (
        {},
        {"alpha": {"value": "auto", "grid": [0.0, 0.5, 1.0]}},
    ),
    "R-Adapter with a head, then VRF": (
        {"objective": {"method": "cross_entropy"}},
        {"ensemble": {"method": "vrf", "share": 0.2}},
    ),
}
OWN_STORY = {"lock", "time.json", "environment.json", "metrics.jsonl", "report.html"}


def contents(run):
    """Every file that a run's numbers stand in, without what tells how it came about and what it cost."""
    files = [path.relative_to(run) for path in run.rglob("*") if path.is_file()]
    files = [path for path in files if path.parts[0] not in (*OWN_STORY, "tensorboard", "checkpoints")]
    found = {str(path): (run / path).read_bytes() for path in files}
    result = json.loads(found.pop("result.json"))
    return found, {name: value for name, value in result.items() if name != "peak_memory_bytes"}


def own_training(run):
    return (run / "metrics.jsonl").exists()


@pytest.mark.parametrize("pair", PAIRS)
def test_a_run_with_the_weights_of_another_is_bit_for_bit_one_that_trained_itself(pair, options, tmp_path):
    training, after = PAIRS[pair]
    trains = Job(recipe=from_plain({**options, **training}), label="")
    shares = Job(recipe=from_plain({**options, **training, "name": "other", **after}), label="")
    assert trains.training == shares.training and trains.name != shares.name
    first, shared = Worker(tmp_path / "together", show_progress=False).finish([trains, shares])
    (alone,) = Worker(tmp_path / "alone", show_progress=False).finish([shares])
    assert own_training(first) and own_training(alone) and not own_training(shared)
    files, result = contents(shared)
    assert (files, result) == contents(alone)
    assert "scores.safetensors" in files and any(name.startswith("adapter/") for name in files)
    assert ("vrf.json" in files) == ("ensemble" in after)


@pytest.fixture
def three(options):
    """Three runs of one training."""
    recipes = [
        {**options, "name": name, "alpha": {"value": alpha}}
        for name, alpha in zip("abc", (0.5, 1.0, 0.25), strict=True)
    ]
    return [Job(recipe=from_plain(recipe), label=recipe["name"]) for recipe in recipes]


def test_a_run_says_whose_training_its_time_is(three, tmp_path):
    said = []
    worker = Worker(tmp_path, show_progress=False, announce=said.append)
    first, second = map(worker.outcome, three[:2], worker.finish(three[:2]))
    assert said == ["2 runs, 1 training", "[1/2] a", "[2/2] b"]
    assert (first.trained_in, second.trained_in) == ("", first.run.name)
    assert first.seconds == second.seconds > 0 and second.peak_memory_bytes >= first.peak_memory_bytes
    shutil.rmtree(first.run)  # so that the third takes the second's copy
    third = worker.outcome(three[2], *worker.finish(three[2:]))
    assert (third.trained_in, third.seconds) == (first.run.name, first.seconds)

    before = contents(third.run)
    (third.run / "result.json").unlink()  # judged again
    again = worker.outcome(three[2], *worker.finish(three[2:]))
    assert contents(again.run) == before and not own_training(again.run)
    assert (again.trained_in, again.seconds) == (first.run.name, first.seconds)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-2])


@pytest.mark.parametrize(
    ("which", "damage"),
    [
        ("checkpoints/step-*9/tensors.safetensors", cut_short),
        ("checkpoints/step-*9/complete.json", Path.unlink),
        ("checkpoints", shutil.rmtree),
        ("time.json", cut_short),
        ("time.json", Path.unlink),
    ],
)
def test_what_is_not_whole_is_trained_by_whoever_needs_it(which, damage, three, tmp_path):
    """Also where an earlier checkpoint is left: time and weights would not be those of one run."""
    worker = Worker(tmp_path, show_progress=False)
    (first,) = worker.finish(three[:1])
    (path,) = first.glob(which)
    damage(path)
    second = worker.outcome(three[1], *worker.finish(three[1:2]))
    assert own_training(second.run) and second.trained_in == ""
    assert [row["step"] for row in read_metrics(second.run) if row["kind"] == "train"] == [2, 4, 6, 8, 9]


def test_damaged_checkpoints_of_its_own_give_way_to_those_of_the_same_training(three, tmp_path):
    worker = Worker(tmp_path, show_progress=False)
    first, second = worker.finish(three[:2])
    cut_short(next(second.glob("checkpoints/step-*/state.json")))
    (second / "result.json").unlink()
    assert worker.finish(three[:2]) == [first, second] and not own_training(second)


def test_a_training_that_another_process_does_is_left_to_it_while_there_is_other_work(
    three, options, tmp_path
):
    """The test is the other process, and is gone without having trained anything."""
    training = {**options["training"], "seed": 4}
    other = Job(recipe=from_plain({**options, "training": training}), label="other")
    worker = Worker(tmp_path, show_progress=False)
    with claim(tmp_path / f".{three[0].training}.claim"):
        worker.help([*three, other])
        assert [name.partition("-")[0] for name in directories(tmp_path)] == ["tiny"]
    runs = worker.finish([*three, other])
    assert [own_training(run) for run in runs] == [True, False, False, True]


@pytest.mark.slow
def test_a_process_killed_in_a_training_stops_nobody_who_needs_the_same(three, options, tmp_path):
    (tmp_path / "tiny.yaml").write_text(json.dumps({**options, "name": "a"}))
    runs = tmp_path / "runs"
    killed = start(
        DIES, "compare", tmp_path / "tiny.yaml", "--seeds", "3", "--runs", runs, "--out", tmp_path / "out"
    )
    assert killed.communicate() and killed.returncode == -signal.SIGKILL
    (run,) = Worker(runs, show_progress=False).finish(three[1:2])
    assert own_training(run) and len(directories(runs)) == 2 and not list(runs.glob(".*.claim"))


def test_trials_of_several_methods_share_their_trainings_and_a_note_says_so(options, tmp_path):
    base = {**options, "search": {"optimizer.lr": [0.01, 0.02]}}
    base["alpha"] = {"value": "auto", "rule": "in distribution", "grid": [1.0]}
    other = {**base, "name": "other", "alpha": {**base["alpha"], "grid": [0.5, 1.0]}}
    plan = Plan(recipes=[from_plain(base), from_plain(other)], root=tmp_path, seeds=[3], tune=2, tune_seed=3)
    said = []
    results = compare(plan, announce=said.append, show_progress=False)[0].results
    assert said[0] == "4 runs, 2 trainings" and said[5].startswith("2 runs, ")
    assert sum(map(own_training, tmp_path.glob("*-001"))) == 2 and len(directories(tmp_path)) == 4
    assert [note for note in results.notes if note.startswith("other: what was trained")]
    assert not any(note.startswith("tiny") for note in results.notes)


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
    assert said[1] == "Waiting for other processes: tiny, seed 3, fold 0; tiny, seed 4, fold 0"
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
