"""Methods side by side: every recipe on every fold with every seed, one table, one report.

Each run is an ordinary run directory named after its recipe and the hash of its configuration: a comparison
that was killed goes on where it was, and what is finished is not done again.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tether._alpha import Alpha
from tether._distributed import from_main
from tether._files import read_json, write_atomically
from tether.data import load_benchmark, read_image
from tether.data.emoji_shift import EmojiShiftConfig
from tether.data.records import Split
from tether.errors import TetherError
from tether.evaluation.alpha import AlphaChoice, AlphaPoint
from tether.evaluation.report import write_report
from tether.evaluation.results import PathPoint, Results
from tether.evaluation.scores import SplitScores, Sweep, alpha_text
from tether.evaluation.summary import changed_answers, describe_domains, differences, summarise
from tether.evaluation.tables import to_csv, to_markdown
from tether.recipe import Recipe, to_plain
from tether.tasks.classification import RESULT, Outcome, digests, read_outcome, run
from tether.training.environment import environment

ZERO_SHOT = "zero-shot"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Finished:
    """One run of a comparison, read back from its directory."""

    recipe: Recipe
    path: Path
    outcome: Outcome

    @property
    def alpha(self) -> Alpha:
        return self.outcome.alpha

    @property
    def test(self) -> Sweep:
        return self.outcome.test


def compare(
    recipes: Sequence[Recipe],
    root: Path,
    *,
    seeds: Sequence[int] = (0,),
    folds: Sequence[int] = (0,),
    title: str = "Comparison",
    command: str = "",
    highlighted: str = "",
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    announce: Callable[[str], None] = lambda line: None,
    show_progress: bool = True,
) -> Results:
    """Run what is not there yet, and make the results of all of it.

    Args:
        folds: folds of the built-in data set; a seed's answers on the test pictures of all folds are pooled.
        highlighted: name of the recipe that the report is about; the last one by default.
        announce: told about every run that begins or is found finished.

    Raises:
        TetherError: the recipes cannot stand in one table (names, models or data), or a run fails.
    """
    _check(recipes, seeds, folds)
    finished: dict[str, dict[int, list[Finished]]] = {}
    total = len(recipes) * len(seeds) * len(folds)
    number = 0
    for recipe in recipes:
        for seed in seeds:
            for fold in folds:
                number += 1
                one = _variant(recipe, seed, fold)
                announce(f"[{number}/{total}] {recipe.name}, seed {seed}, fold {fold}")
                done = _ensure(one, root, device, progress, show_progress)
                finished.setdefault(recipe.name, {}).setdefault(seed, []).append(done)
    return _results(finished, folds, title, command, highlighted or recipes[-1].name)


def write(results: Results, folder: Path, data: Mapping[str, Split] | None = None) -> None:
    """`results.json`, `table.csv`, `table.md` and `report.html` in `folder`.

    Args:
        data: the test splits, for the pictures whose answer changed.
    """

    def picture(domain: str, index: int):
        return read_image(data[domain].examples[index].image) if data else None

    results.save(folder / "results.json")
    for name, text in (("table.csv", to_csv(results)), ("table.md", to_markdown(results))):
        write_atomically(
            folder / name, lambda temporary, text=text: temporary.write_text(text, encoding="utf-8")
        )
    write_report(results, folder / "report.html", picture)


def pooled_tests(recipe: Recipe, folds: Sequence[int]) -> dict[str, Split]:
    """The test splits of all folds as one per domain, in the order of `compare`'s answers."""
    benchmarks = [load_benchmark(_variant(recipe, 0, fold).data) for fold in folds]
    return {
        name: _joined([benchmark.tests[name] for benchmark in benchmarks]) for name in benchmarks[0].tests
    }


def _variant(recipe: Recipe, seed: int, fold: int) -> Recipe:
    data = replace(recipe.data, fold=fold) if isinstance(recipe.data, EmojiShiftConfig) else recipe.data
    return replace(recipe, data=data, training=replace(recipe.training, seed=seed))


