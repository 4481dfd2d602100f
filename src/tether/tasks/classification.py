"""Robust fine-tuning for classification: train on one domain, choose alpha honestly, judge on every domain.

`run` is the whole job: data → adapter → training → alpha from validation and simulated shifts → test → files.
"""

import json
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import Optimizer

from tether._alpha import TOWERS, Alpha, alpha_of, tower_of
from tether._distributed import from_main, is_main
from tether._files import read_json, write_json
from tether.adapters import Attached, attach
from tether.adapters.files import save_adapter
from tether.config import plain
from tether.data import ImageDataset, load_benchmark, simulated_shifts, test_transform, train_transform
from tether.data.prompts import fill
from tether.data.records import Benchmark
from tether.ensembles.accumulation import Accumulation
from tether.errors import TetherError
from tether.evaluation import Classifier, Sweep, alpha_sweep, class_embeddings
from tether.evaluation.alpha import choose_alpha
from tether.models import Model, load
from tether.models.last_block import fast_last_block
from tether.objectives.cross_entropy import cross_entropy
from tether.objectives.info_nce import InfoNCE
from tether.objectives.mpm_nce import MPMNCE, MPMNCEConfig
from tether.optimizers.from_config import create
from tether.optimizers.schedule import Schedule
from tether.optimizers.tpgm import TPGM
from tether.recipe import CrossEntropyConfig, FrozenConfig, Recipe, to_plain
from tether.tasks.ensembling import Ensemble, Pair, combine, needs_validation
from tether.tasks.outcome import (
    ADAPTER,
    HEAD_FILE,
    RESULT,
    SCORES,
    TIME,
    Outcome,
    digests,
    head_at,
    is_finished,
    read_outcome,
    save_head,
    save_sweep,
)
from tether.tasks.probe import probed_head
from tether.tasks.terms import Terms, make_terms
from tether.tasks.terms.step import StepInput, TermContext
from tether.training import RunDirectory, fit
from tether.training.checkpoint import latest_checkpoint

HEAD = "head.weight"
AFTER_TRAINING = ("name", "alpha", "ensemble", "search")
PROBE = "probe.safetensors"


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
        self.model, self._attached, self._objective = model, attached, recipe.objective
        self.separable = isinstance(recipe.objective, CrossEntropyConfig)
        self._scale = model.logit_scale
        self._templates = len(benchmark.templates)
        prompts = fill(benchmark.templates, benchmark.class_names)
        self._tokens = torch.stack([model.tokenize(row) for row in prompts])
        self.head: nn.Parameter | None = None
        self._terms: Terms | None = None
        if self.separable:
            self.head = nn.Parameter(zero_shot.clone())
        elif isinstance(recipe.objective, MPMNCEConfig):
            self._loss = MPMNCE(recipe.objective)
        else:
            info_nce = InfoNCE()
            self._loss = lambda image, text, labels, scale, index: info_nce(image, text, scale, index=index)

    def add(self, terms: Terms) -> None:
        """Have regularizers added to the loss of every step."""
        self._terms = terms

    def named_parameters(self) -> dict[str, nn.Parameter]:
        parameters = dict(self._attached.named_parameters()) if self._attached else {}
        if self.separable:  # the text tower plays no part
            parameters = {name: p for name, p in parameters.items() if tower_of(name) == "image"}
            parameters[HEAD] = self.head
        return parameters

    def begin_step(self, step: int, batch: Mapping[str, Any]) -> None:
        if self._attached:
            self._attached.train_mode()
            keys = None if self.separable else self._texts(batch).unique()
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
            scale=self._scale,
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
            loss = cross_entropy(image, self.head, labels, self._scale, smoothing=self._objective.smoothing)
            accuracy = (image @ self.head.T).argmax(1).eq(labels).float().mean()
            return loss, {"accuracy": accuracy}, {"image": image}
        distinct, inverse = self._texts(batch).unique(return_inverse=True)
        rows = self._tokens.flatten(0, 1)[distinct]
        text = self.model.encode_text(rows)
        inverse = inverse.to(image.device)
        loss = self._loss(image, text, labels, self._scale, index=inverse)
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


