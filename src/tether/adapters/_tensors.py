"""Comparing and finding tensors by name."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tether.errors import TetherError, near_misses


def check_state(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Compare names and shapes of two states.

    Raises:
        TetherError: listing what is missing, unexpected or of another shape.
    """
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    shapes = [
        f"{name} is {list(state[name].shape)} instead of {list(expected[name].shape)}"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]
    problems = [
        f"{label}: {', '.join(names[:8])}{', …' if len(names) > 8 else ''}"
        for label, names in (("missing", missing), ("unexpected", unexpected), ("shapes", shapes))
        if names
    ]
    if problems:
        hint = near_misses(unexpected[0], missing) if missing and unexpected else ""
        raise TetherError(f"The state does not fit what is attached. {'; '.join(problems)}{hint}")


def check_known(tensors: Mapping[str, Tensor], known: Mapping[str, Tensor]) -> None:
    """See that every tensor has a place of its name and shape among those that are known.

    Raises:
        TetherError: naming the first that has none.
    """
    for name, tensor in tensors.items():
        if name not in known:
            raise TetherError(
                f"{name} was trained beside the adapter, and this module has no parameter of that name to put it into. "
                f"Make the model with the same head, as it was trained{near_misses(name, list(known))}"
            )
        if tensor.shape != known[name].shape:
            raise TetherError(
                f"{name} was trained beside the adapter with shape {list(tensor.shape)}, and this module has "
                f"{list(known[name].shape)}. Make the model with the same head, as it was trained."
            )


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors that hold NaN or infinity; waits for the device once where there are none."""
    if all_finite(list(tensors.values())):
        return []
    return [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]


def all_finite(tensors: list[Tensor]) -> bool:
    """Whether no tensor holds NaN or infinity."""
    flags = [tensor.isfinite().all().to(tensors[0].device) for tensor in tensors]
    return not flags or bool(torch.stack(flags).all())


def base_tensors(module: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """The module's own parameters and buffers of these names."""
    tensors = dict(module.named_parameters(remove_duplicate=False)) | dict(
        module.named_buffers(remove_duplicate=False)
    )
    return {name: tensors[name] for name in names}


def difference(merged: list[Tensor], expected: list[Tensor]) -> tuple[float, float]:
    """Largest absolute difference, and the same divided by the largest absolute value expected."""
    error = float(torch.stack([(a - b).abs().max() for a, b in zip(merged, expected, strict=True)]).max())
    largest = float(torch.stack([b.abs().max() for b in expected]).max())
    return error, error / largest if largest else error


def tensors_of(output: Any) -> Iterator[Tensor]:
    """The floating-point tensors in what a model returns, however nested."""
    if isinstance(output, Tensor):
        if output.is_floating_point() and output.numel():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors_of(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from tensors_of(value)
