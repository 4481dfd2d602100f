"""The loop against a loop written out, its stops and its continuation."""

import os
import signal

import pytest
import torch

from tether.errors import TetherError
from tether.training import FitConfig, Interrupted, RunDirectory, fit, read_metrics
from tether.training.checkpoint import is_complete, latest_checkpoint, load_checkpoint
from tether.training.sampler import shuffled


def config(**options):
    defaults = {"steps": 12, "batch_size": 8, "log_every": 5, "seed": 3}
    return FitConfig(**{**defaults, **options})


NOISE = ("torch", "numpy")  # Python's stream is left out: the type checker of the test run draws from it


def same_state(one, other):
    one, other = load_checkpoint(one), load_checkpoint(other)
    for state in (one, other):
        del state["random"]["python"]
    assert_equal(one, other)


def assert_equal(one, other, path=""):
    assert type(one) is type(other), path
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_equal(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num()), path
    else:
        assert one == other, path


def rows(run):
    return [{k: v for k, v in row.items() if k != "examples_per_second"} for row in read_metrics(run.path)]


def test_equals_a_loop_written_out(toy):
    expected = toy.parts(12)
    data, losses = toy.ToyData(), []
    torch.manual_seed(3)
    for step in range(12):
        epoch, position = divmod(step, 3)
        keys = [(epoch, int(i)) for i in shuffled(22, 3, epoch)[8 * position : 8 * position + 8]]
        batch = torch.utils.data.default_collate([data[key] for key in keys])
        expected["schedule"].set(step)
        expected["optimizer"].zero_grad()
        loss, _ = expected["task"].loss(batch, step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(expected["task"].parameters(), 0.5)
        expected["optimizer"].step()
        expected["accumulation"].update()
        losses.append(float(loss.detach()))

    actual = toy.parts(12)
    result = fit(data=data, config=config(clip_norm=0.5), show_progress=False, **actual)
    assert_equal(dict(actual["task"].state_dict()), dict(expected["task"].state_dict()))
    assert_equal(actual["accumulation"].values, expected["accumulation"].values)
    assert (result.steps, result.epochs) == (12, 4)
    assert result.metrics["loss"] == pytest.approx(sum(losses[10:]) / 2, rel=1e-6)


@pytest.mark.parametrize("stop", [1, 4, 6, 11])
def test_a_continued_run_equals_one_that_never_stopped(toy, tmp_path, stop):
    runs = tmp_path / "runs"
    with RunDirectory.create(runs, "whole", tensorboard=False) as whole:
        fit(data=toy.ToyData(), config=config(), run=whole, show_progress=False, **toy.parts(12, noise=NOISE))

    interrupted = toy.parts(12, noise=NOISE)
    original = interrupted["task"].loss

    def stopping_loss(batch, step):
        if step == stop - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(batch, step)

    interrupted["task"].loss = stopping_loss
    with RunDirectory.create(runs, "parts", tensorboard=False) as run, pytest.raises(Interrupted) as stopped:
        fit(data=toy.ToyData(), config=config(), run=run, show_progress=False, **interrupted)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert f"after step {stop} of 12" in str(stopped.value)
    torch.manual_seed(99)  # the new process is in another state

    with RunDirectory.open(run.path, tensorboard=False) as run:
        continued = toy.parts(12, noise=NOISE, seed=5)
        fit(data=toy.ToyData(), config=config(workers=0), run=run, show_progress=False, **continued)
    same_state(latest_checkpoint(run.checkpoints), latest_checkpoint(whole.checkpoints))
    assert rows(run) == rows(whole)


def test_a_finished_run_is_not_trained_again(toy, run):
    fit(data=toy.ToyData(), config=config(), run=run, show_progress=False, **toy.parts(12))
    again = toy.parts(12, seed=8)
    before = read_metrics(run.path)
    fit(data=toy.ToyData(), config=config(), run=run, show_progress=False, **again)
    saved = load_checkpoint(latest_checkpoint(run.checkpoints))
    assert_equal(dict(again["task"].state_dict()), saved["model"])
    assert read_metrics(run.path) == before


def test_ctrl_c_without_a_run_directory_says_that_nothing_was_saved(toy):
    parts = toy.parts(12)
    parts["task"].loss = lambda batch, step: (
        os.kill(os.getpid(), signal.SIGINT) or toy.Toy.loss(parts["task"], batch, step)
    )
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=r"Ctrl-C after step 1 of 12\. Nothing was saved") as stopped:
        fit(data=toy.ToyData(), config=config(), show_progress=False, **parts)
    assert stopped.value.code == 130
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.usefixtures("ctrl_c")
def test_a_second_ctrl_c_stops_at_once(toy):
    parts = toy.parts(12)

    def twice(batch, step):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    parts["task"].loss = twice
    with pytest.raises(KeyboardInterrupt):
        fit(data=toy.ToyData(), config=config(), show_progress=False, **parts)


