"""What every model of a folder that transformers saved is read by: its configuration, its weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from tether.errors import TetherError
from tether.models.size_limit import SizeLimit
from tether.models.weights import complain

RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def read_config(folder: Path, source: str) -> Any:
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of several libraries
        raise TetherError(f"transformers cannot read the configuration of {source}: {error}") from error


def read_module(
    folder: Path, config: Any, source: str, *, ignored: Callable[[str], bool], **options: Any
) -> nn.Module:
    """The model that the configuration describes, with every one of its weights from model*.safetensors, as float32.

    Args:
        folder: where the weights are.
        config: what `read_config` read.
        source: what errors call the model.
        ignored: tells of a name in the files whether it is known to stand beside the model itself.
        **options: for the model's class.

    Raises:
        TetherError: weights are missing, too many, of another shape, not finite, or fewer than the configuration asks
            memory for.
    """
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise TetherError(f"{folder} has no model.safetensors. Pickled weights are never loaded.")
    try:
        with SizeLimit(files), torch.device("meta"):  # what does not fit would be made anew, at any size
            AutoModel.from_config(config, **options)
        module, report = AutoModel.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported below with all other faults
            dtype=torch.float32,
            **options,
        )
    except Exception as error:  # configuration, safetensors and size errors, of several libraries
        raise TetherError(f"transformers cannot load {source}: {error}") from error
    complain(
        str(folder),
        missing=sorted(report["missing_keys"]),
        unexpected=sorted(name for name in report["unexpected_keys"] if not ignored(name)),
        shapes=[
            f"{name} is {tuple(found)}, the configuration says {tuple(expected)}"
            for name, found, expected in sorted(report["mismatched_keys"])
            if not ignored(name)
        ],
        infinite=[name for name, tensor in module.state_dict().items() if not bool(tensor.isfinite().all())],
    )
    return module
