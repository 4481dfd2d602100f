"""The classifier: class names turned into text features, or any linear head on normalised features."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tether.data.prompts import fill, warn_of_same_prompts
from tether.data.records import Split
from tether.errors import TetherError
from tether.evaluation.scores import ClassScorer
from tether.evaluation.scoring import Progress
from tether.models.model import Model


@dataclass(frozen=True, kw_only=True, eq=False)
class Classifier:
    """Logits = scale · features · weightᵀ + bias, for features of length 1."""

    weight: Float[Tensor, "classes dim"]
    bias: Float[Tensor, " classes"] | None = None
    scale: float = 1.0

    def __call__(self, features: Float[Tensor, "b dim"]) -> Float[Tensor, "b classes"]:
        logits = self.scale * (features.float() @ self.weight.to(features.device).float().T)
        return logits if self.bias is None else logits + self.bias.to(features.device).float()

    def scorer(self, split: Split) -> ClassScorer:
        """The rules of a split: its class mask and its groups."""
        return ClassScorer(split, len(self.weight))


def class_embeddings(
    model: Model,
    class_names: Sequence[str],
    templates: Sequence[str],
    *,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> Float[Tensor, "classes dim"]:
    """For each class the mean of the text features of its prompts, scaled to length 1 again.

    Radford et al. 2021, section 3.1.4. Each distinct prompt is encoded once, short ones together. A warning names
    classes that the model cannot tell apart, as their prompts are the same where it stops reading.

    Raises:
        TetherError: no class, or a template without exactly one `{}`.
    """
    if not class_names:
        raise TetherError("There are no class names; a zero-shot classifier needs at least one.")
    classes_of: dict[str, list[int]] = {}
    filled = fill(templates, class_names)
    for label, prompts in enumerate(filled):
        for prompt in prompts:
            classes_of.setdefault(prompt, []).append(label)
    distinct = sorted(classes_of, key=len)
    sums = None
    read: dict[str, bytes] = {}
    with evaluating(model):
        for start in range(0, len(distinct), batch_size):
            prompts = distinct[start : start + batch_size]
            tokens = model.tokenize(prompts)
            read.update(zip(prompts, (row.tobytes() for row in tokens.numpy()), strict=True))
            features = model.encode_text(tokens)
            if sums is None:
                sums = torch.zeros(len(class_names), features.shape[1], device=features.device)
            rows, labels = zip(
                *((row, label) for row, prompt in enumerate(prompts) for label in classes_of[prompt]),
                strict=True,
            )
            index = torch.tensor(labels, device=features.device)
            sums.index_add_(0, index, features[torch.tensor(rows, device=features.device)])
            if progress:
                progress("encoding prompts", start + len(prompts), len(distinct))
    what = [tuple(read[prompt] for prompt in prompts) for prompts in filled]
    warn_of_same_prompts(class_names, what, f"{model.source}, which reads {model.context_length} tokens")
    return torch.nn.functional.normalize(sums, dim=-1)


def zero_shot_classifier(
    model: Model,
    class_names: Sequence[str],
    templates: Sequence[str],
    *,
    progress: Progress | None = None,
) -> Classifier:
    """The classifier made of the model's own text features and logit scale; see `class_embeddings`."""
    weight = class_embeddings(model, class_names, templates, progress=progress)
    return Classifier(weight=weight, scale=model.logit_scale)


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """No gradients, and every module in evaluation mode; each gets its own mode back."""
    modes = [(module, module.training) for module in model.module.modules()]
    model.module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