def _check(recipes: Sequence[Recipe], seeds: Sequence[int], folds: Sequence[int]) -> None:
    """Refuse, before anything is trained, what could not be put into one table."""
    for what, values in (("recipe", [recipe.name for recipe in recipes]), ("seed", seeds), ("fold", folds)):
        if not values:
            raise TetherError(f"A comparison needs at least one {what}.")
        if twice := [value for value, count in Counter(values).items() if count > 1]:
            raise TetherError(f"The {what} {twice[0]!r} is given twice; each needs its own name.")
    for recipe in recipes:
        for part in ("model", "data"):
            own, first = getattr(recipe, part), getattr(recipes[0], part)
            if own != first:
                raise TetherError(
                    f"Recipes of one comparison share model and data, and {part} is {first} in "
                    f"{recipes[0].name} but {own} in {recipe.name}."
                )
    if list(folds) != [0] and not isinstance(recipes[0].data, EmojiShiftConfig):
        raise TetherError("Only the built-in data has folds; leave them out.")


def _ensure(
    recipe: Recipe, root: Path, device: torch.device | str, progress: Progress | None, show_progress: bool
) -> Finished:
    """The finished run of a recipe: found, continued or made."""
    digest = hashlib.sha256(json.dumps(to_plain(recipe), sort_keys=True).encode()).hexdigest()[:10]
    named = replace(recipe, name=f"{recipe.name}-{digest}")

    def there() -> list[str]:  # finished ones first; one that was killed while it was made is none
        paths = sorted(root.glob(f"{named.name}-*"), key=lambda path: not (path / RESULT).is_file())
        return [str(path) for path in paths if (path / "environment.json").is_file()]

    found = from_main(there)
    if found and from_main(lambda: (Path(found[0]) / RESULT).is_file()):
        path, benchmark = Path(found[0]), load_benchmark(recipe.data)
        if read_json(path / "splits.json") != digests(benchmark):
            raise TetherError(
                f"{path} was trained on other pictures than are there now. Choose another --runs."
            )
        outcome = read_outcome(path, named, benchmark)
    else:
        resume = Path(found[0]) if found else None
        options = {"device": device, "progress": progress, "show_progress": show_progress}
        outcome = run(named, root, resume=resume, **options)
    return Finished(recipe=recipe, path=outcome.run, outcome=outcome)


def _results(
    finished: Mapping[str, Mapping[int, Sequence[Finished]]],
    folds: Sequence[int],
    title: str,
    command: str,
    highlighted: str,
) -> Results:
    first = next(iter(next(iter(finished.values())).values()))[0]
    benchmark = load_benchmark(first.recipe.data)
    runs: dict[str, dict[int, dict[str, SplitScores]]] = {
        ZERO_SHOT: {
            0: _pool([one.test.at(0.0) for one in next(iter(next(iter(finished.values())).values()))])
        }
    }
    for name, by_seed in finished.items():
        runs[name] = {seed: _pool([one.test.at(one.alpha) for one in own]) for seed, own in by_seed.items()}
    domains = describe_domains(runs[ZERO_SHOT][0], benchmark.in_distribution)
    shifted = [domain.name for domain in domains if domain.kind == "shifted"]
    methods = [summarise(ZERO_SHOT, runs[ZERO_SHOT], shifted, description="The model as it was loaded.")]
    for name, by_seed in finished.items():
        ones = [one for own in by_seed.values() for one in own]
        methods.append(
            summarise(
                name,
                runs[name],
                shifted,
                description=_description(ones[0].recipe),
                alpha=_alphas(ones),
                trained_parameters=ones[0].outcome.trained_parameters,
                file_bytes=ones[0].outcome.file_bytes,
                seconds=sum(one.outcome.seconds for one in ones) / len(ones),
                peak_memory_bytes=max(one.outcome.peak_memory_bytes for one in ones),
                path=_path(ones, benchmark.in_distribution, shifted),
            )
        )
    changes = ()
    if highlighted in runs:
        seed = next(iter(runs[highlighted]))
        before, after = runs[ZERO_SHOT][0], runs[highlighted][seed]
        changes = tuple(
            changed_answers(name, before[name], after[name], benchmark.class_names) for name in before
        )
    reference = "full" if "full" in runs else ZERO_SHOT
    names = [domain.name for domain in domains]
    return Results(
        title=title,
        data_set=benchmark.name
        if len(folds) == 1
        else benchmark.name.split(" (")[0] + f" (folds {folds} pooled)",
        domains=domains,
        methods=tuple(methods),
        zero_shot=ZERO_SHOT,
        highlighted=highlighted if highlighted in finished else "",
        alpha=_choice(finished[highlighted]) if highlighted in finished else None,
        changes=changes,
        differences=differences(runs, reference, names, shifted) if len(runs) > 1 else (),
        templates=benchmark.templates,
        settings={
            "model": first.recipe.model,
            "command": command,
            "seeds": ", ".join(map(str, next(iter(finished.values())))),
            "training pictures": f"{len(benchmark.train)} (fold {folds[0]})",
            "validation pictures": f"{len(benchmark.validation)} (fold {folds[0]})",
        },
        versions={name: str(version) for name, version in environment().get("packages", {}).items()},
        notes=benchmark.notes,
    )