def poison(parts, *bad_steps, gradient=False):
    original = parts["task"].loss

    def loss(batch, step):
        value, scalars = original(batch, step)
        if step not in bad_steps:
            return value, scalars
        if gradient:  # finite value, gradient 0/0
            weight = parts["task"].image.weight
            return value + ((weight - weight.detach()) ** 2).sum().sqrt(), scalars
        return value * torch.inf, scalars

    parts["task"].loss = loss
    return parts


@pytest.mark.parametrize("gradient", [False, True])
def test_a_loss_or_gradient_that_is_not_finite_stops_the_run(toy, run, gradient):
    parts = poison(toy.parts(12), 7, gradient=gradient)
    _, position = divmod(7, 3)
    expected = [f"picture-{i}" for i in shuffled(22, 3, 2)[8 * position : 8 * position + 8]]
    message = (
        rf"The gradient of step 7 \(epoch 3\) is not finite: loss \d.*{expected[0]}, .*clip_norm"
        if gradient
        else rf"The loss of step 7 \(epoch 3\) is not finite: loss (inf|nan).*{expected[0]}, .*Look at them"
    )
    with pytest.raises(TetherError, match=message):
        fit(data=toy.ToyData(), config=config(), run=run, show_progress=False, **parts)
    assert all(torch.isfinite(p).all() for p in parts["task"].parameters())
    assert latest_checkpoint(run.checkpoints).name == "step-00000006"
    assert (run.path / "non-finite-step-7.json").read_text().count("picture-") == 8


@pytest.mark.parametrize("all_torn", [False, True])
def test_a_damaged_checkpoint_is_told_of(toy, run, all_torn):
    fit(data=toy.ToyData(), config=config(), run=run, show_progress=False, **toy.parts(12))
    newest, older = sorted(run.checkpoints.glob("step-*"), reverse=True)
    for path in [newest, older] if all_torn else [newest]:
        (path / "state.json").write_bytes(b"{")
    before = read_metrics(run.path)
    arguments = {"data": toy.ToyData(), "config": config(), "run": run, "show_progress": False}
    if all_torn:
        with pytest.raises(TetherError, match=f"{newest.name}, {older.name} in .*no other checkpoint"):
            fit(**arguments, **toy.parts(12, seed=8))
        assert read_metrics(run.path) == before
    else:
        with pytest.warns(UserWarning, match=f"{newest.name} in .*damaged.*goes on from {older.name}"):
            assert fit(**arguments, **toy.parts(12, seed=8)).steps == 12
        assert is_complete(newest)


def test_a_bad_step_can_be_skipped(toy, run):
    parts = poison(toy.parts(12), 4, 7)
    updates = []
    parts["accumulation"].update = lambda: updates.append(1)
    fit(data=toy.ToyData(), config=config(non_finite="skip"), run=run, show_progress=False, **parts)
    assert len(updates) == 10
    assert all(torch.isfinite(p).all() for p in parts["task"].parameters())
    assert all(row["loss"] is not None for row in rows(run))


def test_skipping_gives_up_when_every_step_is_bad(toy):
    with pytest.raises(TetherError, match="step 10 "):
        parts = poison(toy.parts(20), *range(20))
        fit(data=toy.ToyData(), config=config(steps=20, non_finite="skip"), show_progress=False, **parts)


def test_a_loss_that_trains_nothing_is_refused(toy):
    parts = toy.parts(12)
    parts["task"].loss = lambda batch, step: (torch.zeros(()), {})
    with pytest.raises(TetherError, match="does not depend on any trained parameter"):
        fit(data=toy.ToyData(), config=config(), show_progress=False, **parts)


