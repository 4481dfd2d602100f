"""Which commands there are and what options they take."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tether.cli import commands
from tether.errors import TetherError, near_misses

EXAMPLES = """\
examples:
  tether demo                                         everything at once, on built-in data
  tether recipes                                      what can be trained; add a name for all its options
  tether train r-adapter                              train, choose alpha, evaluate
  tether train r-adapter model=MODEL data.method=folder data.train=PICTURES
  tether data check my-data.yaml                      what is wrong with your pictures and answers
  tether train --resume runs/r-adapter-001            go on after Ctrl-C, a kill, or a mended error
  tether merge runs/r-adapter-001/adapter OUT         an ordinary model, without cost at inference
  tether try runs/r-adapter-001 PICTURE               what it answers, before and after it was tuned
  tether search builtin FOLDER "a red apple"          pictures of a folder, by a text
  torchrun --nproc-per-node 2 -m tether.cli train r-adapter

exit codes: 0 done, 2 something you can mend, 130 stopped by Ctrl-C
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Options; words such as `optimizer.lr=1e-3` may stand anywhere, which argparse alone does not allow."""
    parser, subparsers = _parser()
    options, rest = parser.parse_known_args(arguments)
    command = subparsers[options.name_of_command]
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
    parser = argparse.ArgumentParser(
        prog="tether",
        description="Fine-tune vision-language models without losing their robustness.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    parser.add_argument(
        "--threads", type=_count, help="CPU threads (default: OMP_NUM_THREADS, else one per core)"
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", dest="name_of_command")

    def add(
        name: str, run: Any, text: str, *, joins: bool = False, check: Any = None
    ) -> argparse.ArgumentParser:
        """A command; one that `joins` may run under torchrun, and is given its device. `check` comes before."""
        command = subparsers.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
        )
        command.set_defaults(command=run, joins=joins, check=check)
        command.add_argument(
            "--threads",
            type=_count,
            default=argparse.SUPPRESS,
            help="CPU threads, here or before the command",
        )
        return command

    train = add(
        "train",
        commands.train,
        "fine-tune as a recipe says, choose alpha, evaluate every domain",
        joins=True,
        check=commands.check_train,
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

    _add_data(train)

    data = add("data", commands.data, "look at a data set before it is trained on")
    data.add_argument("action", choices=("check",), help="check: read everything once and list what is wrong")
    data.add_argument(
        "file",
        nargs="?",
        help="YAML with the options of your data (method, train, …), or a recipe with such a block",
    )
    _add_overrides(data, "options of the data, such as data.method=mask_folders data.train=PICTURES")

    recipes = add(
        "recipes",
        commands.recipes,
        "list the recipes that come with tether, or print one with every option, its meaning and its default",
    )
    recipes.add_argument("name", nargs="?", help="a recipe's name, or a YAML file")

    sites = add("sites", commands.sites, "list the places in a model that an adapter can go to")
    sites.add_argument("model", help="anything tether.load takes")
    sites.add_argument("--tower", choices=("image", "text"), help="of this tower only")
    sites.add_argument(
        "--kinds", nargs="+", metavar="KIND", help="of these kinds only, such as attention mlp (all)"
    )

    compare = add(
        "compare",
        commands.compare,
        "several recipes × seeds: one table, one report",
        joins=True,
        check=commands.check_compare,
    )
    compare.add_argument("recipes", nargs="+", help="names, YAML files, or folders of these")
    compare.add_argument(
        "--models", nargs="+", default=[], metavar="MODEL", help="each recipe on each of these, in one table"
    )
    _add_data(compare, several=True)
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
        type=lambda text: 0 if text == "0" else _count(text),
        default=0,
        metavar="N",
        help="first choose each method's settings, named by its recipe's `search`, by at most N trials that "
        "see validation pictures only",
    )
    compare.add_argument(
        "--tune-seed",
        type=int,
        default=0,
        help="seed of the trials and of which settings they try (%(default)s)",
    )
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
        "--highlight", default="", metavar="NAME", help="what the report is about (the last recipe)"
    )
    compare.add_argument(
        "--workers",
        type=_count,
        default=1,
        help="processes of this machine that share the runs; the same command given elsewhere joins (%(default)s)",
    )
    compare.add_argument(
        "--slurm",
        default="",
        metavar="NAME=VALUE,…",
        help="let so many jobs of SLURM do the runs, with these options of sbatch, the time in minutes: "
        "partition=gpu,gpus=1,time=600",
    )

    zero_shot = add("zero-shot", commands.zero_shot, "accuracy of a model without any training", joins=True)
    zero_shot.add_argument("--model", default="builtin", help="anything tether.load takes (%(default)s)")
    _add_overrides(zero_shot, "options of the data, such as data.method=folder data.train=PICTURES")

    sweep = add(
        "sweep",
        commands.sweep,
        "an adapter on any data at every alpha, without training anything",
        joins=True,
    )
    sweep.add_argument("adapter", type=Path, help="folder of the adapter, or of the run that made it")
    sweep.add_argument(
        "--alphas", type=_alpha, nargs="+", default=None, metavar="ALPHA", help="which (0 0.2 0.4 0.6 0.8 1)"
    )
    sweep.add_argument("--model", help="the base (default: the model the adapter was trained on)")
    sweep.add_argument("--data", type=Path, metavar="FILE", help="YAML with the options of the data")
    _add_overrides(sweep, "options of the data (by default that of the adapter's run)")

    merge = add("merge", commands.merge, "put an adapter into its base and save an ordinary model")
    merge.add_argument("adapter", type=Path, help="folder of the adapter, or of the run that made it")
    merge.add_argument("out", type=Path, help="folder for the merged model; must not exist")
    merge.add_argument("--model", help="the base (default: the model the adapter was trained on)")
    merge.add_argument(
        "--alpha",
        type=_alpha,
        help="ensemble weight from 0 to 1 (default: the one the adapter was saved with)",
    )
    merge.add_argument(
        "--head",
        type=Path,
        metavar="FILE",
        help="a head.safetensors to go with the model, in place of the adapter's",
    )

    rank = add(
        "rank",
        commands.rank,
        "save a trained adapter at the smallest rank that is as good on validation pictures (R-Adapter)",
    )
    rank.add_argument("adapter", type=Path, help="folder of the adapter, best in its run")
    rank.add_argument(
        "--out", type=Path, required=True, help="folder for the smaller adapter; must not exist"
    )
    rank.add_argument(
        "--ranks",
        type=_count,
        nargs="+",
        default=[1, 2, 4, 8, 16, 32, 64],
        help="those to try that are below the adapter's own (1 2 4 … 64)",
    )
    rank.add_argument(
        "--tolerance",
        type=float,
        default=0.005,
        help="accuracy that may be lost, from 0 to 1 (%(default)s)",
    )
    rank.add_argument("--model", help="the base (default: the model the adapter was trained on)")
    _add_overrides(rank, "options of the data (default: those of the run the adapter lies in)")

    average = add("average", commands.average, "the exact mean of adapters on one base, or of whole models")
    average.add_argument("folders", type=Path, nargs="+", help="folders of adapters, or of models")
    average.add_argument("--out", type=Path, required=True, help="folder for the mean; must not exist")
    average.add_argument(
        "--alpha",
        type=_alpha,
        help="ensemble weight of the mean, from 0 to 1 (default: theirs, where all agree)",
    )

    export = add(
        "export",
        commands.export,
        "copy a run's ensemble of answers (output, VRF) to a folder that predicts, or an adapter to one of peft's",
    )
    export.add_argument(
        "run",
        type=Path,
        help="a finished run whose recipe has such an ensemble; with --peft an adapter or its run",
    )
    export.add_argument("out", type=Path, help="new folder")
    export.add_argument(
        "--peft",
        action="store_true",
        help="write an adapter (LoRA, or R-Adapter of low rank) as the library peft loads it",
    )
    export.add_argument(
        "--model", help="with --peft: the base (default: the model the adapter was trained on)"
    )
    export.add_argument(
        "--alpha",
        type=_alpha,
        help="with --peft: ensemble weight from 0 to 1 (default: the one the adapter was saved with)",
    )

    import_ = add("import", commands.import_, "make a LoRA that the library peft trained an adapter")
    import_.add_argument(
        "folder", type=Path, help="what peft saved: adapter_config.json, adapter_model.safetensors"
    )
    import_.add_argument("out", type=Path, help="folder for the adapter; must not exist")
    import_.add_argument("--model", help="the base (default: the one that the folder names)")

    search = add("search", commands.search, "find pictures in a folder by a text, with any model or adapter")
    search.add_argument("model", help="anything tether.load takes: builtin, a folder, hf:org/name …")
    search.add_argument("folder", type=Path, help="pictures, at any depth")
    search.add_argument("text", help='what to look for, such as "a red apple"')
    search.add_argument("-k", type=_count, default=5, help="pictures to find (%(default)s)")
    search.add_argument("--adapter", type=Path, help="folder of an adapter of this model")
    search.add_argument(
        "--alpha",
        type=_alpha,
        help="its ensemble weight, from 0 to 1, or {image: a, text: b} (default: the one it was saved with)",
    )
    search.add_argument(
        "--cache",
        type=Path,
        help="folder for the features of the pictures (default: tether/pictures in ~/.cache)",
    )

    attempt = add(
        "try",
        commands.try_,
        "the five best classes or texts for a picture: zero-shot, as it is kept, and as it was trained",
    )
    attempt.add_argument("source", help="a run, an adapter's folder, or anything tether.load takes")
    attempt.add_argument("pictures", type=Path, nargs="+", metavar="picture", help="picture files")
    attempt.add_argument(
        "--texts", nargs="+", default=[], metavar="TEXT", help="what to choose from (the run's classes)"
    )
    attempt.add_argument(
        "--alpha", type=_alpha, help="in place of the one that the adapter was saved with, from 0 to 1"
    )
    attempt.add_argument("--model", help="the base (default: the model the adapter was trained on)")

    demo = add("demo", commands.demo, "the main job on the built-in model and data, in minutes", joins=True)
    demo.add_argument(
        "--runs", type=Path, default=Path("runs"), help="where runs are made, or found finished (runs)"
    )
    return parser, subparsers.choices


def _add_data(command: argparse.ArgumentParser, *, several: bool = False) -> None:
    command.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="YAML with the options of your data (method, train, shifted, …), in place of the recipe's"
        + ("; of several, each gets a table" if several else ""),
        **({"nargs": "+", "default": []} if several else {}),
    )


class _Version(argparse.Action):
    """Prints the version; it is looked up only where it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        import tether

        print(f"tether {tether.__version__}")
        parser.exit()


def _add_overrides(command: argparse.ArgumentParser, text: str) -> None:
    command.add_argument("overrides", nargs="*", metavar="NAME=VALUE", help=text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, found {text!r}")
    return int(text)


def _alpha(text: str) -> Any:
    """A number from 0 to 1, or `{image: a, text: b}`."""
    from tether.config import build, override

    try:
        value = build(float | dict[str, float], override({}, [f"alpha={text}"])["alpha"], "alpha")
    except TetherError:
        value = None
    towers = isinstance(value, dict) and set(value) == {"image", "text"}
    parts = list(value.values()) if towers else [value]
    if not all(isinstance(part, float) and 0 <= part <= 1 for part in parts):
        raise argparse.ArgumentTypeError(
            f"expected a number from 0 to 1, or {{image: a, text: b}}, found {text!r}"
        )
    return value
