"""From finished runs of several methods to the results that tables and the report show."""

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tether.data.records import Benchmark, PictureBenchmark, PictureSplit
from tether.evaluation.alpha import AlphaChoice, AlphaPoint
from tether.evaluation.drawing import Drawn
from tether.evaluation.results import BaselinePoint, Method, PathPoint, Results, Tuning
from tether.evaluation.scores import Sweep, alpha_text
from tether.evaluation.scoring import Scores
from tether.evaluation.summary import Runs, changed_answers, describe_domains, differences, summarise
from tether.recipe import Recipe, to_plain
from tether.runs.outcome import Outcome

ZERO_SHOT = "zero-shot"


def row_name(name: str, model: str, models: Collection[str]) -> str:
    """A row's name; with the model where there are several, as short as tells them apart."""
    different = set(models)
    if len(different) == 1:
        return name
    short = {Path(one).name for one in different}
    return f"{name} ({Path(model).name if len(short) == len(different) else model})"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """All runs of a method, by seed one per fold; its recipe has the settings that were chosen.

    Attributes:
        left_out: identities on whose pictures these were chosen, which the test answers are without.
    """

    recipe: Recipe
    tuning: Tuning | None
    by_seed: Mapping[int, Sequence[Outcome]]
    left_out: Collection[str] = ()

    @property
    def outcomes(self) -> list[Outcome]:
        return [outcome for own in self.by_seed.values() for outcome in own]

    def runs(self) -> Runs:
        """Test answers at the chosen alpha, those of all folds together."""
        return {seed: _pool([one.test.at(one.alpha) for one in own]) for seed, own in self.by_seed.items()}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What came out on one data set.

    Attributes:
        name: of the data set, fit for a folder.
        tests: the test splits that the results are of, those of all folds together.
        runs: the test answers of every row.
        drawings: test pictures with the highlighted method's answers drawn over them, where these can be seen.
    """

    name: str
    results: Results
    tests: Mapping[str, PictureSplit]
    runs: Mapping[str, Runs]
    drawings: tuple[Drawn, ...] = ()


def make_results(
    trained: Sequence[Trained],
    runs: Mapping[str, Runs],
    *,
    highlighted: str,
    reference: str,
    baselines: Collection[str] = (),
    settings: Mapping[str, str],
    notes: Sequence[str] = (),
    draws: int = 10_000,
    **rest: Any,
) -> Results:
    """The rows of all methods and of the zero-shot models, their differences, and what the report explains.

    Args:
        trained: on one data set, each with a name of its own.
        runs: the test answers of every row, see `all_runs`.
        highlighted: the method that the report is about.
        reference: the method that all others are tested against.
        baselines: methods that are ordinary models, for the line of effective robustness.
        settings: what else explains the numbers, in words.
        notes: what a reader must know beside the data set's own notes.
        draws: of the bootstrap of differences.
        rest: other fields of `Results`.
    """
    benchmark = trained[0].outcomes[0].benchmark
    models = [one.recipe.model for one in trained]
    by_name = {one.recipe.name: one for one in trained}
    zero_shot = row_name(ZERO_SHOT, by_name[highlighted].recipe.model, models)
    zero_shot = zero_shot if zero_shot in runs else ""
    after = next(iter(runs[highlighted].values()))
    before = runs[zero_shot][0] if zero_shot else after
    corruptions = [name for name, scores in before.items() if scores.split.is_corruption]
    domains = describe_domains(before, benchmark.in_distribution, corruptions)
    shifted = [domain.name for domain in domains if domain.kind == "shifted"]
    tested = [domain.name for domain in domains if domain.kind != "corruption" or len(corruptions) == 1]
    methods = [
        _method(by_name[name], own, benchmark, shifted)
        if name in by_name
        else summarise(name, own, shifted, description="The model as it was loaded.")
        for name, own in runs.items()
    ]
    class_names, templates = outcome_texts(benchmark)
    if class_names:
        methods = [
            _with_changes(one, by_name[highlighted], before, tested, class_names)
            if one.name == highlighted
            else one
            for one in methods
        ]
    results = Results(
        domains=domains,
        methods=tuple(methods),
        zero_shot=zero_shot,
        highlighted=highlighted,
        alpha=_choice(by_name[highlighted]),
        metrics=before[benchmark.in_distribution].metrics,
        changes=tuple(
            changed_answers(name, before[name], after[name], class_names)
            for name in (tested if class_names else ())
        ),
        queries=tuple(query for name in tested for query in after[name].queries(name)),
        differences=differences(runs, reference, tested, shifted, draws=draws),
        baseline=tuple(_baseline_points(methods, baselines, benchmark.in_distribution)),
        templates=templates,
        settings={
            **settings,
            "training pictures": f"{len(benchmark.train)} in a fold",
            "validation pictures": f"{len(benchmark.validation)} in a fold",
        },
        notes=(*benchmark.notes, *notes),
        **rest,
    )
    if baselines and results.baseline_line() is None:
        note = (
            "The ordinary models are equally good in-distribution, or there are no shifts: no line fits them."
        )
        return replace(results, notes=(*results.notes, note))
    return results


def all_runs(trained: Sequence[Trained]) -> dict[str, Runs]:
    """The test answers of every row, by its name; before the first row of a model comes that model's own, where it
    answers by itself."""
    models = [one.recipe.model for one in trained]
    runs: dict[str, Runs] = {}
    for one in trained:
        zero_shot = row_name(ZERO_SHOT, one.recipe.model, models)
        if one.recipe.task.zero_shot and zero_shot not in runs:
            runs[zero_shot] = {0: _pool([run.test.at(0.0) for run in next(iter(one.by_seed.values()))])}
        runs[one.recipe.name] = one.runs()
    return runs


def outcome_texts(benchmark: PictureBenchmark) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of classes and the templates of their prompts; empty where pictures have no class each."""
    return (benchmark.class_names, benchmark.templates) if isinstance(benchmark, Benchmark) else ((), ())