def test_a_missing_gradient_counts_as_zero(toy):
    parts = toy.parts(12)
    original = parts["task"].loss
    parts["task"].loss = lambda batch, step: original(batch, step) if step % 2 else (torch.ones(()), {})
    fit(data=toy.ToyData(), config=config(log_every=12), show_progress=False, **parts)
    weight = parts["task"].image.weight
    assert parts["optimizer"].state[weight]["step"] == 12


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("no more"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you …"),
    ],
)
def test_memory_that_ran_out_is_explained(toy, error):
    parts = toy.parts(12)

    def loss(batch, step):
        raise error

    parts["task"].loss = loss
    with pytest.raises(TetherError, match="Memory ran out in step 0"):
        fit(data=toy.ToyData(), config=config(), show_progress=False, **parts)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"steps": None, "epochs": 10**18},
            "epochs must be at most 99,999,999, found 1,000,000,000,000,000,000",
        ),
        ({"steps": 10**9}, "steps must be at most 99,999,999"),
        ({"workers": 100_000}, "workers must be at most 1,024, found 100,000"),
    ],
)
def test_numbers_that_no_run_can_have_are_refused(options, told):
    with pytest.raises(TetherError, match=told):
        config(**options)


def test_epochs_that_are_too_many_steps_are_refused():
    with pytest.raises(TetherError, match="99,999,999 epochs of 2 steps are more than 99,999,999"):
        config(steps=None, epochs=99_999_999).total_steps(16)


class Separable(torch.nn.Module):
    separable = True

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(6, 5, dtype=torch.float64)
        self.sizes = []

    def loss(self, batch, step):
        pixels, labels, _ = batch
        self.sizes.append(len(labels))
        return torch.nn.functional.cross_entropy(self.linear(pixels), labels), {}


def test_pieces_of_a_batch_give_the_gradient_of_the_batch(toy):
    tasks = Separable(), Separable()
    for task, size in zip(tasks, (None, 3), strict=True):
        optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
        fit(task, toy.ToyData(), optimizer, config(micro_batch=size), show_progress=False)
    assert tasks[1].sizes[:9] == [3, 3, 2, 3, 3, 2, 3, 3, 3]
    torch.testing.assert_close(tasks[1].linear.weight, tasks[0].linear.weight, rtol=1e-12, atol=1e-12)


def test_pieces_of_a_contrastive_batch_are_refused(toy):
    with pytest.raises(TetherError, match="micro_batch=4 would change the result"):
        fit(data=toy.ToyData(), config=config(micro_batch=4), show_progress=False, **toy.parts(12))


def test_begin_step_comes_before_every_forward_pass(toy):
    task = Separable()
    calls = []
    task.begin_step = lambda step, batch: calls.append((step, len(batch[1])))
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    fit(task, toy.ToyData(), optimizer, config(steps=2, micro_batch=5), show_progress=False)
    assert calls == [(0, 5), (0, 3), (1, 5), (1, 3)]


def test_validation_comes_at_the_end_of_every_epoch_and_is_logged(toy, run):
    fit(
        data=toy.ToyData(),
        config=config(steps=None, epochs=2),
        validate=lambda epoch, step: {"accuracy": epoch / 10 + step},
        run=run,
        show_progress=False,
        **toy.parts(6),
    )
    found = [row for row in rows(run) if row["kind"] == "validation"]
    assert found == [
        {"kind": "validation", "step": 3, "epoch": 1, "accuracy": 3.0},
        {"kind": "validation", "step": 6, "epoch": 2, "accuracy": 6.1},
    ]


def test_a_run_that_ends_within_an_epoch_is_validated_at_its_end(toy, run):
    fit(
        data=toy.ToyData(),
        config=config(steps=5),
        validate=lambda epoch, step: None if epoch == 0 else {"accuracy": step / 10},
        run=run,
        show_progress=False,
        **toy.parts(5),
    )
    found = [row for row in rows(run) if row["kind"] == "validation"]
    assert found == [{"kind": "validation", "step": 5, "epoch": 2, "accuracy": 0.5}]


@pytest.mark.parametrize(("steps", "every"), [(1, 1), (18, 1), (100, 5), (399, 19), (10_000, 20)])
def test_a_short_run_logs_several_points_too(steps, every):
    assert FitConfig(steps=steps).log_interval(steps) == every
    assert FitConfig(steps=steps, log_every=7).log_interval(steps) == 7


def test_a_run_of_18_steps_logs_more_than_one_point(toy, run):
    fit(
        data=toy.ToyData(),
        config=config(steps=18, log_every=None),
        run=run,
        show_progress=False,
        **toy.parts(18),
    )
    assert [row["step"] for row in rows(run) if row["kind"] == "train"] == list(range(1, 19))


