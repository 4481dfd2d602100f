"""What each command does: options in, one call of the library, a few lines out."""

import argparse
import sys
from pathlib import Path
from typing import Any

from tether.errors import TetherError


def train(options: argparse.Namespace, device: Any) -> int:
    from tether import recipe as recipes
    from tether._files import read_json
    from tether.config import override
    from tether.runs import train as fine_tuning
    from tether.runs.show import show_run

    words = [*options.overrides, *([f"alpha.value={options.alpha}"] if options.alpha else [])]
    if options.recipe and "=" in options.recipe:
        words.insert(0, options.recipe)
        options.recipe = None
    if options.resume and options.recipe:
        raise TetherError("--resume takes its recipe from the run; leave the recipe out.")
    if options.resume:
        if not (options.resume / "config.json").is_file():
            raise TetherError(
                f"There is no run to go on with at {options.resume}: it has no config.json. Start a new one."
            )
        recipe = recipes.from_plain(override(read_json(options.resume / "config.json", dict), words))
    elif options.recipe:
        recipe = recipes.read(options.recipe, words)
    else:
        raise TetherError(f"Name a recipe ({', '.join(recipes.names())}, or a YAML file), or --resume RUN.")

    def started(path: Path) -> None:
        options.resume = path  # where to go on, if it is stopped
        print(f"Run: {path}", file=sys.stderr)

    outcome = fine_tuning.run(
        recipe,
        options.runs,
        resume=options.resume,
        device=device,
        started=started,
        progress=_progress(),
    )
    show_run(outcome)
    return 0


def recipes(options: argparse.Namespace) -> int:
    from tether import recipe as recipes

    if options.name:
        import yaml

        print(yaml.safe_dump(recipes.to_plain(recipes.read(options.name)), sort_keys=False), end="")
    else:
        print("\n".join(recipes.names()))
    return 0


def compare(options: argparse.Namespace, device: Any) -> int:
    import shlex

    from tether._distributed import from_main
    from tether.runs import report as reporting
    from tether.runs.comparing import comparison
    from tether.runs.comparing.plan import read_recipes
    from tether.runs.show import show_comparison

    chosen = read_recipes(options.recipes, options.set)
    words = [*options.recipes, "--seeds", *map(str, options.seeds), "--folds", *map(str, options.folds)]
    words += [word for assignment in options.set for word in ("--set", assignment)]
    if options.tune:
        words += ["--tune", str(options.tune)]
        words += ["--tune-seed", str(options.tune_seed), "--tune-fold", str(options.tune_fold)]
    words += ["--baselines", ",".join(options.baselines)] if options.baselines else []
    words += ["--reference", options.reference] if options.reference else []
    words += ["--highlight", options.highlight] if options.highlight else []
    command = shlex.join(["tether", "compare", *words, "--out", str(options.out)])
    from_main(lambda: reporting.check_out(options.out, command))
    results = comparison.compare(
        chosen,
        options.runs,
        seeds=options.seeds,
        folds=options.folds,
        tune=options.tune,
        tune_seed=options.tune_seed,
        tune_fold=options.tune_fold,
        baselines=options.baselines,
        reference=options.reference,
        highlighted=options.highlight,
        workers=options.workers,
        command=command,
        device=device,
        progress=_progress(),
        announce=lambda line: print(line, flush=True),
    )
    tuned_on = options.tune_fold if options.tune else None
    tests = comparison.pooled_tests(chosen[0], options.folds, tuned_on=tuned_on)
    from_main(lambda: reporting.write_comparison(results, options.out, tests))
    show_comparison(results)
    print(f"Table and report: {options.out / 'report.html'}")
    return 0


def zero_shot(options: argparse.Namespace, device: Any) -> int:
    from rich.console import Console
    from rich.table import Table

    from tether.evaluation import evaluate, zero_shot_classifier
    from tether.models import load

    benchmark = _benchmark({"method": "emoji_shift"}, options.overrides)
    model = load(options.model, device=device)
    classifier = zero_shot_classifier(model, benchmark.class_names, benchmark.templates)
    scores = evaluate(model, benchmark.tests, classifier, progress=_progress())
    table = Table(
        "domain", "pictures", "top-1", "95 % interval", "top-5", title=f"{options.model} on {benchmark.name}"
    )
    for name, own in scores.items():
        top5 = "" if own.top5 is None else f"{own.top5:.1%}"
        table.add_row(
            name, str(own.n), f"{own.top1:.1%}", f"{own.interval.low:.1%} – {own.interval.high:.1%}", top5
        )
    Console().print(table)
    return 0


