"""TPGM in the loop: against a loop written out, stopped and continued, in two processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tether.errors import TetherError
from tether.optimizers import RadiiConfig, RadiusLearner
from tether.recipe import from_plain
from tether.training import FitConfig, HeldOut, Interrupted, RunDirectory, fit
from tether.training.checkpoint import latest_checkpoint, load_checkpoint
from tether.training.sampler import shuffled

RADII = RadiiConfig(every=3, iterations=2, batch_size=4)


def config(**options):
    return FitConfig(**{"steps": 12, "batch_size": 8, "log_every": 5, "seed": 3, **options})


def held_out_batch(data, number):
    """Of 11 examples in batches of 4: two in an epoch, three examples left out."""
    epoch, place = divmod(number, 2)
    keys = [(epoch, int(i)) for i in shuffled(11, 3, epoch)[4 * place : 4 * place + 4]]
    return torch.utils.data.default_collate([data[key] for key in keys])


def spy(parts):
    """Record the held-out examples of every step."""
    seen, original = [], parts["task"].held_out_loss

    def held_out_loss(batch, step):
        seen.append((step, batch[2].tolist()))
        return original(batch, step)

    parts["task"].held_out_loss = held_out_loss
    return seen


def weights(parts):
    return {name: value.clone() for name, value in parts["task"].state_dict().items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_equals_a_loop_written_out(toy):
    expected, data = toy.parts(12, tpgm=RADII), toy.ToyData()
    task, optimizer, numbers = expected["task"], expected["optimizer"], iter(range(100))
    for step in range(12):
        epoch, place = divmod(step, 3)
        keys = [(epoch, int(i)) for i in shuffled(22, 3, epoch)[8 * place : 8 * place + 8]]
        expected["schedule"].set(step)
        optimizer.zero_grad()
        task.loss(torch.utils.data.default_collate([data[key] for key in keys]), step)[0].backward()
        optimizer.step()
        if step % 3 == 2:
            optimizer.radius_step(
                lambda: task.held_out_loss(held_out_batch(toy.held_out_data(), next(numbers)), 0),
                iterations=2,
            )
        else:
            optimizer.project()
        expected["accumulation"].update()
    assert next(numbers) == 8

    actual = toy.parts(12, tpgm=RADII)
    fit(data=data, config=config(), show_progress=False, **actual)
    assert_equal(weights(actual), weights(expected))
    assert_equal(actual["accumulation"].values, expected["accumulation"].values)
    radii = [optimizer.state[p]["radius"] for p in task.parameters()]
    assert all(state["radius"] in radii for state in actual["optimizer"].state.values())


def test_once_after_the_last_step(toy):
    """Until then TPGM is the plain optimizer; then all the batches come one after the other."""
    parts, plain = toy.parts(12, tpgm=RadiiConfig(every=None, iterations=5, batch_size=4)), toy.parts(12)
    before_last = {}
    for name, each in (("tpgm", parts), ("plain", plain)):
        each["task"].begin_step = lambda step, _, n=name, e=each: before_last.update({n: weights(e)})
    seen = spy(parts)
    for each in (parts, plain):
        fit(data=toy.ToyData(), config=config(), show_progress=False, **each)
    torch.testing.assert_close(before_last["tpgm"], before_last["plain"], rtol=0, atol=1e-12)
    assert not torch.allclose(parts["task"].text.weight, plain["task"].text.weight, atol=1e-3)
    assert [step for step, _ in seen] == [11] * 5
    data = toy.held_out_data()
    assert [examples for _, examples in seen] == [held_out_batch(data, i)[2].tolist() for i in range(5)]


def test_the_batch_is_that_of_training_or_all_there_is(toy):
    for batch_size, expected in ((None, 8), (20, 11)):
        parts = toy.parts(12, tpgm=RadiiConfig(batch_size=batch_size))
        seen = spy(parts)
        fit(data=toy.ToyData(), config=config(steps=4), show_progress=False, **parts)
        assert [(step, len(examples)) for step, examples in seen] == [(step, expected) for step in range(4)]


@pytest.mark.parametrize("stop", [2, 3, 7])
def test_a_continued_run_equals_one_that_never_stopped(toy, tmp_path, stop):
    noise = ("torch", "numpy")
    with RunDirectory.create(tmp_path, "whole", tensorboard=False) as whole:
        fit(
            data=toy.ToyData(),
            config=config(),
            run=whole,
            show_progress=False,
            **toy.parts(12, RADII, noise=noise),
        )

    parts = toy.parts(12, RADII, noise=noise)
    parts["task"].begin_step = lambda step, _: (
        os.kill(os.getpid(), signal.SIGTERM) if step == stop - 1 else None
    )
    with RunDirectory.create(tmp_path, "parts", tensorboard=False) as run, pytest.raises(Interrupted):
        fit(data=toy.ToyData(), config=config(), run=run, show_progress=False, **parts)
    torch.manual_seed(99)
    with RunDirectory.open(run.path, tensorboard=False) as run:
        continued = toy.parts(12, RADII, noise=noise, seed=5)  # made over other weights than the anchors
        fit(data=toy.ToyData(), config=config(), run=run, show_progress=False, **continued)
    one, other = (load_checkpoint(latest_checkpoint(each.checkpoints)) for each in (whole, run))
    assert_equal(one["model"], other["model"])
    assert_equal(one["accumulation"], other["accumulation"])
    for name, state in one["optimizer"]["state"].items():
        assert_equal(state, other["optimizer"]["state"][name])


def test_a_run_cannot_be_continued_with_other_radii(toy, run):
    fit(data=toy.ToyData(), config=config(steps=3), run=run, show_progress=False, **toy.parts(12, RADII))
    with pytest.raises(TetherError, match=r"radii\.every was 3 and is 1"):
        fit(data=toy.ToyData(), config=config(steps=3), run=run, **toy.parts(12, RadiiConfig()))


def test_a_skipped_step_does_not_shift_the_held_out_examples(toy):
    parts = toy.parts(12, tpgm=RADII)
    original = parts["task"].loss
    parts["task"].loss = lambda batch, step: (original(batch, step)[0] * (torch.nan if step == 5 else 1), {})
    seen = spy(parts)
    fit(data=toy.ToyData(), config=config(non_finite="skip"), show_progress=False, **parts)
    data = toy.held_out_data()
    numbers = {2: (0, 1), 8: (4, 5), 11: (6, 7)}
    assert seen == [
        (step, held_out_batch(data, i)[2].tolist()) for step, pair in numbers.items() for i in pair
    ]


def test_a_held_out_loss_that_is_not_finite_leaves_the_weights_alone(toy):
    parts = toy.parts(12, tpgm=RadiiConfig())
    original = parts["task"].held_out_loss
    parts["task"].held_out_loss = lambda batch, step: original(batch, step) * (torch.nan if step == 4 else 1)
    with pytest.raises(
        TetherError, match="held-out loss after step 4 or its gradient is not finite: loss nan"
    ):
        fit(data=toy.ToyData(), config=config(), show_progress=False, **parts)
    assert all(torch.isfinite(p).all() for p in parts["task"].parameters())
    assert all(torch.isfinite(state["radius"]) for state in parts["optimizer"].state.values())


def test_tpgm_without_its_learner_is_refused(toy):
    parts = {**toy.parts(12, tpgm=RADII), "after_step": None}
    with pytest.raises(TetherError, match=r"TPGM is not complete .* a tether\.optimizers\.RadiusLearner"):
        fit(data=toy.ToyData(), config=config(), **parts)


def test_held_out_examples_that_give_no_loss_are_refused(toy):
    with pytest.raises(TetherError, match="but there are none"):
        HeldOut(toy.Toy(), toy.ToyData(0), config())
    with pytest.raises(TetherError, match=r"Linear needs a method held_out_loss\(batch, step\)"):
        HeldOut(torch.nn.Linear(6, 5), toy.ToyData(), config())


def test_another_optimizer_is_refused(toy, tiny_recipe):
    parts = toy.parts(12)
    with pytest.raises(TetherError, match="for TPGM only, not for AdamW"):
        RadiusLearner(parts["optimizer"], HeldOut(parts["task"], toy.ToyData(), config()))
    with pytest.raises(TetherError, match=r"radii are of use to TPGM only, not to optimizer\.method=adamw"):
        from_plain({**tiny_recipe, "radii": {"every": 3}})


@pytest.mark.parametrize("option", ["every", "iterations", "batch_size"])
def test_options_that_make_no_sense_are_refused(option):
    with pytest.raises(TetherError, match=rf"radii\.{option} must be at least 1, found 0"):
        RadiiConfig(**{option: 0})


@pytest.mark.slow
def test_two_processes_learn_the_radii_that_one_learns(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("two_processes_tpgm.py")), str(tmp_path)],
        env={**environment, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    single, first, second = (load_file(tmp_path / f"tpgm-{who}.safetensors") for who in ("1-0", "2-0", "2-1"))
    assert_equal(first, second)
    torch.testing.assert_close(first, single, rtol=1e-6, atol=1e-9)