def pooled_tests(
    benchmarks: Sequence[PictureBenchmark], left_out: Collection[str] = ()
) -> dict[str, PictureSplit]:
    """The test splits of all folds as one per domain, in the order of the answers, without some identities."""

    def pooled(splits: Sequence[PictureSplit]) -> PictureSplit:
        examples = [one for split in splits for one in split.examples if one.identity not in left_out]
        return replace(splits[0], examples=tuple(examples))

    names = dict.fromkeys(name for own in benchmarks for name in own.tests)
    return {name: pooled([own.tests[name] for own in benchmarks if name in own.tests]) for name in names}


def without(outcome: Outcome, identities: Collection[str]) -> Outcome:
    """An outcome without its answers to test pictures of some identities."""

    def rest(scores: Scores) -> Scores:
        return scores.picked([i for i, one in enumerate(scores.identities) if one not in identities])

    if not identities:
        return outcome
    swept = [{name: rest(scores) for name, scores in by_name.items()} for by_name in outcome.test.scores]
    return replace(outcome, test=Sweep(outcome.test.alphas, tuple(swept)))


def _method(trained: Trained, runs: Runs, benchmark: PictureBenchmark, shifted: Sequence[str]) -> Method:
    """The row of a method."""
    outcomes = trained.outcomes
    return summarise(
        trained.recipe.name,
        runs,
        shifted,
        description=_description(trained.recipe),
        alpha=_alphas(outcomes),
        trained_parameters=outcomes[0].trained_parameters,
        file_bytes=outcomes[0].file_bytes,
        steps=trained.recipe.training.total_steps(trained.recipe.task.examples(benchmark)),
        seconds=sum(one.seconds for one in outcomes) / len(outcomes),
        peak_memory_bytes=max(one.peak_memory_bytes for one in outcomes),
        tuning=trained.tuning,
        path=_path(outcomes, benchmark.in_distribution, shifted),
    )