def merge(options: argparse.Namespace) -> int:
    from tether.adapters.files import load_adapter
    from tether.evaluation.scores import alpha_text
    from tether.heads.linear import HEAD_FILE
    from tether.runs.export import export
    from tether.runs.merged_card import CARD
    from tether.runs.outcome import ADAPTER

    inside = options.adapter / ADAPTER
    if not (options.adapter / "adapter.json").is_file() and (inside / "adapter.json").is_file():
        options.adapter = inside  # the run was named
    report = export(options.model, options.adapter, options.out, alpha=options.alpha, head=options.head)
    error = (
        "" if report.max_error is None else f"; largest output difference on a probe {report.max_error:.2e}"
    )
    print(f"Merged at alpha {alpha_text(report.alpha)} into {len(report.changed)} tensors{error}.")
    print(f"Model: {options.out}; {options.out / CARD} says how to load it.")
    run = options.adapter.absolute().parent
    head = None
    if load_adapter(options.adapter).extra.get("head"):
        inside = options.adapter / HEAD_FILE  # of a mean, or of a smaller rank
        head = inside if inside.is_file() else "RUN/head.safetensors"
    elif (options.adapter / "classifier.safetensors").is_file() and (run / HEAD_FILE).is_file():
        head = options.adapter / "classifier.safetensors"  # of a Fisher-weighted average
    if head and not options.head:
        print(f"This adapter was trained with a linear head. To keep that too, add --head {head}.")
    if (run / "ensemble.json").is_file():
        print(
            f"The run's ensemble mixes the outputs of two models; the merged model is its tuned one alone. To keep "
            f"the ensemble: tether export {options.adapter.parent} OUT"
        )
    elif (run / "fisher").is_dir() and run / "fisher" != options.adapter.absolute():
        print(f"The run's ensemble is {options.adapter.parent / 'fisher'}; merge that to keep it.")
    return 0


def rank(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from tether.adapters.files import load_adapter
    from tether.models import load
    from tether.runs.export import base_of, run_config
    from tether.runs.outcome import head_of
    from tether.runs.rank import shrink

    saved = load_adapter(options.adapter)
    data = run_config(options.adapter).get("data", {})
    if not data and not options.overrides:
        raise TetherError(
            f"{options.adapter} lies in no run, so say which pictures to judge by: data.method=folder "
            f"data.train=PICTURES, or data.method=emoji_shift for the built-in ones."
        )
    benchmark = _benchmark(data, options.overrides)
    head = head_of(options.adapter) if saved.extra.get("head") else None
    results = shrink(
        load(options.model or base_of(saved, options.adapter)),
        benchmark,
        options.adapter,
        options.out,
        ranks=options.ranks,
        tolerance=options.tolerance,
        head=head,
        progress=_progress(),
    )
    best = results[-1].score - options.tolerance
    chosen = next(result for result in results if result.score >= best)
    table = Table("rank", "bytes", "validation top-1", title="Ranks of the adapter")
    for result in results:
        rank = f"{result.rank} (whole)" if result is results[-1] else str(result.rank)
        mark = " ← saved" if result is chosen else ""
        table.add_row(rank, f"{result.bytes:,}", f"{result.score:.1%}{mark}")
    Console().print(table)
    print(f"Adapter: {options.out}")
    return 0


def average(options: argparse.Namespace) -> int:
    from tether.heads.linear import HEAD_FILE
    from tether.runs.average import average_folders, average_models

    if all((folder / "adapter.json").is_file() for folder in options.folders):
        average_folders(options.folders, options.out, options.alpha)
        print(f"Mean of {len(options.folders)} adapters: {options.out}")
        if (options.out / HEAD_FILE).is_file():
            print(f"Mean of their linear heads: {options.out / HEAD_FILE}")
        return 0
    if options.alpha is not None:
        raise TetherError("--alpha belongs to adapters; a mean of whole models has none.")
    average_models([str(folder) for folder in options.folders], options.out)
    print(f"Mean of {len(options.folders)} models: {options.out}")
    return 0


def export(options: argparse.Namespace) -> int:
    from tether.runs.predictor import export_predictor

    export_predictor(options.run, options.out)
    print(f"Predictor: {options.out} (tether.runs.predictor.load_predictor reads it)")
    return 0


def demo(options: argparse.Namespace, device: Any) -> int:
    from tether.runs.demo import demo

    demo(options.runs, _progress(), device=device)
    return 0


def _benchmark(data: dict[str, Any], overrides: list[str]) -> Any:
    """The benchmark of data options with overrides."""
    from tether.config import build, override
    from tether.data import load_benchmark
    from tether.families import DataConfig

    wanted = override({"data": data}, overrides)
    if extra := set(wanted) - {"data"}:
        raise TetherError(
            f"Here only options of the data can be given (data.…), not {', '.join(sorted(extra))}."
        )
    return load_benchmark(build(DataConfig, wanted["data"], "data"))


def _progress():
    from tether.runs.show import EvaluationProgress

    return EvaluationProgress()
