"""The command line: it parses, calls, and prints; everything else is in the library."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tether.errors import TetherError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors a user can mend are one paragraph and exit code 2."""
    parser = _parser()
    options = parser.parse_args(arguments)
    _set_threads(options)
    from tether.training import Interrupted

    try:
        return options.command(options) or 0
    except TetherError as error:
        print(f"tether: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(f"tether: {stop}", file=sys.stderr)
        return int(stop.code)
    except BrokenPipeError:  # the reader of our output has gone
        sys.stderr.close()
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tether", description="Robust, parameter-efficient fine-tuning of vision-language models."
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: one per core)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="fine-tune as a recipe says, choose alpha, evaluate every domain")
    train.add_argument("recipe", nargs="?", help="name of a recipe that comes with tether, or a YAML file")
    train.add_argument("overrides", nargs="*", metavar="NAME=VALUE", help="options, such as optimizer.lr=1e-3")
    train.add_argument("--runs", type=Path, default=Path("runs"), help="where the run gets its directory")
    train.add_argument("--resume", type=Path, metavar="RUN", help="continue a run that was stopped or killed")
    train.add_argument("--alpha", help="auto, a number, or {image: a, text: b}: short for alpha.value=…")
    train.set_defaults(command=_train)

    recipes = commands.add_parser("recipes", help="list the recipes that come with tether, or print one")
    recipes.add_argument("name", nargs="?")
    recipes.set_defaults(command=_recipes)

    compare = commands.add_parser("compare", help="several recipes × seeds: one table, one report")
    compare.add_argument("recipes", nargs="+")
    compare.add_argument("--seeds", type=int, nargs="+", default=[0])
    compare.add_argument("--folds", type=int, nargs="+", default=[0], help="folds of the built-in data, pooled")
    compare.add_argument("--runs", type=Path, default=Path("runs/compare"))
    compare.add_argument("--out", type=Path, required=True, help="folder for the table and the report")
    compare.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="override in every recipe")
    compare.set_defaults(command=_compare)

    zero_shot = commands.add_parser("zero-shot", help="accuracy of a model without any training")
    zero_shot.add_argument("--model", default="builtin")
    zero_shot.add_argument("overrides", nargs="*", metavar="NAME=VALUE", help="data options, such as data.fold=1")
    zero_shot.set_defaults(command=_zero_shot)

    merge = commands.add_parser("merge", help="put an adapter into its base and save an ordinary model")
    merge.add_argument("adapter", type=Path, help="folder of the adapter")
    merge.add_argument("out", type=Path, help="folder for the merged model; must not exist")
    merge.add_argument("--model", default="builtin", help="the base")
    merge.add_argument("--alpha", type=float, help="default: the one the adapter was saved with")
    merge.set_defaults(command=_merge)

    pretrain = commands.add_parser("pretrain", help="train a pair of towers from captioned pictures")
    pretrain.add_argument("pictures", type=Path, help="folder with pictures.zip and pictures.json (make pictures)")
    pretrain.add_argument("--stem", type=Path, required=True, help="safetensors of EfficientNet-Lite0 (make stem)")
    pretrain.add_argument("--runs", type=Path, default=Path("runs"))
    pretrain.add_argument("--resume", type=Path, metavar="RUN")
    pretrain.add_argument("overrides", nargs="*", metavar="NAME=VALUE")
    pretrain.set_defaults(command=_pretrain)

    demo = commands.add_parser("demo", help="the main job on the built-in model and data, in minutes")
    demo.add_argument("--runs", type=Path, default=Path("runs"))
    demo.set_defaults(command=_demo)
    return parser


