"""The same work in one process and in two, for `test_distributed.py`.

Usage: two_processes.py FOLDER. Every process writes what it found to FOLDER/NAME-RANK.safetensors.
"""

import os
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "training"))
import torch
import torch._dynamo
import torch.nn.functional as F
import toy
from safetensors.torch import save_file

from tether._distributed import (
    average_gradients,
    from_main,
    gather,
    gather_with_grad,
    is_main,
    joined,
    rank,
    world_size,
)
from tether.errors import TetherError
from tether.objectives import MPMNCE, InfoNCE, cross_entropy
from tether.training import FitConfig, Interrupted, RunDirectory, fit

BATCH = 8


def share(tensor):
    """This process's rows of a global batch."""
    return tensor.chunk(world_size())[rank()]


def task_and_batch():
    task = toy.Toy(seed=1)
    task.scale = torch.nn.Parameter(torch.tensor(10.0, dtype=torch.float64))
    task.unused_by_the_second = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(BATCH, 6, generator=generator, dtype=torch.float64)
    return task, pixels, torch.tensor([0, 1, 1, 2, 3, 0, 4, 1])


def features(task, pixels, labels):
    return F.normalize(task.image(pixels), dim=1), F.normalize(task.text(labels), dim=1)


def gradients(task, loss):
    if loss.requires_grad:
        loss.backward()
    parameters = dict(task.named_parameters())
    (mean,) = average_gradients(list(parameters.values()), loss.detach()[None])
    return {"loss": mean, **{name: p.grad.clone() for name, p in parameters.items()}}


def contrastive():
    task, pixels, labels = task_and_batch()
    image, text = features(task, share(pixels), share(labels))
    return gradients(task, MPMNCE()(image, text, share(labels), task.scale))


def info_nce_with_distinct_texts():
    task, pixels, labels = task_and_batch()
    distinct, index = share(labels).unique(return_inverse=True)
    image, text = features(task, share(pixels), distinct)[0], F.normalize(task.text(distinct), dim=1)
    return gradients(task, InfoNCE()(image, text, task.scale, index=index))


def each_its_own_loss():
    task, pixels, labels = task_and_batch()
    image, _ = features(task, share(pixels), torch.arange(5).repeat(2)[: len(share(pixels))])
    classes = F.normalize(task.text.weight, dim=1)
    return gradients(task, cross_entropy(image, classes, share(labels), task.scale))


def rows_of_the_global_loss():
    """Every process computes its own rows of the logits only: losses that differ, from gathered features."""
    task, pixels, labels = task_and_batch()
    image, text = features(task, share(pixels), share(labels))
    logits = task.scale * image @ gather_with_grad(text).T
    return gradients(task, F.cross_entropy(logits, share(torch.arange(BATCH))))


def second_half_without_gradient():
    """Of the second half of the batch all adapters are dropped: with two processes one has no gradient at all."""
    task, pixels, labels = task_and_batch()
    image, text = features(task, share(pixels), share(labels))
    needs = share(torch.arange(BATCH) < BATCH // 2)[:, None]
    if world_size() == 2 and not is_main():
        image, text = image.detach(), text.detach()
    else:
        image, text = (torch.where(needs, x, x.detach()) for x in (image, text))
    extra = (task.unused_by_the_second**2).sum() * world_size() if is_main() else 0.0
    return gradients(task, MPMNCE()(image, text, share(labels), 10.0) + extra)


def helpers():
    everyone = gather(share(torch.arange(6)))
    try:
        from_main(lambda: (_ for _ in ()).throw(TetherError("only the first looked")))
    except TetherError as error:
        refused = str(error)
    return {
        "gathered": everyone,
        "broadcast": torch.tensor(from_main(lambda: {"numbers": [1, 2, rank()]})["numbers"]),
        "refused": torch.tensor(list(refused.encode())),
    }


def train(folder, name, *, steps=9, before_step=lambda step: None, path=None, **parts):
    parts = {**toy.parts(9), **parts}
    parts["task"].begin_step = lambda step, batch: before_step(step)
    config = FitConfig(steps=steps, batch_size=BATCH, clip_norm=0.5, log_every=4, checkpoint_every=100)
    make = RunDirectory.create(folder, name, tensorboard=False) if path is None else None
    with make or RunDirectory.open(path, tensorboard=False) as run:
        result = fit(data=toy.ToyData(24), config=config, run=run, show_progress=False, **parts)
    loss = torch.tensor([result.metrics["loss"]])
    return {"loss": loss, **parts["task"].state_dict(), **parts["accumulation"].values}


def trained(folder):
    return train(folder, f"trained-by-{world_size()}")


def stopped(folder):
    """Only the last process gets the signal; both must stop after the same step."""
    signalled = lambda step: os.kill(os.getpid(), 15) if step == 4 and rank() == world_size() - 1 else None  # noqa: E731
    try:
        train(folder, f"stopped-by-{world_size()}", before_step=signalled)
    except Interrupted as stop:
        message = torch.tensor(list(str(stop).split(" of ")[0].encode()))
        return {"code": torch.tensor(stop.code), "message": message}


def bad(folder):
    """Only the last process finds a NaN; both must stop."""
    task = toy.Toy()
    original = task.loss

    def loss(batch, step):
        value, scalars = original(batch, step)
        return value * (torch.nan if step == 5 and rank() == world_size() - 1 else 1), scalars

    task.loss = loss
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    try:
        train(
            folder, f"bad-in-{world_size()}", task=task, optimizer=optimizer, schedule=None, accumulation=None
        )
    except TetherError as error:
        return {"message": torch.tensor(list(str(error).split(":")[0].encode()))}


def odd():
    task = toy.Toy()
    parts = {"task": task, "optimizer": torch.optim.SGD(task.parameters(), lr=0.1)}
    try:
        fit(data=toy.ToyData(9), config=FitConfig(steps=2, batch_size=4), show_progress=False, **parts)
    except TetherError as error:
        return {"message": torch.tensor(list(str(error).encode()))}
    return {"message": torch.tensor(list(b"trained"))}


def work(folder):
    with joined() as device:
        assert device.type == "cpu"
        for scenario in (
            contrastive,
            info_nce_with_distinct_texts,
            each_its_own_loss,
            rows_of_the_global_loss,
            second_half_without_gradient,
            helpers,
            odd,
        ):
            write(folder, scenario.__name__, scenario())
        for scenario in (trained, stopped, bad):
            write(folder, scenario.__name__, scenario(folder))


def go_on_alone(folder):
    """One process takes up the run that two processes began."""
    write(folder, "continued", train(folder, None, path=folder / "stopped-by-2-001"))


def write(folder, name, tensors):
    save_file(
        {k: v.detach() for k, v in tensors.items()}, folder / f"{name}-{world_size()}-{rank()}.safetensors"
    )


def start(function, folder, **environment):
    child = os.fork()
    if child:
        return child
    try:
        os.environ.update(environment)
        function(folder)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main(folder):
    torch.set_num_threads(1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    group["GLOO_SOCKET_IFNAME"] = "lo"
    pair = [start(work, folder, RANK=str(number), LOCAL_RANK=str(number), **group) for number in range(2)]
    children = [start(work, folder), *pair]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    child = start(go_on_alone, folder)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    sys.exit(max(map(abs, codes)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
