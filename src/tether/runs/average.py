"""The mean of several runs: of their adapters on one base, or of whole models (a uniform soup).

Wortsman et al., "Model soups" (ICML 2022, arXiv 2203.05482).
"""

from collections.abc import Sequence
from pathlib import Path

from tether._alpha import Alpha
from tether._averaging import check_compatible
from tether._files import new_folder, refuse_existing
from tether.adapters.files import Adapter, check_head, load_adapter, save_adapter
from tether.adapters.head import HEAD_FILE, mean_head
from tether.adapters.shared import check_base, heads_of, shared_alpha, shared_unfrozen
from tether.errors import TetherError
from tether.models import load


def average_adapters(adapters: Sequence[Adapter], alpha: Alpha | None = None) -> Adapter:
    """The mean of adapters of one base and one method: its merge is the mean of their merges.

    R-Adapters may have any ranks; other methods say in `AdapterConfig.mean` whether and how they have one.

    Args:
        alpha: the ensemble weight of the result; None keeps theirs if it is the same for all.

    Raises:
        TetherError: there are none; they differ in method, config, base or sites, or in alpha where none is
            given; or they have no mean.
    """
    if not adapters:
        raise TetherError("There is nothing to average: no adapter was given.")
    first = adapters[0]
    for adapter in adapters[1:]:
        if type(adapter.config) is not type(first.config):
            raise TetherError(
                f"Only adapters of one method can be averaged; their config is {first.config} and {adapter.config}."
            )
    check_base(adapters)
    config, state = first.config.mean(adapters)
    heads = heads_of(adapters)
    return Adapter(
        config,
        state,
        first.fingerprint,
        shared_alpha(adapters) if alpha is None else alpha,
        {"combined": len(adapters)},
        source=first.source,
        unfrozen=shared_unfrozen(adapters),
        head=mean_head(heads) if heads else None,
    )


def average_folders(folders: Sequence[Path], out: Path, alpha: Alpha | None = None) -> None:
    """`average_adapters` of adapter folders.

    Args:
        out: new adapter folder.

    Raises:
        TetherError: `out` exists, or the adapters or their heads cannot be averaged.
    """
    refuse_existing(out)
    adapters = [load_adapter(folder) for folder in folders]
    for adapter, folder in zip(adapters, folders, strict=True):
        check_head(adapter, folder)
    mean = average_adapters(adapters, alpha)
    with new_folder(out) as folder:
        save_adapter(folder, mean)


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
            one, other_value = getattr(model, what), getattr(other, what)
            if one != other_value:
                raise TetherError(
                    f"Only models alike can be averaged; their {what} is {one} and {other_value}."
                )
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
