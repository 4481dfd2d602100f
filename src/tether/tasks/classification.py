"""Robust fine-tuning for classification: train on one domain, choose alpha honestly, judge on every domain.

`run` is the whole job: data → adapter → training → alpha from validation and simulated shifts → test → files.
"""

import json
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tether._alpha import TOWERS, Alpha
from tether._files import write_atomically
from tether.adapters import Attached, attach
from tether.adapters.files import save_adapter
from tether.config import plain
from tether.data import ImageDataset, load_benchmark, simulated_shifts, train_transform
from tether.data.prompts import fill
from tether.data.records import Benchmark
from tether.ensembles.accumulation import Accumulation
from tether.errors import TetherError
from tether.evaluation import Classifier, SplitScores, Sweep, alpha_sweep, class_embeddings
from tether.evaluation.alpha import AlphaChoice, choose_alpha
from tether.models import Model, load, unique_rows
from tether.objectives.cross_entropy import cross_entropy
from tether.objectives.info_nce import InfoNCE
from tether.objectives.mpm_nce import MPMNCE, MPMNCEConfig
from tether.optimizers.schedule import Schedule
from tether.recipe import CrossEntropyConfig, FrozenConfig, Recipe, to_plain
from tether.training import RunDirectory, fit

HEAD = "head.weight"


