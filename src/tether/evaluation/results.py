"""All that a comparison found, in a form that can be saved, read again, and understood by somebody else.

Accuracies are fractions between 0 and 1. Every type here is plain data; `summary.py` makes them from scores.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tether._alpha import Alpha
from tether._files import read_json, write_json
from tether.errors import TetherError, near_misses
from tether.evaluation._typed_json import decode, encode, schema
from tether.evaluation.alpha import AlphaChoice
from tether.evaluation.effective_robustness import BaselineLine, effective_robustness, fit_baseline, inside
from tether.evaluation.scores import SplitScores
from tether.evaluation.scoring import Metric
from tether.evaluation.significance import Estimate, Interval, standard_deviation

VERSION = 4


@dataclass(frozen=True, kw_only=True)
class Domain:
    """A test split: what it is and how it was scored."""

    name: str
    kind: Literal["in-distribution", "shifted", "other classes", "corruption"]
    n: int
    classes: int
    convention: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One method on one domain; one number per seed, in the order of the method's seeds.

    Attributes:
        values: by the name of the metric, the first one first; empty where there is nothing to measure, as of top-5
            accuracy where five or fewer classes compete, or not in every seed.
        interval: 95 % interval of the first metric's mean over draws of pictures.
    """

    values: dict[str, tuple[float, ...]]
    interval: Interval

    @property
    def first(self) -> tuple[float, ...]:
        """The first metric, by which methods are told apart."""
        return next(iter(self.values.values()))

    @property
    def mean(self) -> float:
        """The first metric averaged over the seeds."""
        return math.fsum(self.first) / len(self.first)

    @property
    def spread(self) -> float:
        """Standard deviation of the first metric over the seeds."""
        return standard_deviation(self.first)


@dataclass(frozen=True, kw_only=True)
class ChangedPicture:
    """A picture that one method gets right and another wrong: class names and confidences of the answers."""

    index: int
    identity: str
    truth: str
    before: str
    after: str
    confidence_before: float
    confidence_after: float


@dataclass(frozen=True, kw_only=True)
class Changes:
    """How the answers on one domain changed, with a few of the pictures of either direction."""

    domain: str
    n: int
    wrong_to_right: int
    right_to_wrong: int
    gained: tuple[ChangedPicture, ...]
    lost: tuple[ChangedPicture, ...]