def _choice(by_seed: Mapping[int, Sequence[Finished]]) -> AlphaChoice | None:
    """How alpha was chosen in the first run of a method; None where its recipe gave it."""
    first = next(iter(by_seed.values()))[0]
    if not first.outcome.validation:
        return None
    return AlphaChoice(
        alpha=first.outcome.alpha,
        rule=first.recipe.alpha.rule,
        reason=first.outcome.alpha_reason,
        pictures=len(first.outcome.benchmark.validation),
        curve=tuple(AlphaPoint(**point) for point in first.outcome.validation),
    )


def _pool(parts: Sequence[Mapping[str, SplitScores]]) -> dict[str, SplitScores]:
    """Answers on the test pictures of several folds as answers on one split per domain."""
    return {
        name: SplitScores(
            split=_joined([part[name].split for part in parts]),
            predictions=torch.cat([part[name].predictions for part in parts]),
            confidences=torch.cat([part[name].confidences for part in parts]),
            ranks=torch.cat([part[name].ranks for part in parts]),
            classes=parts[0][name].classes,
        )
        for name in parts[0]
    }


def _joined(splits: Sequence[Split]) -> Split:
    examples = tuple(example for split in splits for example in split.examples)
    return splits[0] if len(splits) == 1 else replace(splits[0], examples=examples)


def _path(ones: Sequence[Finished], in_distribution: str, shifted: Sequence[str]) -> tuple[PathPoint, ...]:
    """Mean test accuracy over runs at the alphas that all of them share."""
    shared = [alpha for alpha in ones[0].test.alphas if all(alpha in one.test.alphas for one in ones)]
    points = []
    for alpha in shared if len(shared) > 2 else ():
        scores = [one.test.at(alpha) for one in ones]
        home = sum(own[in_distribution].top1 for own in scores) / len(scores)
        away = sum(own[name].top1 for own in scores for name in shifted) / (len(scores) * len(shifted))
        points.append(PathPoint(alpha=alpha, in_distribution=home, shifted_mean=away))
    return tuple(points)


def _alphas(ones: Sequence[Finished]) -> str:
    texts = [alpha_text(one.alpha) for one in ones]
    how = "by validation: " if ones[0].recipe.alpha.value == "auto" else ""
    return how + (texts[0] if len(set(texts)) == 1 else ", ".join(texts))


def _description(recipe: Recipe) -> str:
    plain = to_plain(recipe)
    return f"{plain['adapter']['method']} + {plain['objective']['method']}, lr {recipe.optimizer.lr:g}"