def run(
    recipe: Recipe,
    root: Path = Path("runs"),
    *,
    resume: Path | None = None,
    trained: Path | None = None,
    device: torch.device | str = "cpu",
    started: Callable[[Path], None] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    show_progress: bool = True,
    test: bool = True,
) -> Outcome:
    """Train as the recipe says, choose alpha, evaluate every test split, and keep it all in a run directory.

    A run that is finished is only read. Under `torchrun` every process calls this and gets the same outcome.

    Args:
        root: where the run gets its own directory.
        resume: a run of the same recipe that was stopped or killed; it goes on from its last checkpoint.
        trained: a run that differs from this one only in what comes after training; its weights are taken
            instead of training the same ones again.
        device: where the model computes.
        started: told the run's directory before training begins.
        progress: told what is being evaluated, and how far it is.
        test: whether the test splits are looked at; a search for settings must not.

    Raises:
        TetherError: the recipe does not fit the data or model, or anything the parts raise.
    """
    model = load(recipe.model, device=device)
    benchmark = load_benchmark(recipe.data)
    if not len(benchmark.train):
        raise TetherError(f"{benchmark.name} has no training pictures; it can only be evaluated.")
    if recipe.alpha.value == "auto" and not len(benchmark.validation):
        raise TetherError(
            "alpha.value=auto needs validation pictures; this data set has none. Give a number."
        )
    if recipe.ensemble and needs_validation(recipe.ensemble) and not len(benchmark.validation):
        raise TetherError("This ensemble is fitted on validation pictures; this data set has none.")
    directory = RunDirectory.open(resume) if resume else RunDirectory.create(root, recipe.name)
    with directory as kept:
        may_change = [f"training.{name}" for name in type(recipe.training).MAY_CHANGE]
        kept.record("config", to_plain(recipe), may_change=may_change)
        kept.record("splits", digests(benchmark))
        if trained:
            from_main(lambda: _take_over(trained, kept, recipe))
        if started and is_main():
            started(kept.path)
        if not from_main(lambda: is_finished(kept.path, test)):
            _run(recipe, model, benchmark, kept, progress if is_main() else None, show_progress, test)
        return read_outcome(kept.path, recipe, benchmark)


def _run(
    recipe: Recipe,
    model: Model,
    benchmark: Benchmark,
    kept: RunDirectory,
    progress: Callable[[str, int, int], None] | None,
    show_progress: bool,
    test: bool,
) -> None:
    torch.manual_seed(recipe.training.seed)
    frozen = isinstance(recipe.adapter, FrozenConfig)
    zero_shot = class_embeddings(model, benchmark.class_names, benchmark.templates)
    model.module.requires_grad_(False)
    attached = None if frozen else attach(model, recipe.adapter, seed=recipe.training.seed)
    task = Classification(model, attached, recipe, benchmark, zero_shot)
    final = _train(task, attached, zero_shot, recipe, benchmark, kept, show_progress)
    head = final.get(HEAD)
    state = {name: tensor for name, tensor in final.items() if name != HEAD}
    delta: dict[str, Tensor] = {}
    if attached:
        attached.eval_mode()
        state = {**attached.state_dict(), **state}  # a tower that played no part is as it was
        delta = attached.delta(state)

    def classifier(alpha: float) -> Classifier:
        if head is not None:
            return Classifier(weight=head_at(head.detach(), zero_shot, alpha), scale=model.logit_scale)
        weight = class_embeddings(model, benchmark.class_names, benchmark.templates)
        return Classifier(weight=weight, scale=model.logit_scale)

    with attached.ordinary() if attached else nullcontext():
        alpha, reason, validation, tested, ensemble = _judge(
            recipe, benchmark, model, delta, classifier, test, progress
        )
    results = {
        "alpha": plain(alpha),
        "alpha_reason": reason,
        "test": {
            json.dumps(plain(alpha)): {name: scores.numbers() for name, scores in by_split.items()}
            for alpha, by_split in zip(tested.alphas, tested.scores, strict=True)
        },
        "validation": validation,
        "trained_parameters": sum(parameter.numel() for parameter in final.values()),
        "peak_memory_bytes": max(
            read_json(kept.path / TIME)["peak_memory_bytes"], _peak_memory(model.device)
        ),
    }

    def keep() -> None:
        if head is not None:
            save_head(kept.path / HEAD_FILE, head, zero_shot)
        if attached:
            shutil.rmtree(kept.path / ADAPTER, ignore_errors=True)  # of a part that was killed while it saved
            use_at = 1.0 if ensemble else alpha  # an ensemble combines the two ends itself
            extra = {"head": head is not None}
            save_adapter(kept.path / ADAPTER, attached, state=state, alpha=use_at, extra=extra)
        paths = [kept.path / HEAD_FILE, kept.path / ADAPTER]
        if ensemble:
            with attached.ordinary() if attached else nullcontext():
                paths += ensemble.save(
                    kept.path, benchmark.class_names, adapter=ADAPTER if attached else None
                )
        save_sweep(kept.path / SCORES, tested)
        files = {file for path in paths for file in (path, *path.rglob("*")) if file.is_file()}
        results["file_bytes"] = sum(file.stat().st_size for file in files)
        write_json(kept.path / RESULT, results)  # last: now the run is finished

    from_main(keep)
    if attached:
        attached.detach()


