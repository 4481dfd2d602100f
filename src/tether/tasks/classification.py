"""What is trained for classification: picture–prompt pairs of a benchmark, or a linear head on pictures."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tether._alpha import tower_of
from tether.adapters import Attached
from tether.data.prompts import fill
from tether.data.records import Benchmark
from tether.models import Model
from tether.recipe import Recipe
from tether.tasks.terms import Terms
from tether.tasks.terms.step import StepInput

HEAD = "head.weight"


class Classification:
    """What `tether.training.fit` trains: picture–prompt pairs of a benchmark, or a linear head on pictures.

    With a contrastive objective each picture gets a random template filled with its class's name; equal
    prompts of a batch are encoded once. With cross-entropy a head, initialised with the zero-shot classifier,
    stands for the text tower, which does not move.

    Args:
        attached: what is attached to the model; None where it is frozen.
        zero_shot: the zero-shot classifier, for the head; a contrastive objective needs none.
    """

    def __init__(
        self,
        model: Model,
        attached: Attached | None,
        recipe: Recipe,
        benchmark: Benchmark,
        zero_shot: Float[Tensor, "classes dim"] | None = None,
    ):
        self.model, self._attached = model, attached
        self._trains_scale = attached is not None and "logit_scale" in attached.named_parameters()
        self._fixed_scale = model.logit_scale
        self._templates = len(benchmark.templates)
        prompts = fill(benchmark.templates, benchmark.class_names)
        self._tokens = torch.stack([model.tokenize(row) for row in prompts])
        self.head: nn.Parameter | None = None
        self._terms: Terms | None = None
        self._loss = recipe.objective.loss()
        if not recipe.objective.pairs:
            self.head = nn.Parameter(zero_shot.clone())

    def add(self, terms: Terms) -> None:
        """Have regularizers added to the loss of every step."""
        self._terms = terms

    @property
    def separable(self) -> bool:
        """Whether the loss is a mean over examples: with a head, and no regularizer on several of them together."""
        return self.head is not None and (self._terms is None or self._terms.separable)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        parameters = dict(self._attached.named_parameters()) if self._attached else {}
        if self.head is not None:  # the text tower plays no part
            parameters = {name: p for name, p in parameters.items() if tower_of(name) == "image"}
            parameters[HEAD] = self.head
        return parameters

    @property
    def scale(self) -> float | Float[Tensor, ""]:
        """Inverse temperature, with its gradient where it is trained."""
        if not self._trains_scale:
            return self._fixed_scale
        return self.model.module.logit_scale.float().exp().reshape(())

    def begin_step(self, step: int, batch: Mapping[str, Any]) -> None:
        if self._attached:
            self._attached.train_mode()
            keys = None if self.head is not None else self._texts(batch).unique()
            self._attached.begin_step(step, batch["index"], keys)

    def loss(self, batch: Mapping[str, Any], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        objective, scalars, features = self._objective_and_features(batch)
        if not self._terms:
            return objective, scalars
        given = StepInput(
            step=step,
            pixels=batch["pixels"],
            labels=batch["label"],
            index=batch["index"],
            scale=self.model.logit_scale if self._trains_scale else self._fixed_scale,
            **features,
        )
        added = self._terms(given)
        return objective + sum(added.values()), {**scalars, "objective": objective.detach(), **added}

    def _objective_and_features(
        self, batch: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """The main objective, scalars to log, and the features it was made of, as regularizers take them."""
        labels = batch["label"]
        image = self.model.encode_image(batch["pixels"])
        if self.head is not None:
            loss = self._loss(image, self.head, labels, self.scale)
            accuracy = (image @ self.head.T).argmax(1).eq(labels).float().mean()
            return loss, {"accuracy": accuracy}, {"image": image}
        distinct, inverse = self._texts(batch).unique(return_inverse=True)
        rows = self._tokens.flatten(0, 1)[distinct]
        text = self.model.encode_text(rows)
        inverse = inverse.to(image.device)
        loss = self._loss(image, text, labels, self.scale, index=inverse)
        return loss, {}, {"image": image, "text": text, "tokens": rows, "text_index": inverse}

    def held_out_loss(self, batch: Mapping[str, Any], step: int) -> Tensor:
        """The objective alone, without any drop: what TPGM learns its radii on."""
        if self._attached:
            self._attached.eval_mode()
        return self._objective_and_features(batch)[0]

    def trained(self) -> dict[str, Tensor]:
        """Values of what is trained."""
        return {name: parameter.detach() for name, parameter in self.named_parameters().items()}

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        return {"trained": self.trained(), "terms": self._terms.state_dict() if self._terms else {}}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        for name, parameter in self.named_parameters().items():
            parameter.copy_(state["trained"][name])
        if self._terms:
            self._terms.load_state_dict(state["terms"])

    def _texts(self, batch: Mapping[str, Any]) -> Int[Tensor, " batch"]:
        """Number of each picture's prompt among all classes × templates."""
        return batch["label"].cpu() * self._templates + batch["text_pick"].cpu() % self._templates
