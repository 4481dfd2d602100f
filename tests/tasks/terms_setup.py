"""A tiny model with something attached that has moved a little, and steps of training it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tether._alpha import tower_of
from tether.adapters import Attached, BiasOnlyConfig, FullConfig, RAdapterConfig, attach
from tether.data.prompts import fill
from tether.evaluation import class_embeddings
from tether.models import Model, load
from tether.models.site import Select
from tether.objectives import (
    CarFTConfig,
    CaRotConfig,
    FunctionSpaceConfig,
    L2SPPenaltyConfig,
    LipsumFTConfig,
    LMixConfig,
    M2MixConfig,
    M3MixConfig,
    StarFTConfig,
    VLMixConfig,
    VMixConfig,
)
from tether.tasks.terms import StepInput, TermContext, Terms, make_terms

NAMES = ("circle", "square", "cross")
TEMPLATES = ("a {}", "a drawing of a {}", "the outline of a {}")
LABELS = torch.tensor([0, 1, 2, 0, 1])
PICKED = torch.tensor([0, 1, 2, 0, 0])  # two pictures have the same prompt
ADAPTERS = {
    "r_adapter": RAdapterConfig(drop=0.3),
    "r_adapter low rank": RAdapterConfig(rank=2, drop=0.3),
    "r_adapter of pictures": RAdapterConfig(select=Select(tower="image")),
    "full": FullConfig(),
    "bias_only": BiasOnlyConfig(),
    "frozen": None,
}

IMAGE_TERMS = [CarFTConfig(), LipsumFTConfig(texts=7, length=3), StarFTConfig(), FunctionSpaceConfig()]
MIXES = [M2MixConfig(), VMixConfig(), LMixConfig(), VLMixConfig(), M3MixConfig()]
PAIR_TERMS = [*MIXES, CaRotConfig(every=1)]
ALL = [*IMAGE_TERMS, *PAIR_TERMS, L2SPPenaltyConfig()]
METHODS = (
    "car_ft lipsum_ft star_ft function_space m2_mix v_mix l_mix vl_mix m3_mix carot l2_sp_penalty".split()
)
CASES = [
    (config, adapter, head)
    for config in ALL
    for adapter in ("r_adapter", "full")
    for head in (False, True)
    if not head or config not in PAIR_TERMS
]


@dataclass
class Run:
    """What a task holds: a model, what is attached, what is trained, a head with cross-entropy."""

    source: Path
    adapter: str = "r_adapter"
    cross_entropy: bool = False
    seed: int = 0
    steps: int = 12
    model: Model = field(init=False)
    attached: Attached | None = field(init=False)
    head: nn.Parameter | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.model = load(str(self.source))
        self.model.module.requires_grad_(False)
        self.zero_shot = class_embeddings(self.model, NAMES, TEMPLATES)
        config = ADAPTERS[self.adapter]
        self.attached = None if config is None else attach(self.model, config, seed=3)
        self.parameters = dict(self.attached.named_parameters()) if self.attached else {}
        if self.cross_entropy:
            self.head = nn.Parameter(self.zero_shot.clone())
            self.parameters = {n: p for n, p in self.parameters.items() if tower_of(n) == "image"}
            self.parameters["head.weight"] = self.head

    def terms(self, *configs: Any) -> Terms:
        context = TermContext(
            model=self.model,
            attached=self.attached,
            parameters=self.parameters,
            class_names=NAMES,
            templates=TEMPLATES,
            seed=self.seed,
            steps=self.steps,
            steps_per_epoch=4,
            head=self.head,
            zero_shot=None if self.cross_entropy else self.zero_shot,  # given, or found out
        )
        return make_terms(configs, context)

    @torch.no_grad()
    def move(self) -> "Run":
        """Away from the start, further in what starts at 0."""
        generator = torch.Generator().manual_seed(5)
        for parameter in self.parameters.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        return self

    def forward(self, step: int) -> StepInput:
        """What a task has computed when it asks for the terms."""
        pixels = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(100 + step))
        index = torch.arange(5) + 5 * step
        prompts = LABELS * len(TEMPLATES) + PICKED
        distinct, inverse = prompts.unique(return_inverse=True)
        if self.attached:
            self.attached.train_mode()
            self.attached.begin_step(step, index, None if self.cross_entropy else distinct)
        image = self.model.encode_image(pixels)
        common = {"step": step, "pixels": pixels, "labels": LABELS, "index": index, "image": image}
        if self.cross_entropy:
            return StepInput(**common, scale=self.model.logit_scale)
        every = [text for row in fill(TEMPLATES, NAMES) for text in row]
        tokens = self.model.tokenize(every)[distinct]
        text = self.model.encode_text(tokens)
        return StepInput(**common, scale=self.model.logit_scale, text=text, tokens=tokens, text_index=inverse)

    def gradients(self) -> dict[str, Tensor]:
        """Gradients of what is trained; nothing else may have any."""
        trained = {id(parameter) for parameter in self.parameters.values()}
        for name, parameter in self.model.module.named_parameters():
            assert parameter.grad is None or id(parameter) in trained, name
        return {n: p.grad.clone() for n, p in self.parameters.items() if p.grad is not None}


def logits(image: Tensor, rows: Tensor, scale: float) -> Tensor:
    return scale * image @ rows.T
