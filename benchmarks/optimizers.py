"""What a step of each robust optimizer costs beside torch.optim.AdamW(foreach=True), on ViT-B/16.

    python benchmarks/optimizers.py [--threads 1] [--rounds 9] [--device cpu] [--csv FILE]

Each optimizer shares a process with AdamW and takes turns with it, so that other load meets both. The figures are
medians over rounds of the ratio to AdamW's step in the same round, of wall-clock and of processor time. On a CPU
fresh large tensors cost page faults, which would make AdamW, whose temporaries are as large as the model,
look slower than it is: allocation is set to keep them.
"""

import argparse
import csv
import gc
import os
import statistics
import sys
import time
from pathlib import Path

ALLOCATION = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}


def parameters(device):
    import timm
    import torch

    with torch.device("meta"):
        shapes = [parameter.shape for parameter in timm.create_model("vit_base_patch16_224").parameters()]
    made = [torch.nn.Parameter(0.02 * torch.randn(shape, device=device)) for shape in shapes]
    for parameter in made:
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    return made


def optimizers(device):
    """Name and maker of each optimizer and its step."""
    import torch

    from tether.optimizers import FTP, L2SP, MARSSP, SPD, TPGM, DiGraP

    def projecting(optimizer):
        def step():
            optimizer.step()
            optimizer.project()

        return step

    return {
        "AdamW(foreach=True)": lambda: torch.optim.AdamW(parameters(device), foreach=True).step,
        "FTP": lambda: FTP(parameters(device)).step,
        "SPD": lambda: SPD(parameters(device)).step,
        "DiGraP": lambda: DiGraP(parameters(device)).step,
        "L2SP": lambda: L2SP(parameters(device)).step,
        "L2SP(decoupled=True)": lambda: L2SP(parameters(device), decoupled=True).step,
        "MARSSP": lambda: MARSSP(parameters(device)).step,
        "MARSSP(radius=0.1)": lambda: MARSSP(parameters(device), radius=0.1).step,
        "TPGM, step and projection": lambda: projecting(TPGM(parameters(device))),
    }


def measure(device, rounds):
    """Yield each name and, for each round, the times of AdamW and of the optimizer: (wall, processor) seconds."""
    import torch

    def timed(step):
        wall, processor = time.perf_counter(), time.process_time()
        step()
        if device != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter() - wall, time.process_time() - processor

    makers = optimizers(device)
    adamw = next(iter(makers.values()))()
    for name, make in makers.items():
        step = make()
        times = [[timed(each) for each in (adamw, step)] for _ in range(rounds + 2)]
        yield name, times[2:]  # the first steps make state and warm the caches
        del step
        gc.collect()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--csv", type=Path, help="write the table there too")
    arguments = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ALLOCATION.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATION})

    import torch

    torch.set_num_threads(arguments.threads)
    what = f"{arguments.device}, {arguments.threads} threads, {arguments.rounds} rounds"
    print(f"ViT-B/16, {what}, torch {torch.__version__}")
    print(
        f"{'optimizer':28}{'ms':>8}{'wall ratio':>12}{'quartiles':>14}{'processor ratio':>17}{'quartiles':>14}"
    )
    rows = []
    for name, rounds in measure(arguments.device, arguments.rounds):
        milliseconds = 1e3 * statistics.median(own[0] for _, own in rounds)
        wall, processor = (
            statistics.quantiles([own[clock] / adamw[clock] for adamw, own in rounds], n=4)
            for clock in (0, 1)
        )
        rows.append([name, f"{milliseconds:.1f}", *(f"{ratio:.3f}" for ratio in (*wall, *processor))])
        spans = [f"{low:.2f} to {high:.2f}" for low, _, high in (wall, processor)]
        print(
            f"{name:28}{milliseconds:8.1f}{wall[1]:12.2f}{spans[0]:>14}{processor[1]:17.2f}{spans[1]:>14}",
            flush=True,
        )
    if arguments.csv:
        with arguments.csv.open("w", newline="") as file:
            table = csv.writer(file)
            quartiles = ("lower quartile", "median", "upper quartile")
            kinds = [f"{kind} ratio, {which}" for kind in ("wall", "processor") for which in quartiles]
            table.writerow(["optimizer", "ms", *kinds])
            table.writerows(rows)


if __name__ == "__main__":
    main()
