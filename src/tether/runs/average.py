"""The mean of several runs: of their adapters on one base, or of whole models (a uniform soup).

Wortsman et al., "Model soups" (ICML 2022, arXiv 2203.05482).
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tether._alpha import Alpha
from tether._files import new_folder, refuse_existing
from tether.adapters import RAdapterConfig
from tether.adapters.files import Adapter, load_adapter, save_adapter
from tether.adapters.r_adapter import arithmetic
from tether.ensembles.model_average import average, check_compatible
from tether.errors import TetherError
from tether.heads.linear import HEAD_FILE, head_of, read_head, save_head
from tether.models import load


def average_adapters(adapters: Sequence[Adapter], alpha: Alpha | None = None) -> Adapter:
    """The mean of adapters of one base: its merge is the mean of their merges.

    R-Adapters of any ranks, or adapters of one method that tunes the base's own weights (full, bias_only,
    norm_only, last_blocks).

    Args:
        alpha: the ensemble weight of the result; None keeps theirs if it is the same for all.

    Raises:
        TetherError: there are none; they differ in method, config, base or sites, or in alpha where none is
            given.
    """
    if not adapters or all(isinstance(adapter.config, RAdapterConfig) for adapter in adapters):
        return arithmetic.average(adapters, alpha)
    first = adapters[0]
    for adapter in adapters[1:]:
        for what in ("config", "fingerprint"):
            one, other = getattr(first, what), getattr(adapter, what)
            if one != other:
                raise TetherError(f"Only adapters alike can be averaged; their {what} is {one} and {other}.")
    if alpha is None:
        alpha = arithmetic.shared_alpha(adapters)
    state = average([adapter.state for adapter in adapters])
    extra = {"combined": len(adapters)}
    unfrozen = arithmetic.shared_unfrozen(adapters)
    return Adapter(
        first.config, state, first.fingerprint, alpha, extra, source=first.source, unfrozen=unfrozen
    )


def average_folders(folders: Sequence[Path], out: Path, alpha: Alpha | None = None) -> None:
    """`average_adapters` of adapter folders, and the mean of the linear heads that were trained with them.

    Args:
        out: new adapter folder; the mean head lies in it.

    Raises:
        TetherError: `out` exists, or the adapters or their heads cannot be averaged.
    """
    refuse_existing(out)
    adapters = [load_adapter(folder) for folder in folders]
    mean = average_adapters(adapters, alpha)
    with_head = [
        folder for folder, adapter in zip(folders, adapters, strict=True) if adapter.extra.get("head")
    ]
    if with_head and len(with_head) < len(folders):
        without = next(folder for folder in folders if folder not in with_head)
        raise TetherError(
            f"{with_head[0]} was trained with a linear head and {without} without one: they have no mean."
        )
    head = _mean_head([head_of(folder) for folder in folders]) if with_head else None
    with new_folder(out) as folder:
        save_adapter(folder, mean, extra={**mean.extra, "head": bool(with_head)})
        if head:
            save_head(folder / HEAD_FILE, *head)


def _mean_head(files: Sequence[Path]) -> tuple[Tensor, Tensor]:
    """Mean of trained heads, and the zero-shot classifier that all of them began as."""
    heads, starts = zip(*(read_head(file) for file in files), strict=True)
    for file, start in zip(files, starts, strict=True):
        # On another machine a classifier differs by rounding; other classes or prompts differ by far more.
        if start.shape != starts[0].shape or not torch.allclose(start, starts[0], rtol=0, atol=1e-3):
            raise TetherError(
                f"The heads {files[0]} and {file} began as different zero-shot classifiers: they are of other "
                f"classes, in another order, or of other prompts, and have no mean."
            )
    return torch.stack(heads).mean(0), starts[0]


def average_models(sources: Sequence[str], out: Path) -> None:
    """The mean of whole models of one architecture, saved in the format of the first one's library.

    Args:
        sources: model folders, such as `tether merge` writes.
        out: new folder; nothing is overwritten.

    Raises:
        TetherError: `out` exists; the models differ in tensors, activation or pictures, have heads, or cannot be
            loaded or written.
    """
    refuse_existing(out)
    if not sources:
        raise TetherError("There is nothing to average: no model was given.")
    if headed := [source for source in sources if (Path(source) / HEAD_FILE).is_file()]:
        raise TetherError(
            f"{headed[0]} comes with a linear head, which a mean of models would lose. Average the adapters of the "
            f"runs instead and merge their mean; that keeps the heads."
        )
    model = load(sources[0])
    total = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    for number, source in enumerate(sources[1:], start=1):
        other = load(source)
        for what in ("family", "activation", "image", "context_length"):
            one, own = getattr(model, what), getattr(other, what)
            if one != own:
                raise TetherError(f"Only models alike can be averaged; their {what} is {one} and {own}.")
        check_compatible([total, state := other.module.state_dict()])
        total = {
            name: tensor.double() + (state[name].double() - tensor.double()) / (number + 1)
            if tensor.is_floating_point()
            else tensor
            for name, tensor in total.items()
        }  # in float64 until the end, so that their order does not matter
    model.module.load_state_dict(total)
    with new_folder(out) as folder:
        model.save_into(folder)
