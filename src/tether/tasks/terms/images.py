"""Terms that hold the reading of pictures to that of the pre-trained model."""

import torch
from torch import Tensor, nn

from tether._alpha import tower_of
from tether.data.prompts import fill
from tether.errors import TetherError
from tether.objectives._precision import cosine_logits
from tether.objectives.car_ft import CarFT, CarFTConfig, contexts_of
from tether.objectives.function_space import FunctionSpace, FunctionSpaceConfig
from tether.objectives.lipsum_ft import LipsumFT, LipsumFTConfig, random_texts, text_frame
from tether.objectives.star_ft import StarFTConfig, star_ft
from tether.tasks.terms.step import Shared, Step


class CarFTTerm:
    """Contexts are read by the pre-trained text tower, once before training."""

    separable = True

    def __init__(self, config: CarFTConfig, shared: Shared) -> None:
        shared.require_images("car_ft")
        contexts = config.contexts or contexts_of(shared.context.templates)
        self._term = CarFT(shared.features(contexts), shared.scale)

    def __call__(self, step: Step) -> Tensor:
        return self._term(step.given.image, step.reference_image)


class LipsumFTTerm:
    """New random texts in every step, read by the pre-trained text tower."""

    separable = True

    def __init__(self, config: LipsumFTConfig, shared: Shared) -> None:
        shared.require_images("lipsum_ft")
        self._config, self._term = config, LipsumFT(shared.scale)
        self._reference = shared.reference
        model = shared.context.model
        self._frame = text_frame(model.tokenize, _words(model.module))
        self._draw(torch.Generator())  # refuses what does not fit before training

    def __call__(self, step: Step) -> Tensor:
        tokens = self._draw(step.generator("lipsum_ft"))
        texts = self._reference.encode_text(tokens)
        return self._term(step.given.image, step.reference_image, texts)

    def _draw(self, generator: torch.Generator) -> Tensor:
        return random_texts(self._config, generator, **self._frame._asdict())


class StarFTTerm:
    """For each picture a prompt of its class with a background drawn per step; each distinct one read once.

    The pre-trained features of all classes × backgrounds are computed once before training. With several
    processes each compares its own pictures with its own prompts.
    """

    separable = False

    def __init__(self, config: StarFTConfig, shared: Shared) -> None:
        shared.require_images("star_ft")
        context = shared.context
        self._config, self._epochs = config, -(-context.steps // context.steps_per_epoch)
        if config.fade and self._epochs == 1:
            raise TetherError(
                "star_ft fades to weight 0 in the last epoch, and this training has only one. Train for more, "
                "or set its option fade to false."
            )
        prompts = [text for row in fill(config.backgrounds, context.class_names) for text in row]
        self._tokens = context.model.tokenize(prompts)
        self._before = shared.reference.encode_text(self._tokens, batch_size=256)
        self._text_moves = context.head is None and shared.moves("text")
        self._first_key = len(context.class_names) * len(context.templates)  # after the batch's own prompts

    def __call__(self, step: Step) -> Tensor:
        given, count = step.given, len(self._config.backgrounds)
        share = self._config.fading(step.epoch, self._epochs)
        if share <= 0:
            return given.image.new_zeros(())
        labels = given.labels.cpu()
        chosen = (labels * count + step.draw("star_ft", count)).unique()
        before = self._before[chosen.to(self._before.device)]
        now = step.encode_text(self._tokens[chosen], self._first_key + chosen) if self._text_moves else before
        same_class = labels[:, None] == chosen // count
        term = star_ft(
            cosine_logits(given.image, now, given.scale),
            cosine_logits(step.reference_image, before, step.shared.scale),
            same_class.to(given.image.device),
        )
        return share * term


class FunctionSpaceTerm:
    """Class logits on simulated shifts of the batch.

    Pictures are classified with the head where there is one, else both models' with the pre-trained class
    embeddings: then the term holds the image tower alone, and needs no text in a step. Shifts are drawn for the
    batch as a whole.
    """

    separable = False

    def __init__(self, config: FunctionSpaceConfig, shared: Shared) -> None:
        if shared.context.head is None:
            shared.require_images("function_space")
        self._shared, reference, zero_shot = shared, shared.reference, shared.zero_shot

        def pretrained(pixels: Tensor) -> Tensor:
            return cosine_logits(reference.encode_image(pixels), zero_shot, shared.scale)

        self._term = FunctionSpace(pretrained, config)

    def __call__(self, step: Step) -> Tensor:
        given, classes = step.given, self._shared.classes

        def model(pixels: Tensor) -> Tensor:
            return cosine_logits(self._shared.context.model.encode_image(pixels), classes, given.scale)

        logits = cosine_logits(given.image, classes, given.scale)
        return self._term(model, given.pixels, logits, step.generator("function_space"))


def _words(module: nn.Module) -> int:
    """Rows of the text tower's embedding table.

    Raises:
        TetherError: there is none.
    """
    tables = [
        part.num_embeddings
        for path, part in module.named_modules()
        if isinstance(part, nn.Embedding) and tower_of(path) == "text"
    ]
    if not tables:
        raise TetherError(f"lipsum_ft finds no token embedding in the text tower of {type(module).__name__}.")
    return max(tables)
