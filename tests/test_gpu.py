"""On a CUDA device everything computes what it computes on the CPU: `make test-gpu`."""

import copy

import pytest
import torch

import tether
from tether import recipe as recipes
from tether._files import read_tensors
from tether.models import load
from tether.optimizers import FTP, L2SP, MARSSP, SPD, TPGM, DiGraP
from tether.runs.train import run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.mark.parametrize("method", [FTP, SPD, DiGraP, L2SP, MARSSP, TPGM])
def test_an_optimizer_takes_the_same_steps(method):
    start = {
        name: torch.randn(shape, dtype=torch.float64) for name, shape in {"w": (4, 3), "b": (4,)}.items()
    }
    gradients = [{name: torch.randn_like(value) for name, value in start.items()} for _ in range(6)]
    ends = {}
    for device in ("cpu", "cuda"):
        params = {name: torch.nn.Parameter(value.clone().to(device)) for name, value in start.items()}
        optimizer = method(params.items(), lr=0.05)
        for own in gradients:
            for name, param in params.items():
                param.grad = own[name].to(device)
            optimizer.step()
        ends[device] = {name: param.detach().cpu() for name, param in params.items()}
    torch.testing.assert_close(ends["cuda"], ends["cpu"], rtol=1e-9, atol=1e-12)


def test_an_optimizer_does_not_wait_for_the_device():
    """No host synchronisation per parameter."""
    params = [torch.nn.Parameter(torch.randn(8, 8, device="cuda")) for _ in range(4)]
    for method in (FTP, SPD, DiGraP, L2SP, MARSSP):
        optimizer = method(params, lr=1e-3)
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer.step()  # makes what is made once
        torch.cuda.set_sync_debug_mode("error")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_adapter_drop_and_merge_are_those_of_the_cpu(tiny_model):
    pixels = torch.randn(4, 3, *[load(str(tiny_model)).image.size] * 2)
    found = {}
    for device in ("cpu", "cuda"):
        model = load(str(tiny_model), device=device)
        attached = tether.attach(model, tether.RAdapterConfig(drop=0.5), seed=0)
        with torch.no_grad():
            for number, parameter in enumerate(attached.named_parameters().values()):
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
                parameter.add_(0.05 * noise.to(device))
        attached.train_mode()
        attached.begin_step(3, torch.arange(4), torch.arange(4))
        dropped = model.encode_image(pixels.to(device)).detach().cpu()
        attached.merge(alpha=0.5)
        found[device] = dropped, model.encode_image(pixels.to(device)).detach().cpu()
    torch.testing.assert_close(found["cuda"], found["cpu"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_learns_what_it_learns_on_the_cpu(tiny_recipe, tmp_path, precision):
    options = copy.deepcopy(tiny_recipe)
    options["training"]["precision"] = precision
    ends = {}
    for device in ("cpu", "cuda"):
        outcome = run(recipes.from_plain(options), tmp_path / device, device=device, show_progress=False)
        ends[device] = read_tensors(outcome.run / "adapter" / "adapter.safetensors")
    limits = {"rtol": 1e-2, "atol": 1e-4} if precision == "fp32" else {"rtol": 0.2, "atol": 1e-2}
    torch.testing.assert_close(ends["cuda"], ends["cpu"], **limits)
