"""Run the last block only for the token that is read: exact, and most of one block's work saved.

A tower that pools one token reads nothing else of its last block. That token's query, output projection and
MLP are enough; keys and values still come from all tokens. Adapters in the block simply see one token.

A block's class is swapped for a subclass with another `forward`, and back. Its modules, parameters and paths
stay where they are, so adapters may be attached before, after or in between; a block in which something is attached
that needs every token of it, and says so by an attribute `needs_every_token`, is left as it is. A fused attention is
then called with one query and all keys: `attn(query, keys, values, need_weights=False)`, for text also with a
`key_padding_mask`.
"""

from types import TracebackType

import torch
from jaxtyping import Float, Int
from open_clip.transformer import CustomResidualAttentionBlock, ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from tether.models.model import Model
from tether.models.open_clip_text import ends_matter_only, text_tower


class ClassTokenBlock(ResidualAttentionBlock):
    """open_clip's block, for token 0 alone."""

    def forward(
        self,
        q_x: Float[Tensor, "b n dim"],
        k_x: None = None,
        v_x: None = None,
        attn_mask: Tensor | None = None,
    ) -> Float[Tensor, "b 1 dim"]:
        keys = self.ln_1(q_x)
        attended = self.attn(keys[:, :1], keys, keys, need_weights=False, attn_mask=attn_mask)[0]
        x = q_x[:, :1] + self.ls_1(attended)
        return x + self.ls_2(self.mlp(self.ln_2(x)))


class ClassTokenCustomBlock(CustomResidualAttentionBlock):
    """open_clip's block with its own attention class, which takes no separate queries: MLP for token 0."""

    def forward(
        self, x: Float[Tensor, "b n dim"], attn_mask: Tensor | None = None
    ) -> Float[Tensor, "b 1 dim"]:
        attended = self.attn(self.ln_1(x), attn_mask=attn_mask)[:, :1]
        x = x[:, :1] + self.ls_1(self.ln_attn(attended))
        return x + self.ls_2(self.mlp(self.ln_2(x)))


class EndTokenBlock(ResidualAttentionBlock):
    """open_clip's block with its ordinary `forward`, which can also compute the end-of-text tokens alone."""

    def at_ends(self, x: Float[Tensor, "n length dim"], ends: Int[Tensor, " n"]) -> Float[Tensor, "n dim"]:
        """What `forward` under a causal mask gives at position `ends` of each row."""
        rows = torch.arange(len(x), device=x.device)
        keys = self.ln_1(x)
        later = torch.arange(x.shape[1], device=x.device) > ends[:, None]
        query = keys[rows, ends][:, None]
        attended = self.attn(query, keys, keys, need_weights=False, key_padding_mask=later)[0]
        x = x[rows, ends][:, None] + self.ls_1(attended)
        return (x + self.ls_2(self.mlp(self.ln_2(x))))[:, 0]


def fast_last_block(model: Model | nn.Module) -> "FastLastBlock":
    """Make the last block of each tower compute only the token that is pooled, where that is exact.

    It is exact, up to rounding, in the CLIP image towers of open_clip and transformers that pool the class
    token, and in open_clip's causal text towers that pool the end-of-text token (there through
    `Model.encode_text`). Other towers are left as they are. While it is in effect, the image tower's last
    block gives no patch tokens.

        with fast_last_block(model) as fast:
            print(fast.towers)  # ("image", "text")

    Returns:
        A handle, in effect at once: a context manager that ends it, with a method `detach` that does the
        same.
    """
    return FastLastBlock(model.module if isinstance(model, Model) else model)


class FastLastBlock:
    """The blocks that are shortened, see `fast_last_block`; `towers` names the towers they belong to."""

    def __init__(self, module: nn.Module) -> None:
        self._swapped: list[tuple[nn.Module, type[nn.Module]]] = []
        image = any([self._swap(*_image_block(part)) for part in module.modules()])
        text = self._swap(*_text_block(module))
        self.towers: tuple[str, ...] = ("image",) * image + ("text",) * text

    def detach(self) -> None:
        """Give every block its own class back."""
        while self._swapped:
            block, own = self._swapped.pop()
            block.__class__ = own

    def __enter__(self) -> "FastLastBlock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def _swap(self, block: nn.Module | None, classes: dict[type[nn.Module], type[nn.Module]]) -> bool:
        if type(block) not in classes or any(
            getattr(part, "needs_every_token", False) for part in block.modules()
        ):
            return False
        self._swapped.append((block, type(block)))
        block.__class__ = classes[type(block)]
        return True


Swap = tuple[nn.Module | None, dict[type[nn.Module], type[nn.Module]]]
NOTHING: Swap = (None, {})


def _image_block(part: nn.Module) -> Swap:
    """The last block of an image tower that reads nothing but its class token, and what its class becomes."""
    if isinstance(part, VisionTransformer):
        if part.attn_pool is not None or part.pool_type != "tok" or part.output_tokens:
            return NOTHING
        last = part.transformer.resblocks[-1]
        if not getattr(getattr(last, "attn", None), "batch_first", True):
            return NOTHING
        return last, {
            ResidualAttentionBlock: ClassTokenBlock,
            CustomResidualAttentionBlock: ClassTokenCustomBlock,
        }
    if type(part).__name__ == "CLIPVisionModel" and type(part).__module__.startswith("transformers."):
        from tether.models.last_block_transformers import CLASSES

        return part.encoder.layers[-1], CLASSES
    return NOTHING


def _text_block(module: nn.Module) -> Swap:
    """The last block of an open_clip text tower of which only the end-of-text tokens are read."""
    tower = text_tower(module)
    if tower is None or not ends_matter_only(tower) or not tower.transformer.batch_first:
        return NOTHING
    return tower.transformer.resblocks[-1], {ResidualAttentionBlock: EndTokenBlock}
