"""What several adapters must have in common before they are made one."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from tether._alpha import Alpha
from tether._averaging import average
from tether.adapters.files import Adapter
from tether.adapters.head import Head
from tether.errors import TetherError


def check_base(adapters: Sequence[Adapter]) -> None:
    """See that adapters belong to one base.

    Raises:
        TetherError: they do not.
    """
    first = adapters[0].fingerprint
    for adapter in adapters[1:]:
        if adapter.fingerprint != first:
            raise TetherError(
                f"Adapters of different bases cannot be combined: fingerprints {first[:12]}… and "
                f"{adapter.fingerprint[:12]}…."
            )


def mean_state(adapters: Sequence[Adapter]) -> dict[str, Tensor]:
    """The mean of states, tensor by tensor, of methods whose merge is linear in them.

    Raises:
        TetherError: the adapters differ in their config.
    """
    first = adapters[0].config
    for adapter in adapters[1:]:
        if adapter.config != first:
            raise TetherError(
                f"Only adapters alike can be averaged; their config is {first} and {adapter.config}."
            )
    return average([adapter.state for adapter in adapters])


def shared_alpha(adapters: Sequence[Adapter]) -> Alpha:
    """The ensemble weight that all adapters have.

    Raises:
        TetherError: they differ in it.
    """
    first = adapters[0].alpha
    if any(adapter.alpha != first for adapter in adapters):
        raise TetherError(
            "The adapters have different alphas, so say which one the result shall have: alpha=… (--alpha)."
        )
    return first


def shared_unfrozen(adapters: Sequence[Adapter]) -> Mapping[str, Tensor]:
    """What was trained beside one adapter; several must have none, as their heads began anywhere and have no sum.

    Raises:
        TetherError: one of several adapters has such tensors.
    """
    if len(adapters) == 1:
        return adapters[0].unfrozen
    for adapter in adapters:
        if adapter.unfrozen:
            raise TetherError(
                f"{next(iter(adapter.unfrozen))} was trained beside an adapter, and only adapters can be combined. "
                f"Apply one of them, or train them with that tensor frozen."
            )
    return {}


def heads_of(adapters: Sequence[Adapter]) -> list[Head]:
    """The linear heads that were trained with adapters: of all of them, or of none.

    Raises:
        TetherError: some have one and others have none.
    """
    heads = [adapter.head for adapter in adapters if adapter.head]
    if heads and len(heads) < len(adapters):
        present = [bool(adapter.head) for adapter in adapters]
        raise TetherError(
            f"Adapter {present.index(True) + 1} was trained with a linear head and adapter {present.index(False) + 1} "
            f"without one: they cannot be combined."
        )
    return heads
