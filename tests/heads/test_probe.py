"""The first stage of LP-FT: the head alone, on the frozen model's features."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

import tether.data.dataset
from tether.data.dataset import ImageDataset
from tether.data.transforms import test_transform as plain_transform
from tether.data.transforms import train_transform
from tether.errors import TetherError
from tether.evaluation import class_embeddings
from tether.heads.probe import ProbeConfig, probed_head, train_probe
from tether.objectives import cross_entropy
from tether.optimizers.schedule import ScheduleConfig, schedule_factor
from tether.training.sampler import shuffled

from ..evaluation.tiny import NAMES, TEMPLATES, tiny_model, tiny_split

QUIET = {"show_progress": False}


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture
def data(model, tmp_path):
    return ImageDataset(tiny_split(tmp_path, "training", 21), train_transform(model.image, flip=True), seed=4)


@pytest.fixture
def reads(monkeypatch):
    seen = []
    read_image = tether.data.dataset.read_image
    monkeypatch.setattr(tether.data.dataset, "read_image", lambda ref: seen.append(ref) or read_image(ref))
    return seen


def zero_shot(model):
    return class_embeddings(model, NAMES, TEMPLATES)


def by_hand(model, dataset, head, epochs, rate, batch, seed, smoothing=0.0):
    """The same training as a plain loop; `dataset(epoch, index)` gives pixels."""
    model.eval()
    head = head.clone().requires_grad_()
    optimizer = torch.optim.AdamW([head], lr=rate, weight_decay=0.0)
    count, step = len(dataset.split), 0
    steps = epochs * -(-count // batch)
    for epoch in range(epochs):
        order = torch.as_tensor(shuffled(count, seed, epoch))
        for indices in order.split(batch):
            items = [dataset[epoch, int(index)] for index in indices]
            with torch.no_grad():
                features = model.encode_image(torch.stack([item["pixels"] for item in items]))
            labels = torch.tensor([item["label"] for item in items])
            loss = F.cross_entropy(model.logit_scale * features @ head.T, labels, label_smoothing=smoothing)
            for group in optimizer.param_groups:
                group["lr"] = rate * schedule_factor(step, steps, ScheduleConfig(warmup=0))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    return head.detach()


@pytest.mark.parametrize("augmented", [False, True])
def test_it_is_a_plain_loop_over_the_head_alone(model, data, augmented):
    start = zero_shot(model)
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    model.train()
    config = ProbeConfig(epochs=4, lr=0.03, batch_size=8, augmented=augmented)
    found = train_probe(
        config, model, data, start, loss=partial(cross_entropy, smoothing=0.1), seed=5, **QUIET
    )
    assert model.module.training and not found.requires_grad
    assert torch.equal(start, zero_shot(model))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items())
    assert all(parameter.grad is None for parameter in model.module.parameters())
    pictures = data if augmented else ImageDataset(data.split, plain_transform(model.image))
    expected = by_hand(model, pictures, start, 4, 0.03, 8, 5, smoothing=0.1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (found - start).abs().max() > 0.05


def test_it_is_repeatable_reads_each_picture_once_and_can_count_steps(model, data, reads):
    start = zero_shot(model)
    config = ProbeConfig(steps=7, batch_size=5)
    found = train_probe(config, model, data, start, **QUIET)
    assert len(reads) == 21 and set(reads) == data.split.images
    assert torch.equal(train_probe(config, model, data, start, **QUIET), found)
    other = train_probe(config, model, data, start, seed=1, **QUIET)
    assert not torch.equal(other, found)
    large = train_probe(ProbeConfig(epochs=1, batch_size=1000), model, data, start, **QUIET)
    assert large.shape == start.shape


def test_a_kept_head_is_read_and_not_trained_again(model, data, reads, tmp_path):
    config, start = ProbeConfig(epochs=2), zero_shot(model)
    path = tmp_path / "probe.safetensors"
    found = probed_head(path, config, model, data, start, **QUIET)
    assert torch.equal(found, train_probe(config, model, data, start, **QUIET))
    reads.clear()
    assert torch.equal(probed_head(path, config, model, data, start, **QUIET), found)
    assert not reads
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(TetherError, match="cannot be read"):
        probed_head(path, config, model, data, start, **QUIET)


def test_without_a_head_it_says_what_to_do(model, data):
    with pytest.raises(TetherError, match="cross_entropy"):
        train_probe(ProbeConfig(), model, data, None)


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"epochs": 0}, {"steps": 0}, {"batch_size": 0}])
def test_impossible_settings_are_refused_when_made(wrong):
    with pytest.raises(TetherError, match=f"probe.{next(iter(wrong))}"):
        ProbeConfig(**wrong)
