"""The sites of one block of a Transformer or ConvNeXt."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType

from torch import nn

from tether.models.branches import Branch, Place, around
from tether.models.site import NORMS, Kind, Layout, Port, Position, Site, Tower

NOT_TOKENS = re.compile(
    r"(^|\.)(cpb_mlp|continuous_position_bias_mlp|q_norm|k_norm|ln_q|ln_k|shortcut)(\.|$)"
)  # position biases, per-head norms


def block_sites(
    block: nn.Module,
    path: str,
    *,
    tower: Tower,
    depth: int,
    width: int,
    tokens: Layout,
    prefix_tokens: int,
    attention: tuple[str, str] | None,
    mlp: str | None,
    windows: bool = False,
    layouts: Mapping[str, Layout] = MappingProxyType({}),
    uncalled: Collection[str] = (),
    grid: tuple[int, int] | None = None,
    branches: Sequence[Branch] = (),
    prompts: bool = False,
) -> Iterator[Site]:
    """All sites of one block.

    Args:
        block: the block itself.
        path: its path in the model.
        attention: relative to the block, the module whose output is the attention's, and the linear that
            produces it. Where they differ the linear is read by its owner and never called.
        mlp: relative to the block, the MLP's second linear.
        windows: the attention works on batch × windows of tokens.
        layouts: layout of parts of the block, by relative path, where it is not `tokens`.
        uncalled: further linears, by relative path, that their owner reads without calling them.
        grid: rows and columns of its patches where they are fixed.
        branches: its residual branches, in order; none where they are not known.
        prompts: it takes a sequence of any length in which every token sees every other.
    """

    def site(relative: str, kind: Kind, width: int, linear: str | None = None, fused: bool = False) -> Site:
        full = f"{path}.{relative}" if relative else path
        in_window = windows and attention is not None and _inside(relative, attention[0].split(".")[0])
        layout = "BNC" if in_window else layouts.get(relative, tokens)
        merges = linear is not None and isinstance(block.get_submodule(linear), nn.Linear | nn.Conv2d)
        owner = f"{path}.{linear}" if merges else None
        fixed = None if in_window else grid
        return Site(full, tower, depth, kind, width, layout, prefix_tokens, owner, fused, in_window, fixed)

    def port(place: Place) -> Port:
        relative, side = place
        return Port(f"{path}.{relative}" if relative else path, side, layouts.get(relative, tokens))

    def positioned(kind: Kind, position: Position, reads: Port, writes: tuple[Port, ...]) -> Site:
        return Site(
            path=reads.path,
            tower=tower,
            depth=depth,
            kind=kind,
            width=width,
            tokens=reads.tokens,
            prefix_tokens=prefix_tokens,
            linear=None,
            fused=False,
            grid=grid,
            position=position,
            reads=reads,
            writes=writes,
        )

    fused_owner = None
    if attention is not None:
        output, linear = attention
        fused_owner = output if output != linear else None
        yield site(output, "attention", block.get_submodule(linear).weight.shape[0], linear, output != linear)
    if mlp is not None:
        yield site(mlp, "mlp", block.get_submodule(mlp).weight.shape[0], mlp)
    yield site("", "block", width)
    for relative, module in block.named_modules():
        called = relative not in uncalled and (fused_owner is None or not _inside(relative, fused_owner))
        if not relative or not called or NOT_TOKENS.search(relative):
            continue
        if isinstance(module, nn.Linear):
            yield site(relative, "linear", module.out_features, relative)
        elif NORMS.search(type(module).__name__) and getattr(module, "weight", None) is not None:
            yield site(relative, "norm", module.weight.shape[0])
    if branches:
        yield from around(branches, prompts, port, positioned)


def _inside(path: str, ancestor: str) -> bool:
    return path == ancestor or path.startswith(ancestor + ".")


def is_linear(block: nn.Module, path: str) -> bool:
    """Whether the block has a linear, or a module with a linear's weight, at this relative path."""
    try:
        return getattr(block.get_submodule(path), "weight", None) is not None
    except AttributeError:
        return False
