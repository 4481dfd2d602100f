"""Robust fine-tuning for classification: train on one domain, choose alpha honestly, judge on every domain.

`run` is the whole job: data → adapter → training → alpha from validation and simulated shifts → test → files.
"""

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from tether._distributed import from_main, is_main
from tether._files import read_json, write_json
from tether._text import quoted
from tether.adapters import Attached, attach
from tether.adapters.files import save_adapter
from tether.config import plain
from tether.data import ImageDataset, load_benchmark, require_readable, test_transform, train_transform
from tether.data.records import Benchmark
from tether.ensembles.accumulation import Accumulation
from tether.errors import TetherError
from tether.evaluation import Classifier, class_embeddings
from tether.evaluation.classifier import Progress
from tether.models import Model, load
from tether.models.last_block import fast_last_block
from tether.models.weight_path import WeightPath
from tether.optimizers.from_config import create
from tether.optimizers.schedule import Schedule
from tether.recipe import Recipe, to_plain
from tether.runs.files import PROBE, measured, peak_memory, take_over
from tether.runs.judge import judge
from tether.runs.outcome import (
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
from tether.runs.predictor import save_ensemble
from tether.tasks.classification import HEAD, Classification
from tether.tasks.probe import probed_head
from tether.tasks.terms import make_terms
from tether.tasks.terms.step import TermContext
from tether.training import RunDirectory, fit


def run(
    recipe: Recipe,
    root: Path = Path("runs"),
    *,
    resume: Path | None = None,
    trained: Path | None = None,
    device: torch.device | str = "cpu",
    started: Callable[[Path], None] | None = None,
    progress: Progress | None = None,
    show_progress: bool = True,
    test: bool = True,
    check_pictures: bool = True,
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
        check_pictures: whether to see first that all pictures can be read; not, where that was seen just now.

    Raises:
        TetherError: the recipe does not fit the data or model, or anything the parts raise.
    """
    model = load(recipe.model, device=device)
    fingerprint = from_main(model.fingerprint)
    benchmark = load_benchmark(recipe.data)
    if not len(benchmark.train):
        raise TetherError(f"{benchmark.name} has no training pictures; it can only be evaluated.")
    if len(benchmark.class_names) < 2:
        raise TetherError(
            f"{benchmark.name} has only the class {benchmark.class_names[0]!r}; there is nothing to tell apart. "
            "The training pictures lie in a folder for each class, of which there are two or more."
        )
    if recipe.alpha.value == "auto" and not len(benchmark.validation):
        raise TetherError(
            "alpha.value=auto needs validation pictures; this data set has none. Give a number."
        )
    if recipe.ensemble and recipe.ensemble.needs_validation and not len(benchmark.validation):
        raise TetherError("This ensemble is fitted on validation pictures; this data set has none.")
    made_from = from_main(lambda: digests(benchmark))
    finished = from_main(lambda: resume is not None and is_finished(resume, test))
    if check_pictures and not finished:
        # now, not when a test picture's turn comes
        from_main(lambda: require_readable(benchmark, progress=progress))
    directory = RunDirectory.open(resume) if resume else RunDirectory.create(root, recipe.name)
    with directory as kept:
        may_change = [f"training.{name}" for name in type(recipe.training).MAY_CHANGE]
        kept.record("config", to_plain(recipe), may_change=may_change)
        # A picture that stopped the run may have been mended since.
        mended = [] if finished else [f"{split}.files" for split in made_from]
        kept.record("splits", made_from, may_change=mended)
        kept.record("base", {"model": recipe.model, "fingerprint": fingerprint})
        if trained:
            from_main(lambda: take_over(trained, kept, recipe))
        if started and is_main():
            started(kept.path)
        if not from_main(lambda: is_finished(kept.path, test)):
            try:
                _run(recipe, model, benchmark, kept, progress if is_main() else None, show_progress, test)
            except TetherError as error:
                if not resume and kept.discard_unused():
                    raise TetherError(
                        f"{error} Nothing was trained; {kept.path} is removed again."
                    ) from error
                command = f"tether train --resume {quoted(kept.path)}"
                if command in str(error):
                    raise
                raise TetherError(
                    f"{error} The run is kept: once the cause is mended, unless it is the recipe, `{command}` goes on "
                    "from the last checkpoint."
                ) from error
        outcome = read_outcome(kept.path, recipe, benchmark)
        if outcome.test.alphas:
            from_main(lambda: _report(outcome))
        return outcome


def _report(outcome: Outcome) -> None:
    """Explain a finished run in its directory, unless it is there."""
    from tether.runs.report import REPORT, write_run  # with matplotlib, which training has no use for

    if not (outcome.run / REPORT).is_file():
        write_run(outcome)


def _run(
    recipe: Recipe,
    model: Model,
    benchmark: Benchmark,
    kept: RunDirectory,
    progress: Progress | None,
    show_progress: bool,
    test: bool,
) -> None:
    torch.manual_seed(recipe.training.seed)
    prompts = {"templates": benchmark.templates, "progress": progress}
    zero_shot = class_embeddings(model, benchmark.class_names, **prompts)
    model.module.requires_grad_(False)
    attached = attach(model, recipe.adapter, seed=recipe.training.seed) if recipe.adapter.moves else None
    task = Classification(model, attached, recipe, benchmark, zero_shot)
    if attached and set(task.named_parameters()) == {HEAD}:
        raise TetherError(
            "The adapter changes only the text tower, of which cross-entropy makes no use: nothing but the head "
            "would be trained. Let it change the image tower, or say adapter.method=frozen for a linear probe."
        )
    final = _train(task, attached, zero_shot, recipe, benchmark, kept, progress, show_progress)
    head = final.get(HEAD)
    state = {name: tensor for name, tensor in final.items() if name != HEAD}
    if attached:
        attached.eval_mode()
        state = {**attached.state_dict(), **state}  # a tower that played no part is as it was

    def classifier(alpha: float) -> Classifier:
        if head is not None:
            return Classifier(weight=head_at(head.detach(), zero_shot, alpha), scale=model.logit_scale)
        weight = class_embeddings(model, benchmark.class_names, **prompts)
        return Classifier(weight=weight, scale=model.logit_scale)

    try:
        with attached.path(state) if attached else WeightPath(model.module, {}) as path:
            judged = judge(recipe, benchmark, model, path, classifier, test=test, progress=progress)
    except TetherError as error:
        raise TetherError(
            f"{error} The training is done and kept: once this is mended, `tether train --resume {quoted(kept.path)}` "
            "goes on from there."
        ) from error
    results = {
        "alpha": plain(judged.alpha),
        "alpha_reason": judged.reason,
        "test": {
            json.dumps(plain(alpha)): {name: scores.numbers() for name, scores in by_split.items()}
            for alpha, by_split in zip(judged.tested.alphas, judged.tested.scores, strict=True)
        },
        "validation": judged.validation,
        "trained_parameters": sum(parameter.numel() for parameter in final.values()),
        "peak_memory_bytes": max(read_json(kept.path / TIME)["peak_memory_bytes"], peak_memory(model.device)),
    }

    def keep() -> None:
        if head is not None:
            save_head(kept.path / HEAD_FILE, head, zero_shot)
        if attached:
            shutil.rmtree(kept.path / ADAPTER, ignore_errors=True)  # of a part that was killed while it saved
            use_at = 1.0 if judged.ensemble else judged.alpha  # an ensemble combines the two ends itself
            extra = {"head": head is not None}
            save_adapter(kept.path / ADAPTER, attached, state=state, alpha=use_at, extra=extra)
        paths = [kept.path / HEAD_FILE, kept.path / ADAPTER]
        if judged.ensemble:
            with attached.ordinary() if attached else nullcontext():
                name = ADAPTER if attached else None
                paths += save_ensemble(kept.path, judged.ensemble, benchmark.class_names, adapter=name)
        save_sweep(kept.path / SCORES, judged.tested)
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
    progress: Progress | None,
    show_progress: bool,
) -> dict[str, Tensor]:
    """The trained values by name, accumulated where the recipe says so."""
    model, seed = task.model, recipe.training.seed
    augmentation = train_transform(model.image, **asdict(recipe.augmentation))
    data = ImageDataset(benchmark.train, augmentation, seed=seed, cache_bytes=2**29)
    if recipe.probe:
        options = {"loss": recipe.objective.loss(), "seed": seed}
        options |= {"progress": progress, "show_progress": show_progress}
        task.head.data = probed_head(
            kept.path / PROBE, recipe.probe, model, data, task.head.detach(), **options
        )
    parameters = task.named_parameters()
    zeros = dict.fromkeys(attached.zero_anchored() & parameters.keys()) if attached else None
    optimizer = create(
        recipe.optimizer,
        parameters,
        head=HEAD if HEAD in parameters else None,
        anchors=zeros or "start",
    )
    held_out = None
    if recipe.optimizer.held_out:
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
    schedule = Schedule.of(optimizer, recipe.schedule, steps)
    with measured(kept, model.device), fast_last_block(model):
        fit(
            task,
            data,
            optimizer,
            recipe.training,
            schedule=schedule,
            accumulation=accumulation,
            held_out=held_out,
            radii=recipe.radii,
            run=kept,
            show_progress=show_progress,
        )
    return accumulation.average() if accumulation else task.trained()