def _train(options: argparse.Namespace) -> int:
    from tether import recipe as recipes
    from tether._files import read_json
    from tether.tasks import classification
    from tether.tasks.show import show_run

    overrides = [*options.overrides, *([f"alpha.value={options.alpha}"] if options.alpha else [])]
    if options.resume:
        if options.recipe and "=" in options.recipe:
            overrides.insert(0, options.recipe)
        elif options.recipe:
            raise TetherError("--resume takes its recipe from the run; leave the recipe out.")
        from tether.config import override

        recipe = recipes.from_plain(override(read_json(options.resume / "config.json"), overrides))
    elif options.recipe:
        recipe = recipes.read(options.recipe, overrides)
    else:
        raise TetherError(f"Name a recipe ({', '.join(recipes.names())}, or a YAML file), or --resume RUN.")
    outcome = classification.run(recipe, options.runs, resume=options.resume, progress=_progress())
    show_run(outcome)
    return 0


def _recipes(options: argparse.Namespace) -> int:
    from tether import recipe as recipes

    if options.name:
        import yaml

        print(yaml.safe_dump(recipes.to_plain(recipes.read(options.name)), sort_keys=False), end="")
    else:
        print("\n".join(recipes.names()))
    return 0


def _compare(options: argparse.Namespace) -> int:
    from rich.console import Console

    from tether import recipe as recipes
    from tether.evaluation.tables import to_terminal
    from tether.tasks import comparison

    chosen = [recipes.read(source, options.set) for source in options.recipes]
    command = "tether compare " + " ".join(
        [*options.recipes, "--seeds", *map(str, options.seeds), "--folds", *map(str, options.folds)]
        + [word for assignment in options.set for word in ("--set", assignment)]
        + ["--out", str(options.out)]
    )
    results = comparison.compare(
        chosen,
        options.runs,
        seeds=options.seeds,
        folds=options.folds,
        command=command,
        progress=_progress(),
        announce=lambda line: print(line, flush=True),
    )
    comparison.write(results, options.out, comparison.pooled_tests(chosen[0], options.folds))
    Console().print(to_terminal(results))
    print(f"Table and report: {options.out / 'report.html'}")
    return 0


def _zero_shot(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from tether.config import build, override
    from tether.data import load_benchmark
    from tether.evaluation import evaluate, zero_shot_classifier
    from tether.models import load
    from tether.recipe import Data

    wanted = override({"data": {"method": "emoji_shift"}}, options.overrides)
    if extra := set(wanted) - {"data"}:
        raise TetherError(f"zero-shot takes options of the data only (data.…), found {', '.join(sorted(extra))}.")
    benchmark = load_benchmark(build(Data, wanted["data"], "data"))
    model = load(options.model)
    classifier = zero_shot_classifier(model, benchmark.class_names, benchmark.templates)
    scores = evaluate(model, benchmark.tests, classifier, progress=_progress())
    table = Table("domain", "pictures", "top-1", "95 % interval", "top-5", title=f"{options.model} on {benchmark.name}")
    for name, own in scores.items():
        top5 = "" if own.top5 is None else f"{own.top5:.1%}"
        table.add_row(name, str(own.n), f"{own.top1:.1%}", f"{own.interval.low:.1%} – {own.interval.high:.1%}", top5)
    Console().print(table)
    return 0


def _merge(options: argparse.Namespace) -> int:
    from tether.tasks.export import export

    report = export(options.model, options.adapter, options.out, alpha=options.alpha)
    print(
        f"Merged at alpha {report.alpha} into {len(report.changed)} tensors; largest output difference on a probe "
        f"{report.max_error:.2e}. The model is in {options.out}."
    )
    return 0


def _pretrain(options: argparse.Namespace) -> int:
    from tether.config import build, override
    from tether.tasks.pretraining import PretrainingConfig, pretrain

    config = build(PretrainingConfig, override({}, options.overrides))
    folder = pretrain(config, options.pictures, options.stem, options.runs, resume=options.resume)
    print(f"The model is in {folder}.")
    return 0


def _demo(options: argparse.Namespace) -> int:
    from tether.tasks.demo import demo

    demo(options.runs, _progress())
    return 0


def _progress():
    from tether.tasks.show import EvaluationProgress

    return EvaluationProgress()


def _set_threads(options: argparse.Namespace) -> None:
    threads = options.threads or os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    import torch

    torch.set_num_threads(threads)


if __name__ == "__main__":
    sys.exit(main())
