"""A run as one typed value: an answer to each of the five questions, read from YAML and overridden by words."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tether._choosing import AlphaConfig
from tether.config import build, import_methods, made, method_of, override, plain
from tether.data.augmentation import AugmentationConfig
from tether.ensembles.accumulation import AccumulationConfig
from tether.errors import TetherError
from tether.families import (
    AdapterConfig,
    DataConfig,
    EnsembleConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RegularizerConfig,
    TaskConfig,
)
from tether.heads.probe import ProbeConfig, no_head
from tether.optimizers.schedule import ScheduleConfig
from tether.optimizers.tpgm import RadiiConfig
from tether.recipe_files import read_options
from tether.training.config import FitConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One fine-tuning run.

    Attributes:
        name: of its runs, and of its row in a comparison.
        model: anything `tether.load` takes.
        data: what it is for: what is learned from, and what is tested on.
        adapter: what may move.
        objective: what is minimised.
        task: what it is for; classification unless it is said.
        regularizers: terms that are added to the objective, each with its weight.
        optimizer: how it moves.
        radii: when TPGM learns its radii on validation pictures; for no other optimizer.
        schedule: how the learning rate rises and falls.
        accumulation: a running average of what is trained, used for everything after training.
        augmentation: what training pictures go through.
        training: how long and in what batches; its seed decides everything random in the run.
        alpha: how much of the tuned model is kept: the ensemble with the zero-shot model in weight space.
        probe: trains the head alone first (LP-FT).
        ensemble: another combination of zero-shot and tuned model than by `alpha`, fitted after training.
        imports: modules, or Python files by path, with methods of your own; imported before the recipe is read.
        search: values to try for options, such as `{"optimizer.lr": (1e-4, 3e-4)}`, where a comparison tunes its
            methods; a single run does not look at it.
    """

    name: str
    model: str = "builtin"
    task: TaskConfig = field(
        default_factory=lambda: made(TaskConfig, "classification"), metadata={"added": True}
    )
    data: DataConfig = field(default_factory=lambda: made(DataConfig, "icon_shift"))
    adapter: AdapterConfig = field(default_factory=lambda: made(AdapterConfig, "r_adapter"))
    objective: ObjectiveConfig = field(default_factory=lambda: made(ObjectiveConfig, "mpm_nce"))
    regularizers: tuple[RegularizerConfig, ...] = ()
    optimizer: OptimizerConfig = field(default_factory=lambda: made(OptimizerConfig, "adamw"))
    radii: RadiiConfig | None = None
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    accumulation: AccumulationConfig | None = None
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    training: FitConfig
    alpha: AlphaConfig = field(default_factory=AlphaConfig)
    probe: ProbeConfig | None = None
    ensemble: EnsembleConfig | None = None
    imports: tuple[str, ...] = field(default=(), metadata={"added": True})
    search: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.adapter.moves and self.objective.pairs:
            raise TetherError(
                "With a frozen model only a head can learn; use objective.method=cross_entropy."
            )
        if self.probe and self.objective.pairs:
            raise no_head()
        if self.radii and not self.optimizer.held_out:
            raise TetherError(
                f"radii are of use to TPGM only, not to optimizer.method={method_of(type(self.optimizer))}; leave them "
                "out."
            )


def read(source: str | Path, overrides: list[str] | None = None) -> Recipe:
    """A recipe by name (of those that come with tether) or by path of a YAML file, with overrides applied.

    A file may say `extends: NAME` (or a path from its own folder): its options are then changes to that recipe.

    Raises:
        TetherError: there is no such recipe, or an option is wrong.
    """
    options = read_options(source)
    try:
        return from_plain(override(options, overrides or []))
    except TetherError as error:
        place = f"{source} with {' '.join(overrides)}" if overrides else source
        raise TetherError(f"{place}: {error}") from error


def from_plain(options: Mapping[str, Any]) -> Recipe:
    """A recipe from plain data, as `to_plain` or YAML gives it.

    Raises:
        TetherError: an option is wrong, or a module that it imports is not there.
    """
    imports = build(tuple[str, ...], options.get("imports", ()), "imports")
    return build(Recipe, {**options, "imports": [import_methods(name) for name in imports]})


def to_plain(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain data with every default written out."""
    return plain(recipe)