def _train(
    task: Classification,
    attached: Attached | None,
    zero_shot: Tensor,
    recipe: Recipe,
    benchmark: Benchmark,
    kept: RunDirectory,
    show_progress: bool,
) -> dict[str, Tensor]:
    """The trained values by name, accumulated where the recipe says so."""
    model, seed = task.model, recipe.training.seed
    augmentation = train_transform(model.image, **asdict(recipe.augmentation))
    data = ImageDataset(benchmark.train, augmentation, seed=seed, cache_bytes=2**29)
    if recipe.probe:
        options = {"smoothing": recipe.objective.smoothing, "seed": seed, "show_progress": show_progress}
        task.head.data = probed_head(
            kept.path / PROBE, recipe.probe, model, data, task.head.detach(), **options
        )
    parameters = task.named_parameters()
    optimizer = _optimizer(recipe, parameters)
    held_out = None
    if isinstance(optimizer, TPGM):
        held_out = ImageDataset(benchmark.validation, test_transform(model.image), seed=seed)
    steps = recipe.training.total_steps(len(data))
    context = TermContext(
        model=model,
        attached=attached,
        parameters=parameters,
        class_names=benchmark.class_names,
        templates=benchmark.templates,
        seed=seed,
        steps=steps,
        steps_per_epoch=recipe.training.steps_per_epoch(len(data)),
        head=task.head,
        zero_shot=zero_shot,
    )
    task.add(make_terms(recipe.regularizers, context))
    accumulation = Accumulation(parameters, **asdict(recipe.accumulation)) if recipe.accumulation else None
    with _measured(kept, model.device), fast_last_block(model):
        fit(
            task,
            data,
            optimizer,
            recipe.training,
            schedule=Schedule.of(optimizer, recipe.schedule, steps),
            accumulation=accumulation,
            held_out=held_out,
            radii=recipe.radii,
            run=kept,
            show_progress=show_progress,
        )
    return accumulation.average() if accumulation else task.trained()


Judgement = tuple[Alpha, str, list[dict[str, Any]], Sweep, Ensemble | None]
"""Alpha, why it was chosen, from what, the test scores along alpha, and the fitted ensemble if there is one."""


def _judge(
    recipe: Recipe,
    benchmark: Benchmark,
    model: Model,
    delta: Mapping[str, Tensor],
    classifier: Callable[[float], Classifier],
    test: bool,
    progress: Callable[[str, int, int], None] | None,
) -> Judgement:
    """Along the path of weights from the zero-shot model to the tuned one, or with the recipe's ensemble."""
    if recipe.ensemble:
        pair = Pair.of(model, delta, classifier, progress=progress)
        parts = {"train": benchmark.train, "validation": benchmark.validation}
        ensemble = combine(recipe.ensemble, pair, **parts, seed=recipe.training.seed)
        validation = [plain(point) for point in ensemble.choice.curve] if ensemble.choice else []
        tested = ensemble.sweep(benchmark.tests) if test else Sweep((), ())
        return ensemble.alpha, ensemble.reason, validation, tested, ensemble

    def sweep(splits: Mapping[str, Any], alphas: list[Alpha]) -> Sweep:
        return alpha_sweep(model, delta, splits, alphas, classifier, progress=progress)

    alpha, reason, validation = _choose(recipe, benchmark, sweep)
    curve = recipe.alpha.grid if recipe.alpha.curve else ()
    alphas = _distinct([0.0, *curve, 1.0, alpha])
    return alpha, reason, validation, sweep(benchmark.tests, alphas) if test else Sweep((), ()), None