def _baseline_points(methods: Sequence[Method], names: Sequence[str], home: str) -> list[BaselinePoint]:
    """One point per ordinary model: its seeds are too much alike to count as models of their own."""
    return [
        BaselinePoint(
            name=method.name,
            in_distribution=method.measures[home].mean,
            shifted_mean=method.shifted_mean.value,
        )
        for method in methods
        if method.name in names and method.shifted_mean is not None
    ]


def _choice(trained: Trained) -> AlphaChoice | None:
    """How alpha was chosen in the first run of a method; None where its recipe gave it."""
    first, recipe = trained.outcomes[0], trained.recipe
    if not _by_validation(first):
        return None
    return AlphaChoice(
        alpha=first.alpha,
        rule=(recipe.ensemble or recipe.alpha).rule,
        reason=first.alpha_reason,
        pictures=len(first.benchmark.validation),
        curve=tuple(AlphaPoint(**point) for point in first.validation),
    )


def _pool(parts: Sequence[Mapping[str, Scores]]) -> dict[str, Scores]:
    """Answers on the test pictures of several folds as answers on one split per domain."""
    pooled = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        own = [part[name] for part in parts if name in part]  # a fold may lack a domain
        pooled[name] = own[0].pooled(own)
    return pooled


def _path(ones: Sequence[Outcome], in_distribution: str, shifted: Sequence[str]) -> tuple[PathPoint, ...]:
    """Mean test accuracy over runs at the alphas that all of them share, on all domains that are no corruption."""
    shared = [alpha for alpha in ones[0].test.alphas if all(alpha in one.test.alphas for one in ones)]
    points = []
    for alpha in shared if len(shared) > 2 and shifted else ():
        scores = [one.test.at(alpha) for one in ones]
        measures = {}
        for name in (in_distribution, *shifted):
            values = [own[name].value for own in scores if name in own]  # a fold may lack a shift
            measures[name] = sum(values) / len(values)
        home = measures[in_distribution]
        away = sum(measures[name] for name in shifted) / len(shifted)
        points.append(PathPoint(alpha=alpha, in_distribution=home, shifted_mean=away, measures=measures))
    return tuple(points)


def _with_changes(
    method: Method,
    trained: Trained,
    before: Mapping[str, Scores],
    domains: Sequence[str],
    names: Sequence[str],
) -> Method:
    """A method whose path says which answers of its first runs changed at each alpha, a few on each domain."""
    first = next(iter(trained.by_seed.values()))
    points = []
    for point in method.path:
        after = _pool([one.test.at(point.alpha) for one in first])
        changes = tuple(changed_answers(name, before[name], after[name], names, limit=6) for name in domains)
        points.append(replace(point, changes=changes))
    return replace(method, path=tuple(points))


def _alphas(ones: Sequence[Outcome]) -> str:
    texts = [alpha_text(one.alpha) for one in ones]
    numbers = [one.alpha for one in ones if not isinstance(one.alpha, Mapping)]
    if len(set(texts)) == 1:
        text = texts[0]
    elif len(ones) > 3 and len(numbers) == len(ones):
        text = f"{min(numbers):.4g} to {max(numbers):.4g}, median {statistics.median(numbers):.4g}"
    else:
        text = ", ".join(texts)
    return ("by validation: " if _by_validation(ones[0]) else "") + text


def _by_validation(outcome: Outcome) -> bool:
    """Whether alpha was chosen among several on validation pictures."""
    return len(outcome.validation) > 1


def _description(recipe: Recipe) -> str:
    """The methods that a recipe combines, in the order of its options, and its learning rate."""
    parts = []
    for value in to_plain(recipe).values():
        parts += [entry["method"] for entry in _entries(value) if "method" in entry]
    parts.remove(to_plain(recipe)["data"]["method"])
    return f"{' + '.join(parts)}, lr {recipe.optimizer.lr:g}"


def _entries(value: Any) -> list[Mapping[str, Any]]:
    return [entry for entry in (value if isinstance(value, list) else [value]) if isinstance(entry, dict)]
