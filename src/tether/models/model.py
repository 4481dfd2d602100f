"""A loaded model: a backbone and, where it has one, a text tower."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from tether.errors import TetherError
from tether.models.backbone import Backbone, ImageSpec, channels

__all__ = ["ImageSpec", "Model", "channels"]


@dataclass(kw_only=True)
class Model(Backbone):
    """An image model and, where it has one, the text tower it was trained with.

    Made by `tether.load`; everything that is done to `module` from outside (adapters, merging, compiling its
    blocks) shows in what the model computes.

        model = tether.load("builtin")
        image = model.encode_image(pixels)                       # [b, dim]
        text = model.encode_text(model.tokenize(["a cat"]))      # [1, dim]
        similarity = image @ text.T                              # cosines

        backbone = tether.load("timm:swin_tiny_patch4_window7_224")   # no text tower
        features = backbone.features(pixels)                     # [b, dim]: for a head
    """

    context_length: int | None = None
    tokenizer: Callable[[list[str]], Tensor] | None = field(default=None, repr=False)
    text_features: Callable[[nn.Module, Tensor, int], Tensor] | None = field(default=None, repr=False)

    @property
    def has_text(self) -> bool:
        """Whether there is a text tower."""
        return self.text_features is not None

    @property
    def logit_scale(self) -> float:
        """Factor of the cosine in the logits (1 / temperature).

        Raises:
            TetherError: the model has no text tower.
        """
        self._require_text("its features are not compared with texts")
        return float(self.module.logit_scale.detach().float().exp())

    @property
    def head_scale(self) -> float:
        """Factor of the cosine in the logits of a linear head: the logit scale; √dim without a text tower, where
        features of length 1 then have elements of about 1."""
        return self.logit_scale if self.has_text else self.dim**0.5

    @property
    def logit_bias(self) -> float | None:
        """What a sigmoid loss adds to the logits (SigLIP); None for a softmax model.

        Raises:
            TetherError: the model has no text tower.
        """
        self._require_text("its features are not compared with texts")
        bias = getattr(self.module, "logit_bias", None)
        return None if bias is None else float(bias.detach())

    def encode_image(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b dim"]:
        """Image features of length 1, in fp32.

        Args:
            pixels: normalised with the mean and standard deviation of `image`, of exactly its size.

        Raises:
            TetherError: the pictures are of another size.
        """
        return F.normalize(self.features(pixels), dim=-1)

    def encode_text(self, tokens: Int[Tensor, "n length"], *, multiple: int = 1) -> Float[Tensor, "n dim"]:
        """Text features of length 1, in fp32.

        Where the tower is causal and pools at the end-of-text token, work stops at the longest text of the
        batch. To find its length without stalling a GPU, pass the tokens as they come from `tokenize`, on the
        CPU.

        Args:
            tokens: ids from `tokenize`; rows may be cut off after their longest text where that is exact.
            multiple: round the length worked on up to a multiple of this, for a compiled model.

        Raises:
            TetherError: the rows are longer than the context length, or the model has no text tower.
        """
        self._require_text("it cannot encode texts")
        if not 0 < tokens.shape[1] <= self.context_length:
            raise TetherError(
                f"{self.source} takes 1 to {self.context_length} tokens per text, but these rows have "
                f"{tokens.shape[1]}. Use model.tokenize."
            )
        features = self.text_features(self.module, tokens, multiple)
        return F.normalize(features.float(), dim=-1)

    def tokenize(self, texts: Sequence[str]) -> Int[Tensor, "n context_length"]:
        """Token ids of texts, padded (and cut off, end-of-text token kept) to the context length.

        Raises:
            TetherError: `texts` is a single string or holds something else than strings, or the model has no
                text tower.
        """
        self._require_text("it cannot read texts")
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TetherError(f"tokenize takes a list of strings, not {type(texts).__name__} {texts!r:.60}.")
        if not texts:
            return torch.empty(0, self.context_length, dtype=torch.long)
        return self.tokenizer(list(texts)).long()

    def _description(self) -> list[object]:
        return [self.family, self.activation, self.context_length, self.image.described()]

    def _require_text(self, consequence: str) -> None:
        if not self.has_text:
            raise TetherError(
                f"{self.source} has no text tower, so {consequence}: train a head on its features "
                f"(objective.method=cross_entropy), or load a model with texts such as CLIP or SigLIP."
            )
