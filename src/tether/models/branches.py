"""The residual branches of a block, and the sites around them: on the stream, beside a branch, in its prompt."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tether.models.site import Kind, Port, Position, Side, Site

Place = tuple[str, Side]
"""A module of a block, by its path relative to the block ("" is the block), and its input or output."""


@dataclass(frozen=True)
class Branch:
    """One residual branch of a block: stream ← stream + LayerScale, drop path (function(norm(stream)))."""

    kind: Literal["attention", "mlp"]
    entry: Place
    """What first takes the stream there."""
    result: Place
    """What the branch gives, as whole tokens or a whole map, before LayerScale and drop path."""
    normalized: Place | None
    """The stream behind the norm that stands before the branch's function; None where the norm comes after it."""


def pre_norm(norm1: str, attention: Place, norm2: str, mlp: Place) -> tuple[Branch, Branch]:
    """The two branches of a block that normalises before attention and before the MLP (ViT, Swin, CLIP)."""
    return (
        Branch("attention", ("", "input"), attention, (norm1, "output")),
        Branch("mlp", (norm2, "input"), mlp, (norm2, "output")),
    )


def post_norm(norm1: str, mlp: str, norm2: str) -> tuple[Branch, Branch]:
    """The two branches of a block that normalises what its branches give (Swin 2); `mlp` takes the stream."""
    return (
        Branch("attention", ("", "input"), (norm1, "output"), None),
        Branch("mlp", (mlp, "input"), (norm2, "output"), None),
    )


def convolutional(norm: str, mlp: str) -> tuple[Branch]:
    """The one branch of a ConvNeXt block: depth-wise convolution, norm and MLP."""
    return (Branch("mlp", ("", "input"), (mlp, "output"), (norm, "output")),)


def around(
    branches: Sequence[Branch],
    prompts: bool,
    port: Callable[[Place], Port],
    site: Callable[[Kind, Position, Port, tuple[Port, ...]], Site],
) -> Iterator[Site]:
    """The sites around a block's branches.

    Args:
        branches: in the order in which the stream passes them.
        prompts: the block takes a sequence of any length in which every token sees every other.
        port: makes a port in the model of a place in the block.
        site: makes a site of this block of kind, position, and the ports it reads and adds to.
    """
    whole = port(("", "output"))
    starts = [port(branch.entry) for branch in branches]
    # what is added to the stream before a branch goes into the branch and past it, to the end of the block
    changes = [(start,) if number == 0 else (start, whole) for number, start in enumerate(starts)]
    starts.append(whole)
    changes.append((whole,))
    for number, branch in enumerate(branches):
        result = port(branch.result)
        yield site(branch.kind, "before", starts[number], changes[number])
        yield site(branch.kind, "after", starts[number + 1], changes[number + 1])
        yield site(branch.kind, "branch", result, (result,))
        yield site(branch.kind, "parallel", starts[number], changes[number + 1])
        if branch.normalized is not None:
            yield site(branch.kind, "parallel_normalized", port(branch.normalized), (result,))
    if prompts:
        yield site("block", "prompt", port(("", "input")), (whole,))
