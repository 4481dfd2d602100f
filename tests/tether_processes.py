"""Real `tether` processes that are killed, interrupted, starved of disk or joined, for the tests.

Usage: tether_processes.py SCENARIO FOLDER. FOLDER/recipe.yaml is the recipe. One process imports torch and
forks every life, so that a life takes a second; what happened is written to FOLDER/report.json.
"""

import json
import os
import random
import resource
import signal
import socket
import sys
import time
from pathlib import Path

import torch

import tether.runs.train
from tether.cli import main

# Once here, not in every life: what training, loading and evaluating import when they are first used.
import tether.runs.show, tether.models.load_open_clip, torch._dynamo, torch.utils.tensorboard  # noqa: E401, F401  # isort: skip

FAR = 240.0  # seconds after which something hangs, also on a loaded machine


def life(folder, name, *arguments, before=lambda: None):
    """Begin `tether ARGUMENTS` in a forked process; its output goes to FOLDER/NAME.out and .err."""
    child = os.fork()
    if child:
        return child
    try:
        for descriptor, kind in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / f"{name}.{kind}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        before()
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    os._exit(code)


def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def wait_for(child, happened):
    """Wait until something has happened or the process has ended; says whether it happened first."""
    began = time.monotonic()
    while not happened():
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return False
        if time.monotonic() - began > FAR:
            raise TimeoutError("the process hangs")
        time.sleep(0.001)
    return True


def killed(folder):
    """Kill -9 at random moments of the whole job, again and again, until a life gets to the end."""
    recipe = folder / "recipe.yaml"
    whole = ended(life(folder, "whole", "train", recipe, "--runs", folder / "whole"))
    codes, run, chance = [], None, random.Random(5)

    def step():
        """Number of the newest checkpoint."""
        found = (folder / "killed").glob("tiny-*/checkpoints/step-*")
        return max((int(path.name.removeprefix("step-")) for path in found), default=0)

    while len(codes) < 40:
        goal = ["--resume", run] if run else [recipe, "--runs", folder / "killed"]
        further = step() + chance.randint(0, 6)
        child = life(folder, f"life-{len(codes)}", "train", *goal)
        if len(codes) < 14:  # then it may come to its end
            wait_for(child, lambda further=further: step() >= further)
            time.sleep(chance.uniform(0, 0.02))
            os.kill(child, signal.SIGKILL)
        codes.append(ended(child))
        if codes[-1] != -signal.SIGKILL:
            break
        begun = [path for path in (folder / "killed").glob("tiny-*") if (path / "config.json").exists()]
        run = begun[0] if begun else None
    return {"whole": whole, "codes": codes, "run": str(run or folder / "killed" / "tiny-001")}


def interrupted(folder):
    """Ctrl-C after the third step; then to the end."""
    recipe = folder / "recipe.yaml"
    child = life(folder, "stopped", "train", recipe, "--runs", folder / "runs", "training.checkpoint_every=1")
    run = folder / "runs" / "tiny-001"
    sent = wait_for(child, (run / "checkpoints" / "step-00000003").exists)
    os.kill(child, signal.SIGINT)
    codes = [ended(child)]
    checkpoints = sorted(path.name for path in (run / "checkpoints").iterdir())
    codes.append(ended(life(folder, "continued", "train", "--resume", run, "training.checkpoint_every=60")))
    return {"sent": sent, "codes": codes, "checkpoints": checkpoints}


def full_disk(folder):
    """No file may grow beyond 40 kB: checkpoints fail; then there is space again."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))

    recipe, runs = folder / "recipe.yaml", folder / "runs"
    codes = [ended(life(folder, "full", "train", recipe, "--runs", runs, before=limit))]
    left = sorted(str(path.relative_to(runs)) for path in runs.rglob("*"))
    codes.append(ended(life(folder, "continued", "train", "--resume", runs / "tiny-001")))
    merge = ["merge", runs / "tiny-001" / "adapter"]
    codes.append(ended(life(folder, "merge", *merge, folder / "no-space", before=limit)))
    codes.append(ended(life(folder, "merged", *merge, folder / "space")))
    return {"codes": codes, "left": left, "there": sorted(path.name for path in folder.iterdir())}


def joined(folder):
    """The same run in one process and in two, as torchrun would start them."""
    recipe = folder / "recipe.yaml"
    codes = [ended(life(folder, "one", "train", recipe, "--runs", folder / "one"))]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in (0, 1):
        place = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": 2,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        join = lambda place=place: os.environ.update({name: str(value) for name, value in place.items()})  # noqa: E731
        children.append(life(folder, f"two-{rank}", "train", recipe, "--runs", folder / "two", before=join))
    return {"codes": codes + [ended(child) for child in children]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    scenario, folder = globals()[sys.argv[1]], Path(sys.argv[2])
    (folder / "report.json").write_text(json.dumps(scenario(folder)))
