"""The pre-trained model beside the one in training."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tether.adapters.attached import Attached
from tether.evaluation.classifier import evaluating
from tether.models.last_block import fast_last_block
from tether.models.model import Model


class Reference:
    """The zero-shot model, for use while another is made of it: no gradients, nothing random, nothing changed.

    A method that stands beside the weights (adapters) is switched off for as long as the reference computes;
    that costs no memory. One that moves the weights themselves (full fine-tuning) cannot be: writing the old
    values back would spoil the backward pass of what was computed before. Then the reference is a copy, made
    here, which shares what stays frozen.

        reference = Reference(model, attached)
        before = reference.encode_image(pixels)      # also between the forward and the backward of `model`

    Args:
        attached: what is attached to the model; None where nothing is.

    Raises:
        TetherError: what is attached is merged or detached.
    """

    def __init__(self, model: Model, attached: Attached | None) -> None:
        self.copied = attached is not None and attached.moves_weights
        self._attached = None if self.copied else attached
        self._model = model
        if self.copied:
            with attached.ordinary() as module:
                frozen = {id(tensor): tensor for tensor in module.parameters() if not tensor.requires_grad}
                own = copy.deepcopy(module, frozen).requires_grad_(False).eval()
            self._model = replace(model, module=own)
            fast_last_block(self._model)

    @contextmanager
    def model(self) -> Iterator[Model]:
        """The zero-shot model, in evaluation mode and without gradients, for the duration of a `with` block."""
        switched_off = self._attached.ordinary() if self._attached is not None else nullcontext()
        with switched_off, evaluating(self._model):  # modes are put back before the adapters are
            yield self._model

    def encode_image(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b dim"]:
        """The zero-shot model's features of pictures."""
        with self.model() as model:
            return model.encode_image(pixels)

    def encode_text(
        self, tokens: Int[Tensor, "n length"], *, batch_size: int | None = None
    ) -> Float[Tensor, "n dim"]:
        """The zero-shot model's features of texts, in pieces of `batch_size` where there are many."""
        with self.model() as model:
            pieces = [model.encode_text(piece) for piece in tokens.split(batch_size or len(tokens))]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
