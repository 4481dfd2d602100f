"""A two-tower model of a few hundred numbers, with all that a run can remember: for the tests of training."""

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tether.objectives import MPMNCE
from tether.optimizers import TPGM, RadiusLearner
from tether.optimizers.groups import parameter_groups
from tether.optimizers.schedule import Schedule, ScheduleConfig
from tether.training import FitConfig, HeldOut

TPGM_TRAINING = FitConfig(steps=12, batch_size=8, seed=3)
"""Whose batch size and seed the held-out batches have."""


class ToyData(torch.utils.data.Dataset):
    """Noisy pictures of `classes` classes; the noise is a pure function of epoch and index."""

    def __init__(self, count=22, classes=5, seed=0):
        self.count, self.classes, self.seed = count, classes, seed

    def __len__(self):
        return self.count

    def __getitem__(self, key):
        epoch, index = key
        generator = torch.Generator().manual_seed(self.seed + 1000 * epoch + index)
        label = index % self.classes
        pixels = torch.randn(6, generator=generator, dtype=torch.float64)
        pixels[label] += 2
        return pixels, label, index

    def identity(self, index):
        return f"picture-{index}"


class Toy(nn.Module):
    """Contrastive task that draws from the global random streams named in `noise`, as dropout would."""

    def __init__(self, seed=0, classes=5, noise=()):
        super().__init__()
        torch.manual_seed(seed)
        self.image = nn.Linear(6, 4, dtype=torch.float64)
        self.text = nn.Embedding(classes, 4, dtype=torch.float64)
        self.objective = MPMNCE()
        self.noise = noise

    def loss(self, batch, step):
        pixels, labels, _ = batch
        if "torch" in self.noise:
            pixels = pixels + 0.1 * torch.randn(pixels.shape)
        if "numpy" in self.noise:
            pixels = pixels + 0.1 * np.random.randn()
        if "python" in self.noise:
            pixels = pixels + 0.1 * random.gauss(0, 1)
        return self.contrast(pixels, labels), {"norm": self.text.weight.norm()}

    def held_out_loss(self, batch, step):
        pixels, labels, _ = batch
        return self.contrast(pixels, labels)

    def contrast(self, pixels, labels):
        image = F.normalize(self.image(pixels), dim=1)
        text = F.normalize(self.text(labels), dim=1)
        return self.objective(image, text, labels, 10.0)


class Average:
    """Running average of the parameters, as simple as it gets."""

    def __init__(self, module):
        self.parameters = dict(module.named_parameters())
        self.values = {name: p.detach().clone() for name, p in self.parameters.items()}

    def update(self):
        for name, p in self.parameters.items():
            self.values[name] = 0.9 * self.values[name] + 0.1 * p.detach()

    def state_dict(self):
        return self.values

    def load_state_dict(self, state):
        self.values = dict(state)


def parts(steps, tpgm=None, **options):
    """Keyword arguments of `fit`, but for the data, config and run; with TPGM where its `RadiiConfig` is given."""
    task = Toy(**options)
    groups = parameter_groups(dict(task.named_parameters()), lr=0.05, weight_decay=0.1)
    optimizer = torch.optim.AdamW(groups) if tpgm is None else TPGM(groups)
    schedule = Schedule.of(optimizer, ScheduleConfig(warmup=3), steps)
    made = {"task": task, "optimizer": optimizer, "schedule": schedule, "accumulation": Average(task)}
    if tpgm is not None:
        made["after_step"] = RadiusLearner(optimizer, HeldOut(task, held_out_data(), TPGM_TRAINING), tpgm)
    return made


def held_out_data():
    """What TPGM learns its radii on."""
    return ToyData(11, seed=500)
