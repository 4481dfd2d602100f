"""The command line: it parses, calls, and prints; everything else is in the library."""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from tether.errors import TetherError, near_misses

EXAMPLES = """\
examples:
  tether demo                                         everything at once, on built-in data
  tether recipes                                      what can be trained
  tether train r-adapter                              train, choose alpha, evaluate
  tether train r-adapter model=MODEL data.method=folder data.train=PICTURES
  tether train --resume runs/r-adapter-001            go on after Ctrl-C, a kill, or a mended error
  tether merge runs/r-adapter-001/adapter OUT         an ordinary model, without cost at inference
  torchrun --nproc-per-node 2 -m tether.cli train r-adapter

exit codes: 0 done, 2 something you can mend, 130 stopped by Ctrl-C
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors a user can mend are one paragraph and exit code 2."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    number = int(os.environ.get("RANK", 0)) if options.joins else 0
    name = f"tether (process {number})" if number else "tether"
    _set_threads(options)
    from tether.training import Interrupted

    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere) if number else nullcontext():
            return _run(options) or 0
    except TetherError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:  # training has said after which step
        _say_how_to_go_on(options, name)
        return int(stop.code)
    except KeyboardInterrupt:
        print(f"{name}: Stopped by Ctrl-C.", file=sys.stderr)
        _say_how_to_go_on(options, name)
        return 130
    except BrokenPipeError:  # the reader of our output has gone
        sys.stderr.close()
        return 0
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        print(f"{name}: {error.strerror or error}{place}.", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int | None:
    if not options.joins:
        return options.command(options)
    from tether._distributed import joined

    with joined() as device:
        return options.command(options, device)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Options; words such as `optimizer.lr=1e-3` may stand anywhere, which argparse alone does not allow."""
    parser, commands = _parser()
    options, rest = parser.parse_known_args(arguments)
    command = commands[options.name_of_command]
    for word in rest:
        if word.startswith("-"):
            known = [name for action in command._actions for name in action.option_strings]
            name = word.partition("=")[0]
            command.error(f"there is no option {name}{near_misses(name, known)}")
        if "overrides" not in options or "=" not in word:
            command.error(f"{word!r} is one word too many")
        options.overrides.append(word)
    return options


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    from importlib.metadata import version

    parser = argparse.ArgumentParser(
        prog="tether",
        description="Fine-tune vision-language models without losing their robustness.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"tether {version('tether')}")
    parser.add_argument(
        "--threads", type=_count, help="CPU threads (default: OMP_NUM_THREADS, else one per core)"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="name_of_command")

    def add(name: str, run: Any, text: str, *, joins: bool = False) -> argparse.ArgumentParser:
        """A command; one that `joins` may run under torchrun, and is given its device."""
        command = commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
        )
        command.set_defaults(command=run, joins=joins)
        return command

    train = add(
        "train", _train, "fine-tune as a recipe says, choose alpha, evaluate every domain", joins=True
    )
    train.add_argument("recipe", nargs="?", help="name of a recipe that comes with tether, or a YAML file")
    _add_overrides(
        train, "options of the recipe, such as optimizer.lr=1e-3 (`tether recipes NAME` prints them)"
    )
    train.add_argument(
        "--runs", type=Path, default=Path("runs"), help="where the run gets its directory (%(default)s)"
    )
    train.add_argument(
        "--resume", type=Path, metavar="RUN", help="go on with a run that was stopped or killed"
    )
    train.add_argument("--alpha", help="auto, a number, or {image: a, text: b}: short for alpha.value=…")

    recipes = add(
        "recipes", _recipes, "list the recipes that come with tether, or print one with all its options"
    )
    recipes.add_argument("name", nargs="?", help="a recipe's name, or a YAML file")

    compare = add("compare", _compare, "several recipes × seeds: one table, one report", joins=True)
    compare.add_argument(
        "recipes", nargs="+", help="names, YAML files, or folders of these, of the same model and data"
    )
    compare.add_argument("--seeds", type=int, nargs="+", default=[0], help="a run for each (0)")
    compare.add_argument(
        "--folds", type=int, nargs="+", default=[0], help="folds of the built-in data, pooled (0)"
    )
    compare.add_argument(
        "--runs",
        type=Path,
        default=Path("runs/compare"),
        help="where runs are made, or found finished (%(default)s)",
    )
    compare.add_argument("--out", type=Path, required=True, help="folder for the table and the report")
    compare.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="override in every recipe"
    )
    compare.add_argument(
        "--tune",
        type=_count,
        default=0,
        metavar="N",
        help="first choose each method's settings, named by its recipe's `search`, by at most N trials that "
        "see validation pictures only",
    )
    compare.add_argument("--tune-seed", type=int, default=0, help="seed of the trials (%(default)s)")
    compare.add_argument(
        "--tune-fold", type=int, default=0, help="fold on whose validation pictures (%(default)s)"
    )
    compare.add_argument(
        "--baselines",
        type=lambda text: text.split(","),
        default=[],
        metavar="NAME,NAME,NAME",
        help="ordinary models, through which the line of effective robustness is drawn",
    )
    compare.add_argument(
        "--reference",
        default="",
        metavar="NAME",
        help="what the others are tested against (full, or zero-shot)",
    )
    compare.add_argument(
        "--workers",
        type=_count,
        default=1,
        help="processes of this machine that share the runs; the same command given elsewhere joins (%(default)s)",
    )

    zero_shot = add("zero-shot", _zero_shot, "accuracy of a model without any training", joins=True)
    zero_shot.add_argument("--model", default="builtin", help="anything tether.load takes (%(default)s)")
    _add_overrides(zero_shot, "options of the data, such as data.method=folder data.train=PICTURES")

    merge = add("merge", _merge, "put an adapter into its base and save an ordinary model")
    merge.add_argument("adapter", type=Path, help="folder of the adapter")
    merge.add_argument("out", type=Path, help="folder for the merged model; must not exist")
    merge.add_argument(
        "--model", help="the base (default: that of the run the adapter lies in, else builtin)"
    )
    merge.add_argument(
        "--alpha", type=_alpha, help="ensemble weight (default: the one the adapter was saved with)"
    )
    merge.add_argument(
        "--head", type=Path, metavar="FILE", help="a run's head.safetensors, to go with the model"
    )

    rank = add(
        "rank", _rank, "save a trained R-Adapter at the smallest rank that is as good on validation pictures"
    )
    rank.add_argument("adapter", type=Path, help="folder of the adapter, best in its run")
    rank.add_argument(
        "--out", type=Path, required=True, help="folder for the smaller adapter; must not exist"
    )
    rank.add_argument(
        "--ranks", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help="those to try (1 2 4 … 64)"
    )
    rank.add_argument(
        "--tolerance",
        type=float,
        default=0.005,
        help="accuracy that may be lost, as a fraction (%(default)s)",
    )
    rank.add_argument("--model", help="the base (default: that of the run the adapter lies in, else builtin)")
    _add_overrides(rank, "options of the data (default: those of the run the adapter lies in, else built-in)")

    average = add("average", _average, "the exact mean of adapters on one base, or of whole models")
    average.add_argument("folders", type=Path, nargs="+", help="folders of adapters, or of models")
    average.add_argument("--out", type=Path, required=True, help="folder for the mean; must not exist")
    average.add_argument(
        "--alpha", type=_alpha, help="ensemble weight of the mean (default: theirs, where all agree)"
    )

    export = add(
        "export", _export, "copy a run's ensemble of answers (output, VRF) to a folder that predicts"
    )
    export.add_argument("run", type=Path, help="a finished run whose recipe has such an ensemble")
    export.add_argument("out", type=Path, help="new folder")

    pretrain = add(
        "pretrain", _pretrain, "train a pair of towers from captioned pictures: how `builtin` was made"
    )
    pretrain.add_argument("pictures", type=Path, help="folder with pictures.zip and pictures.json")
    pretrain.add_argument("--stem", type=Path, required=True, help="safetensors of the convolutional stem")
    pretrain.add_argument(
        "--runs", type=Path, default=Path("runs"), help="where the run gets its directory (runs)"
    )
    pretrain.add_argument(
        "--resume", type=Path, metavar="RUN", help="go on with a run that was stopped or killed"
    )
    _add_overrides(pretrain, "options, such as training.steps=500")

    demo = add("demo", _demo, "the main job on the built-in model and data, in minutes", joins=True)
    demo.add_argument(
        "--runs", type=Path, default=Path("runs"), help="where runs are made, or found finished (runs)"
    )
    return parser, commands.choices


