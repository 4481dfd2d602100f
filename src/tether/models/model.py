"""A loaded vision-language model: the ordinary module, and what one has to know to feed it."""

import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from tether._files import new_folder, refuse_existing, save_tensors
from tether.errors import TetherError
from tether.models.fingerprint import fingerprint
from tether.models.saving import check_finite


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """What pictures the image tower was trained on.

    Args:
        size: height and width in pixels.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        interpolation: "bicubic", "bilinear" or "nearest".
        resize: "shortest" scales the shorter side to `size` and crops the centre; "squash" scales both sides.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bicubic", "bilinear", "nearest"] = "bicubic"
    resize: Literal["shortest", "squash"] = "shortest"


def channels(value: Any, what: str, *, positive: bool = False) -> tuple[float, float, float]:
    """Three numbers, one per channel, of pixels in [0, 1]; a single one stands for all three.

    Raises:
        TetherError: it is something else, NaN or infinite, or where `positive` is asked for not above 0. The message
            begins with `what`.
    """
    values = list(value) if isinstance(value, list | tuple) else [value] * 3
    numbers = all(isinstance(one, int | float) and math.isfinite(one) for one in values)
    if len(values) != 3 or not numbers or (positive and min(values) <= 0):
        kind = "three numbers greater than 0" if positive else "three numbers"
        raise TetherError(f"{what} should be {kind}, one per channel; found {value!r:.80}.")
    return tuple(map(float, values))


@dataclass
class Model:
    """A contrastive vision-language model around an ordinary open_clip or transformers module.

    Made by `tether.load`; everything that is done to `module` from outside (adapters, merging, compiling its
    blocks) shows in what the model computes.

        model = tether.load("builtin")
        image = model.encode_image(pixels)                       # [b, dim]
        text = model.encode_text(model.tokenize(["a cat"]))      # [1, dim]
        similarity = image @ text.T                              # cosines
    """

    module: nn.Module
    source: str
    family: Literal["open_clip", "transformers"]
    image: ImageSpec
    context_length: int
    activation: str
    """Non-linearities: "quick_gelu", or "image: gelu, text: quick_gelu" where the towers differ."""
    tokenizer: Callable[[list[str]], Tensor] = field(repr=False)
    image_features: Callable[[nn.Module, Tensor], Tensor] = field(repr=False)
    text_features: Callable[[nn.Module, Tensor, int], Tensor] = field(repr=False)
    describe: Callable[[Path], None] | None = field(default=None, repr=False)
    """Writes into a folder what its library reads beside the weights; None where the model was made in memory."""

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype

    @property
    def logit_scale(self) -> float:
        """Factor of the cosine in the logits (1 / temperature)."""
        return float(self.module.logit_scale.detach().float().exp())

    @property
    def logit_bias(self) -> float | None:
        """What a sigmoid loss adds to the logits (SigLIP); None for a softmax model."""
        bias = getattr(self.module, "logit_bias", None)
        return None if bias is None else float(bias.detach())

    def encode_image(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b dim"]:
        """Image features of length 1, in fp32.

        Args:
            pixels: normalised with the mean and standard deviation of `image`, of exactly its size.

        Raises:
            TetherError: the pictures are of another size.
        """
        size = self.image.size
        if pixels.shape[-2:] != (size, size):
            raise TetherError(
                f"{self.source} takes pictures of {size} × {size} pixels, but these have {pixels.shape[-2]} "
                f"× {pixels.shape[-1]} (height × width). Resize them; model.image says how."
            )
        features = self.image_features(self.module, pixels.to(self.device, self.dtype))
        return F.normalize(features.float(), dim=-1)

    def encode_text(self, tokens: Int[Tensor, "n length"], *, multiple: int = 1) -> Float[Tensor, "n dim"]:
        """Text features of length 1, in fp32.

        Where the tower is causal and pools at the end-of-text token, work stops at the longest text of the
        batch. To find its length without stalling a GPU, pass the tokens as they come from `tokenize`, on the
        CPU.

        Args:
            tokens: ids from `tokenize`; rows may be cut off after their longest text where that is exact.
            multiple: round the length worked on up to a multiple of this, for a compiled model.

        Raises:
            TetherError: the rows are longer than the context length.
        """
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
            TetherError: `texts` is a single string or holds something else than strings.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TetherError(f"tokenize takes a list of strings, not {type(texts).__name__} {texts!r:.60}.")
        if not texts:
            return torch.empty(0, self.context_length, dtype=torch.long)
        return self.tokenizer(list(texts)).long()

    def save(self, folder: str | Path) -> None:
        """Write the model, with its weights as they are now, as a folder of its library.

        Args:
            folder: new; nothing is overwritten.

        Raises:
            TetherError: there is something already, the disk is full, the model was made in memory, or a weight is
                NaN or infinite.
        """
        refuse_existing(Path(folder))
        with new_folder(Path(folder)) as new:
            self.save_into(new)

    def save_into(self, folder: Path) -> None:
        """`save` into an empty folder that is there already, such as one that more is written into.

        Raises:
            TetherError: the model was made in memory, so nothing says how to describe it; or a weight is NaN or
                infinite.
            OSError: a file cannot be written.
        """
        if self.describe is None:
            raise TetherError(
                f"{self.source} was made in memory and not loaded, so it cannot be written as a folder."
            )
        check_finite(self.module)
        self.describe(folder)
        if self.family == "transformers":
            self.module.save_pretrained(folder)
        else:
            save_tensors(folder / "open_clip_model.safetensors", self.module.state_dict())

    def fingerprint(self, *, without: Collection[str] = ()) -> str:
        """SHA-256 of the weights as they are now, of activation, image specification and context length.

        Args:
            without: names of the module's state dict that are left out.
        """
        description = [self.family, self.activation, self.context_length, asdict(self.image)]
        return fingerprint(self.module, json.dumps(description), without=without)

    def to(self, device: torch.device | str) -> "Model":
        """Move the module."""
        self.module.to(device)
        return self

    def train(self, mode: bool = True) -> "Model":
        """Set the module's training mode."""
        self.module.train(mode)
        return self

    def eval(self) -> "Model":
        """Set the module's evaluation mode."""
        return self.train(False)
