"""One of two processes of test_sharded.py: trains a small model in parallel, replicated (DDP) and sharded
(FSDP2), and compares it with the same training in one process.

    sharded_worker.py RANK STORE
"""

import os
import sys

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard
from torch.nn.parallel import DistributedDataParallel

from tether.optimizers import FTP, L2SP, MARSSP, SPD, TPGM, DiGraP

METHODS = [
    (FTP, {"k": 0.5, "weight_decay": 0.1}),
    (FTP, {"base": "sgd", "momentum": 0.9, "nesterov": True}),
    (SPD, {"strength": 1.2}),
    (DiGraP, {"mu": 0.5}),
    (DiGraP, {"mu": 0.5, "normalization": "tensor"}),
    (L2SP, {"alpha": 0.3}),
    (MARSSP, {"strength": 0.3}),
    (MARSSP, {"radius": 0.05, "foreach": False}),
    (TPGM, {"radius_lr": 0.05}),
    (TPGM, {"norm": "l2", "radius_lr": 0.05}),
]
BATCH = 4


class Net(torch.nn.Module):
    """Rows that do not divide by two, a tensor of one row (one rank has none of it), a kernel, vectors."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = torch.nn.Conv2d(2, 3, 2)
        self.hidden = torch.nn.Linear(12, 6)
        self.norm = torch.nn.LayerNorm(6)
        self.columns = torch.nn.Linear(6, 5, bias=False)  # sharded by columns: its rows are split
        self.row = torch.nn.Linear(5, 1, bias=False)
        self.out = torch.nn.Linear(1, 1)

    def forward(self, x):
        x = self.norm(self.hidden(self.convolution(x).flatten(1)).sin())
        return self.out(self.row(self.columns(x).tanh()))


def batch(t, rank=None):
    generator = torch.Generator().manual_seed(100 + t)
    pixels = torch.randn(2 * BATCH, 2, 3, 3, generator=generator, dtype=torch.float64)
    targets = (1.0 if t % 5 < 3 else -1.0) * torch.ones(2 * BATCH, 1, dtype=torch.float64)
    part = slice(None) if rank is None else slice(rank * BATCH, (rank + 1) * BATCH)
    return pixels[part], targets[part]


def train(model, optimizer, steps, rank=None):
    def loss(t):
        pixels, targets = batch(t, rank)
        return (model(pixels) - targets).square().mean()

    for t in steps:
        optimizer.zero_grad()
        loss(t).backward()
        optimizer.step()
        if isinstance(optimizer, TPGM):
            optimizer.radius_step(lambda t=t: loss(t + 50)) if t % 2 else optimizer.project()


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def compare(model, reference, what):
    for (name, param), (_, expected) in zip(
        model.named_parameters(), reference.named_parameters(), strict=True
    ):
        difference = (whole(param.detach()) - expected.detach()).abs().max().item()
        assert difference < 1e-9, f"{what}: {name} differs by {difference}"


def shard(model):
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(
        model, mesh=mesh, shard_placement_fn=lambda p: Shard(1) if p is model.columns.weight else None
    )
    return model


def check_sharded(rank):
    for method, options in METHODS:
        what = f"{method.__name__} {options}"
        reference, model = Net().double(), Net().double()
        frozen = {
            name: value.detach().clone() + 0.01
            for name, value in reference.named_parameters()
            if "norm" in name
        }
        shard(model)
        optimizer = method(model.named_parameters(), lr=0.05, anchors=frozen, exclude=["out.*"], **options)
        single = method(reference.named_parameters(), lr=0.05, anchors=frozen, exclude=["out.*"], **options)
        train(model, optimizer, range(5), rank)
        train(reference, single, range(5))
        compare(model, reference, what)

        resumed = Net().double()
        resumed.load_state_dict(reference.state_dict())
        shard(resumed)
        again = method(resumed.named_parameters(), lr=0.05, anchors=frozen, exclude=["out.*"], **options)
        set_optimizer_state_dict(resumed, again, get_optimizer_state_dict(model, optimizer))
        train(resumed, again, range(5, 8), rank)
        train(reference, single, range(5, 8))
        compare(resumed, reference, f"{what} after loading")


def check_replicated(rank):
    for method, options in METHODS:
        reference, model = Net().double(), Net().double()
        wrapped = DistributedDataParallel(model)
        optimizer = method(wrapped.named_parameters(), lr=0.05, exclude=["*out.*"], **options)
        single = method(reference.named_parameters(), lr=0.05, exclude=["out.*"], **options)
        train(wrapped, optimizer, range(5), rank)
        train(reference, single, range(5))
        compare(model, reference, f"{method.__name__} {options}")


if __name__ == "__main__":
    rank, store = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    check_replicated(rank)
    check_sharded(rank)
    dist.destroy_process_group()
    print("all equal", flush=True)
    os._exit(0)  # all is compared; torch's own threads now and then abort the interpreter on its way out