def training_part(options: Mapping[str, Any]) -> dict[str, Any]:
    """What of a recipe, as plain data, decides the trained weights."""
    return {name: value for name, value in options.items() if name not in AFTER_TRAINING}


def _take_over(trained: Path, kept: RunDirectory, recipe: Recipe) -> None:
    """Put another run's last checkpoint into this run, so that there is nothing left to train."""
    if latest_checkpoint(kept.checkpoints):
        return
    checkpoint = latest_checkpoint(trained / "checkpoints")
    if checkpoint is None or not (trained / RESULT).is_file():
        raise TetherError(f"{trained} is no finished run with its checkpoint; it cannot be built upon.")
    if training_part(read_json(trained / "config.json")) != training_part(to_plain(recipe)):
        raise TetherError(f"{trained} was trained otherwise than {recipe.name} asks for; train anew.")
    kept.checkpoints.mkdir(exist_ok=True)
    temporary = kept.checkpoints / f".{checkpoint.name}.tmp"
    shutil.copytree(checkpoint, temporary)
    temporary.rename(kept.checkpoints / checkpoint.name)
    shutil.copy2(trained / TIME, kept.path)
    if (trained / PROBE).is_file():
        shutil.copy2(trained / PROBE, kept.path)


@contextmanager
def _measured(kept: RunDirectory, device: torch.device) -> Iterator[None]:
    """Add the time that is spent inside to the run's, also when it is stopped, and keep the peak of its memory."""
    path, started = kept.path / TIME, time.perf_counter()
    try:
        yield
    finally:
        if is_main():
            before = read_json(path) if path.exists() else {"training_seconds": 0.0, "peak_memory_bytes": 0}
            seconds = before["training_seconds"] + time.perf_counter() - started
            peak = max(before["peak_memory_bytes"], _peak_memory(device))
            write_json(path, {"training_seconds": seconds, "peak_memory_bytes": peak})


def _choose(
    recipe: Recipe, benchmark: Benchmark, sweep: Callable[[Mapping[str, Any], list[Alpha]], Sweep]
) -> tuple[Alpha, str, list[dict[str, Any]]]:
    """The recipe's alpha, or what validation pictures and simulated shifts of them speak for; and why."""
    if recipe.alpha.value != "auto":
        alpha = _simplest(recipe.alpha.value)
        measured = ()
        if len(benchmark.validation):
            swept = sweep({"validation": benchmark.validation}, [alpha])
            measured = choose_alpha(swept, "validation", rule="in distribution").curve
        return alpha, "given in the recipe", [plain(point) for point in measured]
    grid: list[Alpha] = list(recipe.alpha.grid)
    if recipe.alpha.per_tower:
        grid = [dict(zip(TOWERS, (a, b), strict=True)) for a in recipe.alpha.grid for b in recipe.alpha.grid]
    shifts = {} if recipe.alpha.rule == "in distribution" else simulated_shifts(benchmark.validation)
    swept = sweep({"validation": benchmark.validation, **shifts}, grid)
    choice = choose_alpha(swept, "validation", list(shifts), rule=recipe.alpha.rule)
    return _simplest(choice.alpha), choice.reason, [plain(point) for point in choice.curve]


def _optimizer(recipe: Recipe, parameters: Mapping[str, nn.Parameter]) -> Optimizer:
    """The recipe's. A robust one stays near where training began, or near zero for low-rank factors, of which one
    is random at the start."""
    factors = {name: None for name in parameters if name.endswith((".up", ".down"))}
    return create(
        recipe.optimizer,
        parameters,
        head=HEAD if HEAD in parameters else None,
        anchors=factors or "start",
    )


def _simplest(alpha: Alpha) -> Alpha:
    """A number where both towers have the same."""
    towers = {alpha_of(alpha, tower) for tower in TOWERS}
    return towers.pop() if len(towers) == 1 else alpha


def _distinct(alphas: list[Alpha]) -> list[Alpha]:
    return [alpha for place, alpha in enumerate(alphas) if alpha not in alphas[:place]]


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