def _add_overrides(command: argparse.ArgumentParser, text: str) -> None:
    command.add_argument("overrides", nargs="*", metavar="NAME=VALUE", help=text)


def _train(options: argparse.Namespace, device: Any) -> int:
    from tether import recipe as recipes
    from tether._files import read_json
    from tether.config import override
    from tether.tasks import fine_tuning
    from tether.tasks.show import show_run

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
        recipe = recipes.from_plain(override(read_json(options.resume / "config.json"), words))
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


def _recipes(options: argparse.Namespace) -> int:
    from tether import recipe as recipes

    if options.name:
        import yaml

        print(yaml.safe_dump(recipes.to_plain(recipes.read(options.name)), sort_keys=False), end="")
    else:
        print("\n".join(recipes.names()))
    return 0


def _compare(options: argparse.Namespace, device: Any) -> int:
    import shlex

    from tether._distributed import from_main
    from tether.tasks import comparison
    from tether.tasks.show import show_comparison

    chosen = comparison.read_recipes(options.recipes, options.set)
    words = [*options.recipes, "--seeds", *map(str, options.seeds), "--folds", *map(str, options.folds)]
    words += [word for assignment in options.set for word in ("--set", assignment)]
    if options.tune:
        words += ["--tune", str(options.tune)]
        words += ["--tune-seed", str(options.tune_seed), "--tune-fold", str(options.tune_fold)]
    words += ["--baselines", ",".join(options.baselines)] if options.baselines else []
    words += ["--reference", options.reference] if options.reference else []
    command = shlex.join(["tether", "compare", *words, "--out", str(options.out)])
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
        workers=options.workers,
        command=command,
        device=device,
        progress=_progress(),
        announce=lambda line: print(line, flush=True),
    )
    tuned_on = options.tune_fold if options.tune else None
    tests = comparison.pooled_tests(chosen[0], options.folds, tuned_on=tuned_on)
    from_main(lambda: comparison.write(results, options.out, tests))
    show_comparison(results)
    print(f"Table and report: {options.out / 'report.html'}")
    return 0