class Classification:
    """What `tether.training.fit` trains: picture–prompt pairs of one benchmark, or a linear head on the pictures.

    With a contrastive objective each picture gets a random template filled with its class's name; equal prompts of
    a batch are encoded once. With cross-entropy a head, initialised with the zero-shot classifier, stands for the
    text tower, which does not move.
    """

    def __init__(self, model: Model, attached: Attached | None, recipe: Recipe, benchmark: Benchmark):
        self.model, self._attached, self._objective = model, attached, recipe.objective
        self.separable = isinstance(recipe.objective, CrossEntropyConfig)
        self._scale = model.logit_scale
        self._templates = len(benchmark.templates)
        prompts = fill(benchmark.templates, benchmark.class_names)
        self._tokens = torch.stack([model.tokenize(row) for row in prompts])
        self.head: nn.Parameter | None = None
        if self.separable:
            zero_shot = class_embeddings(model, benchmark.class_names, benchmark.templates)
            self.head = nn.Parameter(zero_shot.clone())
        elif isinstance(recipe.objective, MPMNCEConfig):
            self._loss = MPMNCE(recipe.objective)
        else:
            info_nce = InfoNCE()
            self._loss = lambda image, text, labels, scale, index: info_nce(image, text, scale, index=index)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        parameters = dict(self._attached.named_parameters()) if self._attached else {}
        if self.separable:  # the text tower plays no part
            parameters = {name: p for name, p in parameters.items() if self._attached.tower_of(name) == "image"}
            parameters[HEAD] = self.head
        return parameters

    def begin_step(self, step: int, batch: Mapping[str, Any]) -> None:
        if self._attached:
            self._attached.train_mode()
            keys = None if self.separable else self._texts(batch).unique()
            self._attached.begin_step(step, batch["index"], keys)

    def loss(self, batch: Mapping[str, Any], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        labels = batch["label"]
        image = self.model.encode_image(batch["pixels"])
        if self.head is not None:
            loss = cross_entropy(image, self.head, labels, self._scale, smoothing=self._objective.smoothing)
            return loss, {"accuracy": (image @ self.head.T).argmax(1).eq(labels).float().mean()}
        distinct, inverse = self._texts(batch).unique(return_inverse=True)
        rows = self._tokens.flatten(0, 1)[distinct]
        text = self.model.encode_text(rows)
        loss = self._loss(image, text, labels, self._scale, index=inverse.to(image.device))
        return loss, {}

    def state_dict(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.named_parameters().items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, parameter in self.named_parameters().items():
            parameter.copy_(state[name])

    def _texts(self, batch: Mapping[str, Any]) -> Int[Tensor, " batch"]:
        """Number of each picture's prompt among all classes × templates."""
        return batch["label"].cpu() * self._templates + batch["text_pick"].cpu() % self._templates


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run gave: test scores along alpha, which alpha was chosen and why, costs, and where everything lies."""

    recipe: Recipe
    benchmark: Benchmark
    test: Sweep
    alpha: Alpha
    choice: AlphaChoice | None
    trained_parameters: int
    file_bytes: int
    seconds: float
    peak_memory_bytes: int
    run: Path


def run(
    recipe: Recipe,
    root: Path = Path("runs"),
    *,
    resume: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    show_progress: bool = True,
    test: bool = True,
) -> Outcome:
    """Train as the recipe says, choose alpha, evaluate every test split, and keep it all in a run directory.

    Args:
        root: where the run gets its own directory.
        resume: a run of the same recipe that was stopped or killed; it goes on from its last checkpoint.
        progress: told what is being evaluated, and how far it is.
        test: whether the test splits are looked at; a search for settings must not.

    Raises:
        TetherError: the recipe does not fit the data or model, or anything the parts raise.
    """
    model = load(recipe.model)
    benchmark = load_benchmark(recipe.data)
    if not len(benchmark.train):
        raise TetherError(f"{benchmark.name} has no training pictures; it can only be evaluated.")
    directory = RunDirectory.open(resume) if resume else RunDirectory.create(root, recipe.name)
    with directory as kept:
        kept.record("config", to_plain(recipe), may_change=[f"training.{name}" for name in type(recipe.training).MAY_CHANGE])
        kept.record("splits", _digests(benchmark))
        return _run(recipe, model, benchmark, kept, progress, show_progress, test)


def _run(
    recipe: Recipe,
    model: Model,
    benchmark: Benchmark,
    kept: RunDirectory,
    progress: Callable[[str, int, int], None] | None,
    show_progress: bool,
    test: bool,
) -> Outcome:
    torch.manual_seed(recipe.training.seed)
    frozen = isinstance(recipe.adapter, FrozenConfig)
    zero_shot = class_embeddings(model, benchmark.class_names, benchmark.templates)
    model.module.requires_grad_(False)
    attached = None if frozen else attach(model, recipe.adapter, seed=recipe.training.seed)
    task = Classification(model, attached, recipe, benchmark)
    parameters = task.named_parameters()
    optimizer = _optimizer(recipe, parameters)
    augmentation = train_transform(model.image, **plain(recipe.augmentation))
    data = ImageDataset(benchmark.train, augmentation, seed=recipe.training.seed, cache_bytes=2**29)
    steps = recipe.training.total_steps(len(data))
    accumulation = None
    if recipe.accumulation:
        accumulation = Accumulation(
            parameters, momentum=recipe.accumulation.momentum, correction=recipe.accumulation.correction
        )
    started = time.perf_counter()
    fit(
        task,
        data,
        optimizer,
        recipe.training,
        schedule=Schedule.of(optimizer, recipe.schedule, steps),
        accumulation=accumulation,
        run=kept,
        show_progress=show_progress,
    )
    seconds = time.perf_counter() - started
    final = accumulation.average() if accumulation else task.state_dict()
    head = final.get(HEAD)
    state = {name: tensor for name, tensor in final.items() if name != HEAD}
    delta: dict[str, Tensor] = {}
    if attached:
        attached.eval_mode()
        delta = attached.delta(_whole(attached, state))

    def classifier(alpha: float) -> Classifier:
        if head is not None:
            return Classifier(weight=zero_shot + alpha * (head.detach() - zero_shot), scale=model.logit_scale)
        weight = class_embeddings(model, benchmark.class_names, benchmark.templates)
        return Classifier(weight=weight, scale=model.logit_scale)

    def sweep(splits: Mapping[str, Any], alphas: list[Alpha]) -> Sweep:
        return alpha_sweep(model, delta, splits, alphas, classifier, progress=progress)

    with attached.ordinary() if attached else _nothing():
        alpha, choice = _choose(recipe, benchmark, sweep)
        alphas = _distinct([*recipe.alpha.grid, 1.0, alpha]) if test else []
        tested = sweep(benchmark.tests, alphas) if test else Sweep((), ())
    path = kept.path / "adapter"
    if attached and not path.exists():
        save_adapter(path, attached, state=_whole(attached, state), alpha=alpha)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.exists() else 0
    outcome = Outcome(
        recipe=recipe,
        benchmark=benchmark,
        test=tested,
        alpha=alpha,
        choice=choice,
        trained_parameters=sum(parameter.numel() for parameter in parameters.values()),
        file_bytes=size + (0 if head is None else head.numel() * head.element_size()),
        seconds=seconds,
        peak_memory_bytes=_peak_memory(),
        run=kept.path,
    )
    save_sweep(kept.path / "scores.safetensors", tested)
    kept.record("result", summary(outcome), may_change=("seconds", "peak_memory_bytes"))
    if attached:
        attached.detach()
    return outcome


def summary(outcome: Outcome) -> dict[str, Any]:
    """The numbers of a run as JSON can hold them."""
    return {
        "alpha": plain(outcome.alpha),
        "alpha_reason": outcome.choice.reason if outcome.choice else "given in the recipe",
        "test": {
            str(plain(alpha)): {name: scores.numbers() for name, scores in by_split.items()}
            for alpha, by_split in zip(outcome.test.alphas, outcome.test.scores, strict=True)
        },
        "validation": [plain(point) for point in outcome.choice.curve] if outcome.choice else [],
        "trained_parameters": outcome.trained_parameters,
        "file_bytes": outcome.file_bytes,
        "seconds": outcome.seconds,
        "peak_memory_bytes": outcome.peak_memory_bytes,
    }


def save_sweep(path: Path, sweep: Sweep) -> None:
    """Keep the answers to every test picture at every alpha (safetensors), so that tables can be made again."""
    tensors = {
        f"{json.dumps(plain(alpha))}|{name}|{part}": getattr(scores, part).contiguous()
        for alpha, by_split in zip(sweep.alphas, sweep.scores, strict=True)
        for name, scores in by_split.items()
        for part in ("predictions", "confidences", "ranks")
    }
    write_atomically(path, lambda temporary: save_file(tensors, temporary))


def load_sweep(path: Path, benchmark: Benchmark) -> Sweep:
    """What `save_sweep` kept.

    Raises:
        TetherError: the file is missing or not whole, or of other test splits.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise TetherError(f"{path} cannot be read ({error}); run the recipe again.") from error
    by_alpha: dict[str, dict[str, dict[str, Tensor]]] = {}
    for key, tensor in tensors.items():
        alpha, name, part = key.split("|")
        by_alpha.setdefault(alpha, {}).setdefault(name, {})[part] = tensor
    classes = len(benchmark.class_names)
    scores = tuple(
        {name: SplitScores(split=split, classes=classes, **parts[name]) for name, split in benchmark.tests.items()}
        for parts in by_alpha.values()
    )
    return Sweep(tuple(json.loads(alpha) for alpha in by_alpha), scores)


def _choose(recipe: Recipe, benchmark: Benchmark, sweep: Callable) -> tuple[Alpha, AlphaChoice | None]:
    """The recipe's alpha, or the one that validation pictures and simulated shifts of them speak for."""
    if recipe.alpha.value != "auto":
        return recipe.alpha.value, None
    if not len(benchmark.validation):
        raise TetherError("alpha.value=auto needs validation pictures; this data set has none. Give a number.")
    grid: list[Alpha] = list(recipe.alpha.grid)
    if recipe.alpha.per_tower:
        grid = [dict(zip(TOWERS, (a, b), strict=True)) for a in recipe.alpha.grid for b in recipe.alpha.grid]
    shifts = {} if recipe.alpha.rule == "in distribution" else simulated_shifts(benchmark.validation)
    swept = sweep({"validation": benchmark.validation, **shifts}, grid)
    choice = choose_alpha(swept, "validation", list(shifts), rule=recipe.alpha.rule)
    return choice.alpha, choice


def _optimizer(recipe: Recipe, parameters: Mapping[str, nn.Parameter]) -> torch.optim.AdamW:
    """AdamW with decay on matrices only, and the head's own learning rate where it has one."""
    options = recipe.optimizer
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        rate = options.head_lr if name == HEAD and options.head_lr is not None else options.lr
        decay = options.weight_decay if parameter.ndim >= 2 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    listed = [{"params": own, "lr": rate, "weight_decay": decay} for (rate, decay), own in groups.items()]
    return torch.optim.AdamW(listed, lr=options.lr, betas=options.betas)


def _whole(attached: Attached, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state of all the adapter's tensors: what was not trained (a tower that played no part) is as it is."""
    return {**attached.state_dict(), **state}


def _distinct(alphas: list[Alpha]) -> list[Alpha]:
    return [alpha for place, alpha in enumerate(alphas) if alpha not in alphas[:place]]


def _digests(benchmark: Benchmark) -> dict[str, Any]:
    splits = {"train": benchmark.train, "validation": benchmark.validation, **benchmark.tests}
    return {name: {"pictures": len(split), "sha256": split.digest} for name, split in splits.items()}


def _peak_memory() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _nothing():
    from contextlib import nullcontext

    return nullcontext()
