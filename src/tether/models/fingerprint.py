"""One number for the weights of a model: an adapter refuses any other base."""

import hashlib
import json
from collections.abc import Collection
from typing import Any

import torch
from torch import nn


def fingerprint(module: nn.Module, description: str = "", *, without: Collection[str] = ()) -> str:
    """SHA-256 over names, shapes and values of a module's state dict, in the order of the names.

    Values are hashed as fp32 where that is exact (fp16 and bf16 weights), so that fp16 weights have the same
    fingerprint whether they were loaded as fp16 or as fp32. The device does not matter.

    Args:
        module: an ordinary module, before anything is attached to it.
        description: hashed too; what changes the function but not the weights, such as the activation.
        without: names of the state dict that are left out, as if the module did not have them.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(description.encode())
    for name, tensor in sorted(module.state_dict().items()):
        if name in without:
            continue
        values = tensor.detach().to("cpu")
        if values.is_floating_point() and values.element_size() < 4:
            values = values.float()
        digest.update(json.dumps([name, list(values.shape), str(values.dtype)]).encode())
        digest.update(values.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def fingerprint_of(model: Any, *, without: Collection[str] = ()) -> str:
    """The fingerprint of a `tether.models.Model`, or of a bare module."""
    if isinstance(model, nn.Module):
        return fingerprint(model, without=without)
    return model.fingerprint(without=without)