def _zero_shot(options: argparse.Namespace, device: Any) -> int:
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


def _merge(options: argparse.Namespace) -> int:
    from tether.adapters.files import load_adapter
    from tether.evaluation.scores import alpha_text
    from tether.tasks.export import export

    source = options.model or _run_of(options.adapter)["model"]
    report = export(source, options.adapter, options.out, alpha=options.alpha, head=options.head)
    error = (
        "" if report.max_error is None else f"; largest output difference on a probe {report.max_error:.2e}"
    )
    print(f"Merged at alpha {alpha_text(report.alpha)} into {len(report.changed)} tensors{error}.")
    print(f"Model: {options.out}")
    if load_adapter(options.adapter).extra.get("head") and not options.head:
        print(
            "This adapter was trained with a linear head. To keep that too, add --head RUN/head.safetensors."
        )
    return 0


def _rank(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from tether.adapters.files import load_adapter
    from tether.models import load
    from tether.tasks.outcome import HEAD_FILE
    from tether.tasks.ranking import shrink

    run = _run_of(options.adapter)
    saved = load_adapter(options.adapter)
    head = options.adapter.parent / HEAD_FILE if saved.extra.get("head") else None
    results = shrink(
        load(options.model or run["model"]),
        _benchmark(run["data"], options.overrides),
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


def _average(options: argparse.Namespace) -> int:
    from tether.adapters.files import load_adapter, save_adapter
    from tether.tasks.averaging import average_adapters, average_models

    if all((folder / "adapter.json").is_file() for folder in options.folders):
        mean = average_adapters([load_adapter(folder) for folder in options.folders], options.alpha)
        save_adapter(options.out, mean)
        print(f"Mean of {len(options.folders)} adapters: {options.out}")
        return 0
    if options.alpha is not None:
        raise TetherError("--alpha belongs to adapters; a mean of whole models has none.")
    average_models([str(folder) for folder in options.folders], options.out)
    print(f"Mean of {len(options.folders)} models: {options.out}")
    return 0


def _export(options: argparse.Namespace) -> int:
    from tether.tasks.ensembling import export_predictor

    export_predictor(options.run, options.out)
    print(f"Predictor: {options.out} (tether.tasks.ensembling.load_predictor reads it)")
    return 0


def _pretrain(options: argparse.Namespace) -> int:
    from tether.config import build, override
    from tether.tasks.pretraining import PretrainingConfig, pretrain

    config = build(PretrainingConfig, override({}, options.overrides))
    folder = pretrain(config, options.pictures, options.stem, options.runs, resume=options.resume)
    print(f"The model is in {folder}.")
    return 0


def _demo(options: argparse.Namespace, device: Any) -> int:
    from tether.tasks.demo import demo

    demo(options.runs, _progress(), device=device)
    return 0


def _benchmark(data: dict[str, Any], overrides: list[str]) -> Any:
    """The benchmark of data options with overrides."""
    from tether.config import build, override
    from tether.data import load_benchmark
    from tether.recipe import Data

    wanted = override({"data": data}, overrides)
    if extra := set(wanted) - {"data"}:
        raise TetherError(
            f"Here only options of the data can be given (data.…), not {', '.join(sorted(extra))}."
        )
    return load_benchmark(build(Data, wanted["data"], "data"))


def _run_of(adapter: Path) -> dict[str, Any]:
    """The configuration of the run that an adapter lies in; built-in model and data where it lies in none."""
    from tether._files import read_json

    path = adapter.absolute().parent / "config.json"
    config = read_json(path) if path.is_file() else {}
    return {"model": config.get("model", "builtin"), "data": config.get("data", {"method": "emoji_shift"})}


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, found {text!r}")
    return int(text)


def _alpha(text: str) -> Any:
    """A number, or `{image: a, text: b}`."""
    from tether.config import override

    try:
        value = override({}, [f"alpha={text}"])["alpha"]
        if isinstance(value, dict) and set(value) == {"image", "text"}:
            return {tower: float(part) for tower, part in value.items()}
        return float(value)
    except (TypeError, ValueError):  # TetherError is a ValueError
        pass
    raise argparse.ArgumentTypeError(f"expected a number, or {{image: a, text: b}}, found {text!r}")


def _say_how_to_go_on(options: argparse.Namespace, name: str) -> None:
    if getattr(options, "resume", None):
        command = f"tether {options.name_of_command} --resume {options.resume}"
        print(f"{name}: To go on: {command}", file=sys.stderr)
    elif options.name_of_command in ("compare", "demo"):
        print(f"{name}: To go on, give the same command again; what is finished is kept.", file=sys.stderr)


def _progress():
    from tether.tasks.show import EvaluationProgress

    return EvaluationProgress()


def _set_threads(options: argparse.Namespace) -> None:
    """As many as asked for, by option or OMP_NUM_THREADS (which torch reads itself); else one per core."""
    if options.threads is None and "OMP_NUM_THREADS" in os.environ:
        return
    threads = options.threads or os.cpu_count() or 1
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)


if __name__ == "__main__":
    sys.exit(main())
