"""Weights go into a model completely and exactly, or not at all."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tether.errors import TetherError


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        TetherError: the file is not there, is of another format, or is cut short.
    """
    if file.suffix != ".safetensors":
        raise TetherError(
            f"{file} is not a safetensors file. Pickled weights can run any code and are never loaded; "
            f"convert the file once, in a process you trust, with safetensors.torch.save_file."
        )
    if not file.is_file():
        raise TetherError(f"There is no weights file {file}.")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise TetherError(
            f"{file} is not a whole safetensors file ({error}); it may be cut short."
        ) from error


def put_weights(module: nn.Module, state: dict[str, Tensor], origin: str) -> None:
    """Load a state dict, strictly.

    Raises:
        TetherError: a tensor is missing, unexpected, of another shape, or not finite.
    """
    expected = module.state_dict()
    complain(
        origin,
        missing=sorted(expected.keys() - state.keys()),
        unexpected=sorted(state.keys() - expected.keys()),
        shapes=[
            f"{name} is {tuple(state[name].shape)}, the configuration says {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in state and state[name].shape != tensor.shape
        ],
        infinite=[name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())],
    )
    module.load_state_dict(state)


def complain(origin: str, **faults: list[str]) -> None:
    """Raise a TetherError that lists the faults found, if there are any."""
    found = [
        f"{fault}: {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}"
        for fault, names in faults.items()
        if names
    ]
    if found:
        raise TetherError(
            f"The weights of {origin} do not fit the model its configuration describes ({'; '.join(found)}). "
            f"Is it the right file for this architecture, image size and context length?"
        )
