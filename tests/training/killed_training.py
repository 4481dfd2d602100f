"""Train the toy model in processes that are killed, for `test_killed_training.py`.

Usage: killed_training.py FOLDER. One process imports torch and forks every life of the training, so that a
life takes milliseconds. What the lives left behind is written to FOLDER as one JSON report.
"""

import json
import os
import random
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import torch._dynamo  # noqa: F401  an optimizer imports it at its first step: once here, not in every life
import toy

from tether.optimizers import RadiiConfig
from tether.training import FitConfig, RunDirectory, fit
from tether.training.checkpoint import latest_checkpoint, load_checkpoint

STEPS, NOISE = 30, ("torch", "numpy", "python")
RADII = RadiiConfig(every=3, iterations=2, batch_size=4)


def train(path, config, before_step=lambda step: None, tpgm=None):
    parts = toy.parts(STEPS, noise=NOISE, tpgm=tpgm)
    parts["task"].begin_step = lambda step, batch: before_step(step)
    with RunDirectory.open(path, tensorboard=False) as run:
        fit(data=toy.ToyData(), config=config, run=run, show_progress=False, **parts)


def life(work):
    """Do `work` in a forked process; gives the process number."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    except SystemExit as stop:
        os._exit(stop.code)
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        os._exit(1)
    os._exit(0)


def kill_at_call(number):
    """Make this process kill itself at its `number`th flush or rename of a file."""
    calls = 0
    fsync, replace = os.fsync, os.replace

    def counted(function):
        def call(*arguments):
            nonlocal calls
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments)

        return call

    os.fsync, os.replace = counted(fsync), counted(replace)


def kill_soon(chance):
    """A hook before every step: in one of the next few this process gets milliseconds to live."""
    steps_left = chance.randint(1, 5)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))

    def before_step(step):
        nonlocal steps_left
        steps_left -= 1
        if steps_left == 0:
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, 5e-3))

    return before_step


def step_of(path):
    checkpoint = latest_checkpoint(path / "checkpoints")
    return 0 if checkpoint is None else load_checkpoint(checkpoint)["step"]


def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def new_run(folder, name):
    with RunDirectory.create(folder, name, tensorboard=False) as run:
        return run.path


def killed_at_random(path, tpgm=None):
    """Lives that are killed at random moments, with a checkpoint every other step, until one gets to the end."""
    config = FitConfig(steps=STEPS, batch_size=8, log_every=7, seed=2, checkpoint_every=2)
    steps, codes = [], []
    for number in range(40):
        codes.append(ended(life(lambda n=number: train(path, config, kill_soon(random.Random(n)), tpgm))))
        steps.append(step_of(path))
        if codes[-1] == 0 or steps[-1] == STEPS:
            break
    assert ended(life(lambda: train(path, config, tpgm=tpgm))) == 0
    return {"steps": steps, "codes": codes}


def main(folder):
    report = {}
    whole = FitConfig(steps=STEPS, batch_size=8, log_every=7, seed=2)
    path = new_run(folder, "whole")
    assert ended(life(lambda: train(path, whole))) == 0
    path = new_run(folder, "whole-tpgm")
    assert ended(life(lambda: train(path, whole, tpgm=RADII))) == 0

    # Killed at every flush and rename of the first saves of a life, one after the other.
    config = FitConfig(steps=STEPS, batch_size=8, log_every=7, seed=2, checkpoint_every=1, keep=1)
    path = new_run(folder, "in-saves")
    steps, codes = [], []
    for number in range(1, 200):
        codes.append(ended(life(lambda n=number: (kill_at_call(n), train(path, config)))))
        steps.append(step_of(path))
        if codes[-1] == 0:
            break
    report["in-saves"] = {"steps": steps, "codes": codes}

    # AdamW, and TPGM with its held-out examples.
    report["at-random"] = killed_at_random(new_run(folder, "at-random"))
    report["tpgm"] = killed_at_random(new_run(folder, "tpgm"), RADII)

    # Preempted by the scheduler.
    path = new_run(folder, "preempted")
    at_ten = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 9 else None  # noqa: E731
    codes = [ended(life(lambda: train(path, whole, at_ten)))]
    report["preempted"] = {"steps": [step_of(path)], "codes": codes}
    assert ended(life(lambda: train(path, whole))) == 0
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
