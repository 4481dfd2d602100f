"""open_clip's text tower, run only as far as the longest text of the batch goes."""

import torch
from open_clip.model import CLIP
from open_clip.transformer import TextTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tether.models.text import end_positions, truncate


def text_features(module: nn.Module, tokens: Tensor, multiple: int) -> Tensor:
    """`module.encode_text(tokens)`, with less work where less gives the same."""
    device = next(module.parameters()).device
    tower = text_tower(module)
    if tower is None or not ends_matter_only(tower):
        return module.encode_text(tokens.to(device, non_blocking=True))
    ends = end_positions(tokens, end_id(tower))
    tokens = truncate(tokens, ends, multiple).to(device, non_blocking=True)
    return _encode(tower, tokens, ends.to(device, non_blocking=True))


def text_tower(module: nn.Module) -> nn.Module | None:
    """The module that owns the text Transformer (in `CLIP` the model itself), if it is open_clip's."""
    if isinstance(module, CLIP):
        return module
    tower = getattr(module, "text", None)
    return tower if isinstance(tower, TextTransformer) else None


def pool_type(tower: nn.Module) -> str:
    return tower.text_pool_type if isinstance(tower, CLIP) else tower.pool_type


def end_id(tower: nn.Module) -> int | None:
    """Id of the token the tower pools at; None if it is each row's largest id."""
    if pool_type(tower) == "argmax":
        return None
    return tower.text_eos_id if isinstance(tower, CLIP) else tower.eos_id


def ends_matter_only(tower: nn.Module) -> bool:
    """Whether what comes after the end of the text cannot matter: causal attention, pooled at that end."""
    return (
        tower.attn_mask is not None
        and pool_type(tower) in ("argmax", "eos")
        and getattr(tower, "cls_emb", None) is None
        and not getattr(tower, "output_tokens", False)
    )


def _encode(tower: nn.Module, tokens: Tensor, ends: Tensor) -> Tensor:
    length = tokens.shape[1]
    dtype = tower.transformer.get_cast_dtype()
    x = tower.token_embedding(tokens).to(dtype) + tower.positional_embedding[:length].to(dtype)
    x = tower.ln_final(_at_ends(tower.transformer, x, tower.attn_mask[:length, :length], ends))
    projection = tower.text_projection
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Linear) else x @ projection


def _at_ends(transformer: nn.Module, x: Tensor, mask: Tensor, ends: Tensor) -> Tensor:
    """The Transformer's output at the end-of-text token of each row."""
    *blocks, last = transformer.resblocks
    if not hasattr(last, "at_ends"):  # see `last_block`
        return transformer(x, attn_mask=mask)[torch.arange(len(x), device=x.device), ends]
    for block in blocks:
        if transformer.grad_checkpointing:
            x = checkpoint(block, x, None, None, mask, use_reentrant=False)
        else:
            x = block(x, attn_mask=mask)
    return last.at_ends(x, ends)
