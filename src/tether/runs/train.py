"""Robust fine-tuning: train on one domain, choose alpha honestly, judge on every domain.

`run` is the whole job: data → adapter → training → alpha from validation and simulated shifts → test → files.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tether._distributed import from_main, is_main
from tether._files import read_json, sha256_file, write_json
from tether._text import quoted
from tether.adapters import Attached, attach
from tether.adapters.files import save_adapter
from tether.adapters.head import HEAD_FILE, described_at, save_head
from tether.config import method_of, plain
from tether.data import load_benchmark, require_readable, test_transform
from tether.data.dataset import ImageDataset
from tether.data.records import Benchmark, PictureBenchmark
from tether.ensembles.accumulation import Accumulation
from tether.errors import TetherError
from tether.evaluation.reading import read_ahead
from tether.evaluation.scoring import Progress
from tether.heads.probe import probed_head
from tether.models import Model, load
from tether.models.last_block import fast_last_block
from tether.models.weight_path import WeightPath
from tether.optimizers.from_config import create
from tether.optimizers.schedule import Schedule
from tether.optimizers.tpgm import RadiusLearner
from tether.recipe import Recipe, from_plain, to_plain
from tether.runs.drawings import draw_some, save_drawings
from tether.runs.files import PROBE, measured, peak_memory, take_over
from tether.runs.judge import judge
from tether.runs.outcome import (
    ADAPTER,
    RESULT,
    SCORES,
    TIME,
    Cost,
    Outcome,
    is_finished,
    read_outcome,
    save_sweep,
)
from tether.runs.pictures import Pictures, require_records
from tether.runs.predictor import save_ensemble
from tether.runs.report import REPORT, write_run
from tether.runs.validation import Validation
from tether.tasks.task import Task
from tether.training import FitConfig, HeldOut, RunDirectory, fit
from tether.training.plan import Plan


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
    if recipe.alpha.value == "auto" and not len(benchmark.validation):
        raise TetherError(
            "alpha.value=auto needs validation pictures; this data set has none. Give a number."
        )
    if recipe.ensemble and recipe.ensemble.needs_validation and not len(benchmark.validation):
        raise TetherError("This ensemble is fitted on validation pictures; this data set has none.")
    finished = from_main(lambda: resume is not None and is_finished(resume, test))
    if check_pictures and not finished:
        # now, not when a test picture's turn comes
        from_main(lambda: require_readable(benchmark, progress=progress))
    pictures = Pictures(benchmark)
    records = {
        "config": to_plain(recipe),
        "splits": from_main(lambda: pictures.digests),
        "base": {"model": recipe.model, "fingerprint": fingerprint},
    }
    if resume:
        directory = RunDirectory.open(resume, read_only=finished)
    else:
        directory = RunDirectory.create(root, recipe.name, records=records)
    with directory:
        if resume:
            _require_same(directory, records, pictures)
        from_main(lambda: directory.record_tensors("splits", pictures.files))
        if resume and not finished:
            from_main(lambda: pictures.forget_mended(directory.path))  # after their new hashes are kept
        if trained:
            from_main(lambda: take_over(trained, directory, recipe))
        if started and is_main():
            started(directory.path)
        if not from_main(lambda: is_finished(directory.path, test)):
            try:
                _run(
                    recipe, model, benchmark, directory, progress if is_main() else None, show_progress, test
                )
            except TetherError as error:
                if not resume and directory.discard_unused():
                    raise TetherError(
                        f"{error} Nothing was trained; {directory.path} is removed again."
                    ) from error
                pictures.note_broken(directory.path, str(error))
                if not is_main() and not any(directory.checkpoints.glob("step-*")):
                    raise  # what becomes of the run is the main process's to say
                command = f"tether train --resume {quoted(directory.path)}"
                if command in str(error):
                    raise
                raise TetherError(
                    f"{error} The run is kept: once the cause is mended, unless it is the recipe, `{command}` goes on "
                    "from the last checkpoint."
                ) from error
        outcome = read_outcome(directory.path, recipe, benchmark)
        if outcome.test.alphas:
            from_main(lambda: _report(outcome))
        return outcome


def _require_same(directory: RunDirectory, records: dict[str, dict[str, Any]], pictures: Pictures) -> None:
    """See that a run that is taken up is the same as before, and renew its records where they may differ.

    Raises:
        TetherError: a record is missing, or the run would not be a continuation.
    """
    from_main(lambda: require_records(directory.path, tuple(records)))
    directory.record(
        "config",
        records["config"],
        may_change=[f"training.{name}" for name in FitConfig.MAY_CHANGE],
        complete=lambda earlier: to_plain(from_plain(earlier)),
    )
    directory.record("base", records["base"])
    renewed = from_main(lambda: pictures.accept(directory.path))
    directory.record("splits", records["splits"], may_change=renewed)


def _report(outcome: Outcome) -> None:
    """Explain a finished run in its directory, unless it is there."""
    if not (outcome.run / REPORT).is_file():
        write_run(outcome)


def _run(
    recipe: Recipe,
    model: Model,
    benchmark: PictureBenchmark,
    directory: RunDirectory,
    progress: Progress | None,
    show_progress: bool,
    test: bool,
) -> None:
    torch.manual_seed(recipe.training.seed)
    task = recipe.task.make(recipe, model, benchmark, progress=progress)
    model.module.requires_grad_(False)
    attached = attach(model, recipe.adapter, seed=recipe.training.seed) if recipe.adapter.moves else None
    task.start(attached)
    trained = _train(task, attached, directory, progress, show_progress)
    state = task.finish(trained)
    if attached:
        attached.eval_mode()
        state = {**attached.state_dict(), **state}  # a tower that played no part is as it was
    try:
        with attached.path(state) if attached else WeightPath(model.module, {}) as path:
            judged = judge(task, path, test=test, progress=progress)
            drawings = draw_some(task, path, judged.alpha) if test else []
    except TetherError as error:
        raise TetherError(
            f"{error} The training is done and kept: once this is mended, "
            f"`tether train --resume {quoted(directory.path)}` goes on from there."
        ) from error
    results = {
        "alpha": plain(judged.alpha),
        "alpha_reason": judged.reason,
        "test": {
            json.dumps(plain(alpha)): {name: scores.numbers() for name, scores in by_split.items()}
            for alpha, by_split in zip(judged.tested.alphas, judged.tested.scores, strict=True)
        },
        "validation": judged.validation,
        "trained_parameters": sum(parameter.numel() for parameter in trained.values()),
        "peak_memory_bytes": max(
            read_json(directory.path / TIME, Cost).peak_memory_bytes, peak_memory(model.device)
        ),
    }

    def save() -> None:
        head = task.trained_head
        if head and not attached:
            save_head(directory.path / HEAD_FILE, head)
        if attached:
            # what a part that was killed had saved
            shutil.rmtree(directory.path / ADAPTER, ignore_errors=True)
            use_at = 1.0 if judged.ensemble else judged.alpha  # an ensemble combines the two ends itself
            save_adapter(directory.path / ADAPTER, attached, state=state, alpha=use_at, head=head)
        head_file = directory.path / HEAD_FILE
        paths = [head_file, described_at(head_file), directory.path / ADAPTER]
        if judged.ensemble:
            with attached.ordinary() if attached else nullcontext():
                name = ADAPTER if attached else None
                paths += save_ensemble(directory.path, judged.ensemble, task.class_names, adapter=name)
        # of a part without the tests, whose answers these replace
        (directory.path / RESULT).unlink(missing_ok=True)
        save_sweep(directory.path / SCORES, judged.tested)
        save_drawings(directory.path, drawings)
        results["scores_sha256"] = sha256_file(directory.path / SCORES)
        files = {file for path in paths for file in (path, *path.rglob("*")) if file.is_file()}
        results["file_bytes"] = sum(file.stat().st_size for file in files)
        write_json(directory.path / RESULT, results)  # last: now the run is finished

    from_main(save)
    if attached:
        attached.detach()


def _train(
    task: Task,
    attached: Attached | None,
    directory: RunDirectory,
    progress: Progress | None,
    show_progress: bool,
) -> dict[str, Tensor]:
    """The trained values by name, accumulated where the recipe says so."""
    recipe, model = task.recipe, task.model
    seed = recipe.training.seed
    training = task.training_data(task.train_transform(), seed=seed)
    if recipe.probe:
        options = {"loss": recipe.objective.loss(), "seed": seed}
        options |= {"progress": progress, "show_progress": show_progress}
        task.head.data = probed_head(
            directory.path / PROBE, recipe.probe, model, training.data, task.head.detach(), **options
        )
    if attached:
        attached.look(_training_pictures(task, progress), model.encode_image)
    parameters = task.named_parameters()
    zeros = dict.fromkeys(attached.zero_anchored() & parameters.keys()) if attached else None
    optimizer = create(
        recipe.optimizer,
        parameters,
        head=task.head_names,
        anchors=zeros or "start",
    )
    learner = None
    if recipe.optimizer.held_out:
        held_out = task.held_out_data(task.test_transform(), seed=seed)
        held_out = HeldOut(task, held_out, recipe.training, collate=training.collate)
        learner = RadiusLearner(optimizer, held_out, recipe.radii)
    plan = Plan(training.data, recipe.training, training.order)  # before anything of the run is written
    task.prepare(plan.total, plan.batches.per_epoch)
    accumulation = Accumulation(parameters, **asdict(recipe.accumulation)) if recipe.accumulation else None
    schedule = Schedule.of(optimizer, recipe.schedule, plan.total)
    shortened = fast_last_block(model) if task.pooled else nullcontext()
    with measured(directory, model.device), shortened:
        fit(
            task,
            training.data,
            optimizer,
            recipe.training,
            schedule=schedule,
            accumulation=accumulation,
            order=training.order,
            collate=training.collate,
            validate=Validation.of(task, attached, len(training.data)),
            after_step=learner,
            run=directory,
            show_progress=show_progress,
        )
    return accumulation.average() if accumulation else task.trained()


def _training_pictures(task: Task, progress: Progress | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Pixels and classes of all training pictures, unaugmented; every process reads them all.

    Raises:
        TetherError: the pictures have no classes.
    """
    split, model = task.benchmark.train, task.model
    if not isinstance(task.benchmark, Benchmark):
        raise TetherError(
            f"{method_of(type(task.recipe.adapter))} looks at the training pictures by class before it is trained, "
            f"and those of {task.benchmark.name} have no classes. Take another adapter, or for sct "
            f"adapter.selection=seed."
        )
    data = ImageDataset(split, test_transform(model.image))
    size, done = task.recipe.training.batch_size, 0
    with closing(read_ahead(data, range(len(split)), batch_size=size, workers=0)) as batches:
        for batch in batches:
            yield batch["pixels"].to(model.device), batch["label"]
            done += len(batch["label"])
            if progress:
                progress("looking at training pictures", done, len(split))