@dataclass(frozen=True, kw_only=True)
class PathPoint:
    """Test accuracy at one alpha: for showing the path afterwards, never for choosing on it.

    Attributes:
        measures: the first metric by domain, averaged over the runs; empty in results of an earlier version.
        changes: of the first run's answers against the zero-shot model; of the highlighted method alone.
    """

    alpha: Alpha
    in_distribution: float
    shifted_mean: float
    measures: dict[str, float] = field(default_factory=dict)
    changes: tuple[Changes, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One point of a search: options and their values in words, and the first metric on validation pictures.

    Attributes:
        validation: None where training diverged.
    """

    values: dict[str, str]
    validation: float | None


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How a method's settings were chosen on validation pictures.

    Attributes:
        budget: trials that each method was allowed.
        points: settings that its search names; where these are more than the budget, chance drew from them.
        steps: training steps of all trials together.
        chosen: options and their values in words.
    """

    budget: int
    points: int
    steps: int
    chosen: dict[str, str]
    trials: tuple[Trial, ...]

    def __post_init__(self):
        if self.chosen not in [trial.values for trial in self.trials]:
            raise TetherError(f"The settings {self.chosen} were chosen but never tried.")


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of the table.

    Attributes:
        description: what was done, in a sentence.
        alpha: weight of the fine-tuned model, in words ("0.5", "by validation: 0.4, 0.5, 0.4"); "" if none.
        measures: by domain.
        shifted_mean: mean over the shifted domains, with an interval clustered by identity; None without any.
        file_bytes: what has to be stored besides the base model.
        steps: of training, in a run.
        seconds: of training, per run on average.
        tuning: how its settings were chosen; None where the recipe gave them.
        path: test accuracies along alpha, for the figure.
    """

    name: str
    description: str = ""
    seeds: tuple[int, ...]
    alpha: str = ""
    measures: dict[str, Measure]
    shifted_mean: Estimate | None
    trained_parameters: int | None = None
    file_bytes: int | None = None
    steps: int | None = None
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    tuning: Tuning | None = None
    path: tuple[PathPoint, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Found:
    """A picture that came up for a query."""

    index: int
    identity: str
    right: bool


@dataclass(frozen=True, kw_only=True)
class Query:
    """A caption of a test split and the pictures that came first for it, best first.

    Attributes:
        rank: place of the caption's own picture, from 1.
    """

    domain: str
    text: str
    rank: int
    found: tuple[Found, ...]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The first metric of `method` minus that of `reference` on the same pictures.

    Attributes:
        where: a domain, or "mean of shifted domains".
        adjusted_p_value: after Holm's correction over all differences with the same `where`.
    """

    method: str
    reference: str
    where: str
    estimate: Estimate
    adjusted_p_value: float


@dataclass(frozen=True, kw_only=True)
class BaselinePoint:
    """Accuracies of an ordinary model without any robust method, for the line of effective robustness."""

    name: str
    in_distribution: float
    shifted_mean: float


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything a report needs.

    Attributes:
        zero_shot: name of the method that everything is compared with; "" if it is not there.
        highlighted: name of the method the report is about.
        alpha: how alpha was chosen for the highlighted method.
        metrics: what was measured; the first one is what tables, intervals and differences are of.
        changes: of the highlighted method against the zero-shot model.
        queries: some of the highlighted method's, where it searches.
        baseline: ordinary models; three or more give a line of effective robustness.
        settings: what else explains the numbers, in words: model, transform, training data, seeds, commands.
        versions: of the programs used.
        notes: what a reader must know, one sentence or two each.
    """

    title: str
    data_set: str
    domains: tuple[Domain, ...]
    methods: tuple[Method, ...]
    zero_shot: str = ""
    highlighted: str = ""
    alpha: AlphaChoice | None = None
    metrics: tuple[Metric, ...] = SplitScores.metrics
    changes: tuple[Changes, ...] = ()
    queries: tuple[Query, ...] = ()
    differences: tuple[Difference, ...] = ()
    baseline: tuple[BaselinePoint, ...] = ()
    templates: tuple[str, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    version: int = VERSION

    def __post_init__(self):
        for what, names in (
            ("domain", [domain.name for domain in self.domains]),
            ("method", [method.name for method in self.methods]),
        ):
            if twice := {name for name in names if names.count(name) > 1}:
                raise TetherError(
                    f"Every {what} needs its own name; found twice: {', '.join(sorted(twice))}."
                )
        names = [method.name for method in self.methods]
        for name in (self.zero_shot, self.highlighted):
            if name and name not in names:
                raise TetherError(f"There is no method {name!r} in the results{near_misses(name, names)}")
        known = {domain.name for domain in self.domains}
        for method in self.methods:
            if unknown := sorted(set(method.measures) - known):
                raise TetherError(f"Method {method.name!r} was measured on unknown domains: {unknown}.")
            for name, measure in method.measures.items():
                if len(measure.first) != len(method.seeds) or not method.seeds:
                    raise TetherError(
                        f"Method {method.name!r} has {len(method.seeds)} seeds but {len(measure.first)} "
                        f"results on {name!r}; each seed needs its own."
                    )
        encode(self)  # refuses what is not finite before somebody waits for a report

    def of_kind(self, kind: str) -> tuple[Domain, ...]:
        """The domains of one kind, in order."""
        return tuple(domain for domain in self.domains if domain.kind == kind)

    @property
    def shown(self) -> tuple[Domain, ...]:
        """The domains that have a column or bars of their own: all but corruptions, of which there may be 75."""
        return tuple(
            domain
            for kind in ("in-distribution", "shifted", "other classes")
            for domain in self.of_kind(kind)
        )

    def method(self, name: str) -> Method | None:
        """A method by name; None for an unknown or empty one."""
        return next((method for method in self.methods if method.name == name), None)

    def identical(self) -> tuple[tuple[str, ...], ...]:
        """Names of methods that have the same numbers everywhere, as the same answers give them, group by group.

        A method without chance in it is like another all of whose seeds are.
        """
        groups: dict[str, list[str]] = {}
        for method in self.methods:
            if method.measures:
                groups.setdefault(repr(_numbers(method)), []).append(method.name)
        return tuple(tuple(names) for names in groups.values() if len(names) > 1)

    def mean_over(self, method: Method, kind: str) -> tuple[float, ...]:
        """Per seed, the mean of the first metric over the domains of one kind; empty if one was not measured."""
        names = [domain.name for domain in self.of_kind(kind)]
        if not names or any(name not in method.measures for name in names):
            return ()
        columns = [method.measures[name].first for name in names]
        return tuple(math.fsum(seed) / len(names) for seed in zip(*columns, strict=True))

    def worst(self, method: Method) -> tuple[str, float] | None:
        """The shifted domain with the lowest accuracy, and that accuracy."""
        found = [
            (method.measures[domain.name].mean, domain.name)
            for domain in self.of_kind("shifted")
            if domain.name in method.measures
        ]
        return min(found)[::-1] if found else None

    def place(self, method: Method) -> tuple[float, float] | None:
        """A method's in-distribution accuracy and its mean under shift, inside logit axes; None without both."""
        inner = self.of_kind("in-distribution")
        if method.shifted_mean is None or not inner or inner[0].name not in method.measures:
            return None
        pictures = min(domain.n for domain in self.of_kind("shifted"))
        home = inside(method.measures[inner[0].name].mean, inner[0].n)
        return home, inside(method.shifted_mean.value, pictures)

    def baseline_line(self) -> BaselineLine | None:
        """The line of effective robustness, where the baseline models allow one."""
        homes = [inside(point.in_distribution, 10_000) for point in self.baseline]
        aways = [inside(point.shifted_mean, 10_000) for point in self.baseline]
        try:
            return fit_baseline(homes, aways)
        except TetherError:
            return None

    def effective_robustness(self, method: Method) -> tuple[float, Interval] | None:
        """How far a method lies above the baseline, with a 95 % interval; None without method's place or line."""
        line, place = self.baseline_line(), self.place(method)
        return effective_robustness(line, *place) if line and place else None

    def save(self, path: Path) -> None:
        """Write JSON, whole or not at all."""
        write_json(path, encode(self))

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Read what `save` wrote.

        Raises:
            TetherError: the file is missing, damaged, of another version, or not as `results_schema` says.
        """
        value = read_json(path)
        found = value.get("version") if isinstance(value, dict) else None
        if found == 2:
            value, found = _from_version_2(value), 3
        if found == 3:
            value, found = _from_version_3(value), VERSION
        if found != VERSION:
            raise TetherError(
                f"{path} holds results of version {found!r}; this program reads version {VERSION}."
            )
        return decode(cls, value, where=str(path))


def _from_version_2(value: dict[str, Any]) -> dict[str, Any]:
    """Results as they were written when accuracy was all that could be measured."""
    try:
        methods = [
            {
                **method,
                "measures": {
                    domain: {
                        "values": {metric.name: measure[metric.name] for metric in SplitScores.metrics},
                        "interval": measure["interval"],
                    }
                    for domain, measure in method["measures"].items()
                },
            }
            for method in value["methods"]
        ]
    except (KeyError, TypeError, AttributeError):  # `decode` says what is wrong
        methods = value.get("methods")
    metrics = [encode(metric) for metric in SplitScores.metrics]
    return {**value, "methods": methods, "metrics": metrics, "queries": [], "version": 3}


def _from_version_3(value: dict[str, Any]) -> dict[str, Any]:
    """Results as they were written when the path had two numbers at an alpha."""
    try:
        methods = [
            {**method, "path": [{**point, "measures": {}, "changes": []} for point in method["path"]]}
            for method in value["methods"]
        ]
    except (KeyError, TypeError):  # `decode` says what is wrong
        methods = value.get("methods")
    return {**value, "methods": methods, "version": VERSION}


def _numbers(method: Method) -> dict[str, list[tuple[float, ...]]]:
    """Per domain what was measured with each seed; once, where all seeds gave the same."""
    found = {}
    for name, own in sorted(method.measures.items()):
        by_seed = list(zip(*(column for column in own.values.values() if column), strict=True))
        found[name] = by_seed[:1] if len(set(by_seed)) == 1 else by_seed
    return found


def results_schema() -> dict[str, Any]:
    """JSON Schema of a saved `Results`."""
    return schema(Results)