def test_a_run_cannot_be_continued_with_other_options(toy, run):
    fit(data=toy.ToyData(), config=config(steps=3), run=run, show_progress=False, **toy.parts(12))
    with pytest.raises(TetherError, match="batch_size was 8 and is 4"):
        fit(data=toy.ToyData(), config=config(steps=3, batch_size=4), run=run, **toy.parts(12))
    with pytest.raises(TetherError, match="examples was 22 and is 23"):
        fit(data=toy.ToyData(23), config=config(steps=3), run=run, **toy.parts(12))
    with pytest.raises(TetherError, match="made with accumulation and the run now is without"):
        parts = {**toy.parts(12), "accumulation": None}
        fit(data=toy.ToyData(), config=config(steps=3), run=run, **parts)


class LongTail(torch.utils.data.Dataset):
    """Sixteen pictures of the first class and two of each of the others."""

    def __init__(self, toy):
        self.data = toy.ToyData(24)

    def __len__(self):
        return 24

    def __getitem__(self, key):
        pixels, _, index = self.data[key]
        return pixels, self.labels()[index], index

    def labels(self):
        return [0] * 16 + [1, 2, 3, 4] * 2


def test_classes_come_equally_often_where_that_is_asked_for(toy):
    seen = {}
    for sampler in ("balanced", "shuffled"):
        task, labels = Separable(), []
        task.begin_step = lambda step, batch, into=labels: into.extend(batch[1].tolist())
        optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
        fit(task, LongTail(toy), optimizer, config(steps=3, sampler=sampler), show_progress=False)
        seen[sampler] = sorted(labels.count(label) for label in range(5))
    assert seen == {"balanced": [4, 5, 5, 5, 5], "shuffled": [2, 2, 2, 2, 16]}


def test_a_balanced_order_needs_labels_and_no_other_order(toy):
    for data, order in ((toy.ToyData(), None), (LongTail(toy), lambda epoch: shuffled(24, 0, epoch))):
        with pytest.raises(TetherError, match="sampler='balanced' is for examples of classes"):
            fit(data=data, order=order, config=config(sampler="balanced"), **toy.parts(12))


def test_checkpoints_from_before_there_was_a_sampler_are_of_the_same_run():
    assert config().identity() == {
        "epochs": None,
        "steps": 12,
        "batch_size": 8,
        "drop_last": False,
        "seed": 3,
        "precision": "fp32",
        "clip_norm": None,
        "non_finite": "stop",
    }
    assert config(sampler="balanced").identity()["sampler"] == "balanced"


def test_half_precision_parameters_are_refused(toy):
    task = Separable().half()
    with pytest.raises(TetherError, match=r"must be fp32.*linear.weight"):
        fit(task, toy.ToyData(), torch.optim.SGD(task.parameters()), config())


def test_an_optimizer_that_trains_something_else_is_refused(toy):
    task = Separable()
    with pytest.raises(TetherError, match=r"Not in the optimizer: linear.bias"):
        fit(task, toy.ToyData(), torch.optim.SGD([task.linear.weight], lr=0.1), config())


def test_bf16_runs_the_forward_pass_under_autocast(toy):
    task = Separable().float()
    seen = []

    def loss(batch, step):
        logits = task.linear(batch[0].float())
        seen.append(logits.dtype)
        return torch.nn.functional.cross_entropy(logits.float(), batch[1]), {}

    task.loss = loss
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    fit(task, toy.ToyData(), optimizer, config(steps=1, precision="bf16"), show_progress=False)
    assert seen == [torch.bfloat16]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": None}, "either epochs or steps"),
        ({"epochs": 2}, "either epochs or steps"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"seed": 10**29}, r"seed must be below 2\*\*63"),
        ({"precision": "fp16"}, "precision must be one of"),
        ({"clip_norm": 0.0}, "clip_norm must be greater"),
        ({"non_finite": "ignore"}, "non_finite must be one of"),
        ({"sampler": "grouped"}, "sampler must be one of"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    wrong = config()
    for name, value in options.items():  # not through __init__, whose types the test run checks as well
        object.__setattr__(wrong, name, value)
    with pytest.raises(TetherError, match=message):
        wrong.__post_init__()


def test_progress_off_a_terminal_is_plain_lines(toy, capsys):
    fit(data=toy.ToyData(), config=config(), **toy.parts(12))
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("training: 12/12, epoch 4, loss ") and last.endswith("0:00:00 left")
