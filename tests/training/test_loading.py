"""Batches in order, from worker processes too, and from workers that die."""

import os
import signal

import numpy as np
import pytest
import torch

from tether.errors import TetherError
from tether.training import FitConfig, fit
from tether.training.loading import load, parts, to_device


class Recorder(torch.utils.data.Dataset):
    """Gives back its keys; a process asked for the deadly index kills itself, `lives` times in all."""

    def __init__(self, folder=None, deadly=None, lives=0):
        self.folder, self.deadly, self.lives = folder, deadly, lives

    def __len__(self):
        return 12

    def __getitem__(self, key):
        epoch, index = key
        if index == self.deadly and len(list(self.folder.iterdir())) < self.lives:
            (self.folder / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.tensor([epoch, index])


KEYS = [[(0, 1), (0, 2)], [(0, 3)], [(1, 4), (1, 5)], [(1, 6)]]


def plan(skip):
    return iter(KEYS[skip:])


def keys(batches):
    return [[tuple(key) for key in batch.tolist()] for batch in batches]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_the_order_of_the_plan(workers):
    assert keys(load(Recorder(), plan, workers=workers)) == KEYS


def test_a_dead_worker_is_replaced_once_without_losing_or_repeating_a_batch(tmp_path):
    handler = signal.getsignal(signal.SIGCHLD)
    assert keys(load(Recorder(tmp_path, deadly=4, lives=1), plan, workers=1)) == KEYS
    assert signal.getsignal(signal.SIGCHLD) is handler


def test_a_worker_that_dies_again_is_explained(tmp_path):
    batches = load(Recorder(tmp_path, deadly=4, lives=2), plan, workers=1)
    with pytest.raises(TetherError, match=r"died twice.*fewer workers"):
        list(batches)


def test_an_error_of_the_data_set_is_passed_on_as_it_is():
    class Broken(Recorder):
        def __getitem__(self, key):
            raise error("picture 7 is not readable")

    for error in (TetherError, RuntimeError, ConnectionResetError):
        for workers in (0, 1):
            with pytest.raises(error, match="picture 7 is not readable"):
                list(load(Broken(), plan, workers=workers))
    error = TetherError
    with pytest.raises(TetherError, match=r"^picture 7 is not readable$"):  # without torch's traceback
        list(load(Broken(), plan, workers=1))


def test_loading_leaves_the_random_stream_alone():
    before = torch.get_rng_state()
    list(load(Recorder(), plan))
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_change_nothing_in_a_run(toy):
    weights = []
    for workers in (0, 2):
        parts = toy.parts(6, noise=("torch",))
        config = FitConfig(steps=6, batch_size=8, workers=workers)
        fit(data=toy.ToyData(), config=config, show_progress=False, **parts)
        weights.append(parts["task"].image.weight)
    assert torch.equal(*weights)


def test_ctrl_c_that_reaches_the_workers_too_still_ends_with_the_step(toy):
    """A terminal sends Ctrl-C to every process of the group."""
    import multiprocessing

    from tether.training import Interrupted

    parts = toy.parts(6)

    def to_everybody(step, batch):
        if step == 2:
            for process in [*multiprocessing.active_children(), multiprocessing.current_process()]:
                os.kill(process.pid, signal.SIGINT)
                if process is not multiprocessing.current_process():
                    os.kill(process.pid, signal.SIGTERM)

    parts["task"].begin_step = to_everybody
    config = FitConfig(steps=6, batch_size=4, workers=2)
    with pytest.raises(Interrupted, match="after step 3 of 6"):
        fit(data=toy.ToyData(), config=config, show_progress=False, **parts)


def test_nested_batches_move_with_all_their_tensors():
    from collections import namedtuple

    Pair = namedtuple("Pair", "left right")
    batch = {"a": [torch.zeros(1), "text"], "b": Pair(torch.ones(1), 3)}
    moved = to_device(batch, torch.device("meta"))
    assert moved["a"][0].device.type == "meta" and moved["a"][1] == "text"
    assert isinstance(moved["b"], Pair) and moved["b"].left.device.type == "meta" and moved["b"].right == 3


def test_parts_cover_the_examples_in_order():
    examples = np.arange(7)
    assert parts(examples, 2, None) == [[(2, i) for i in range(7)]]
    assert parts(examples, 2, 3) == [[(2, 0), (2, 1), (2, 2)], [(2, 3), (2, 4), (2, 5)], [(2, 6)]]
