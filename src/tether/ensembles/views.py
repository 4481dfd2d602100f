"""What a zero-shot and a fine-tuned model say of one batch: two models, or one model with its adapter."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

Encode = Callable[[Tensor], Tensor]
Head = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Views:
    """What both models say about a batch: logits of the same classes, and the tuned model's features."""

    zero_shot: Float[Tensor, "batch classes"]
    tuned: Float[Tensor, "batch classes"]
    features: Float[Tensor, "batch dim"]


def two_models(encoders: tuple[Encode, Encode], heads: tuple[Head, Head]) -> Callable[[Tensor], Views]:
    """Views of pixels by two models; each pair is (zero-shot, tuned), heads take features to logits.

    >>> import torch
    >>> predict = two_models((torch.relu, torch.tanh), (torch.nn.Identity(), torch.nn.Identity()))
    >>> predict(torch.zeros(2, 3)).tuned.shape
    torch.Size([2, 3])
    """

    def predict(pixels: Tensor) -> Views:
        features = encoders[1](pixels)
        return Views(heads[0](encoders[0](pixels)), heads[1](features), features)

    return predict


def base_and_adapter(
    encode: Encode,
    heads: tuple[Head, Head],
    without_adapter: Callable[[], AbstractContextManager[object]],
    *,
    prefix: Encode | None = None,
) -> Callable[[Tensor], Views]:
    """Views of pixels by one model: tuned as it stands, zero-shot inside `without_adapter()`.

    `prefix` is run once for both and must hold nothing of the adapter (the layers below the first adapted
    site); `encode` then takes its output. Without a prefix `encode` takes the pixels.
    """

    def predict(pixels: Tensor) -> Views:
        shared = pixels if prefix is None else prefix(pixels)
        features = encode(shared)
        tuned = heads[1](features)
        with without_adapter():
            zero_shot = heads[0](encode(shared))
        return Views(zero_shot, tuned, features)

    return predict
