"""What each command does: options in, one call of the library, a few lines out."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tether._text import cell, printable, quoted
from tether.errors import TetherError

SHOWN_BESIDE = ("top5", "text_to_image_recall_at_1", "image_to_text_recall_at_1")
"""Metrics that `tether zero-shot` prints after the first one of a task."""


def say(text: str, stream: Any = None) -> None:
    """Print lines that may hold texts from outside, on stdout by default."""
    print("\n".join(map(printable, text.split("\n"))), file=stream, flush=True)


def check_train(options: argparse.Namespace) -> None:
    """What can be told of the options of `train` before anything slow is imported."""
    from tether import recipe_files

    if options.recipe and "=" in options.recipe:
        options.overrides.insert(0, options.recipe)
        options.recipe = None
    if options.resume and options.recipe:
        raise TetherError("--resume takes its recipe from the run; leave the recipe out.")
    if options.resume and not (options.resume / "config.json").is_file():
        raise TetherError(
            f"There is no run to go on with at {options.resume}: it has no config.json. Start a new one."
        )
    if not options.resume and not options.recipe:
        known = ", ".join(recipe_files.names())
        raise TetherError(f"Name a recipe ({known}, or a YAML file), or --resume RUN.")
    if options.recipe:
        recipe_files.find(options.recipe)
    options.overrides[:0] = _data_words(options.data)
    if options.alpha:
        options.overrides.append(f"alpha.value={options.alpha}")


def check_compare(options: argparse.Namespace) -> None:
    """What can be told of the options of `compare` before anything slow is imported."""
    from tether import recipe_files

    for source in options.recipes:
        if not Path(source).is_dir():
            recipe_files.find(source)
    options.data_words = [word for path in options.data for word in _data_words(path)]


def train(options: argparse.Namespace, device: Any) -> int:
    from tether import recipe as recipes
    from tether._files import read_json
    from tether.config import override
    from tether.runs import train as fine_tuning
    from tether.runs.show import show_run

    if options.resume:
        recipe = recipes.from_plain(
            override(read_json(options.resume / "config.json", dict), options.overrides)
        )
    else:
        recipe = recipes.read(options.recipe, options.overrides)

    def started(path: Path) -> None:
        options.resume = path  # where to go on, if it is stopped
        say(f"Run: {path}", sys.stderr)

    with _progress() as progress:
        outcome = fine_tuning.run(
            recipe,
            options.runs,
            resume=options.resume,
            device=device,
            started=started,
            progress=progress,
        )
    show_run(outcome)
    return 0


def recipes(options: argparse.Namespace) -> int:
    from tether import recipe_files

    if options.name:
        from tether.cli.recipe_text import recipe_text

        say(recipe_text(options.name).removesuffix("\n"))
        return 0
    names = recipe_files.names()
    for name in names:
        say(f"{name:<{max(map(len, names))}}  {recipe_files.description(name)}")
    say("\n`tether recipes NAME` prints every option; `tether train NAME` trains.", sys.stderr)
    return 0


def sites(options: argparse.Namespace) -> int:
    from tether.config import build
    from tether.models import Select, load
    from tether.models import sites as sites_of
    from tether.models.site import KINDS

    select = build(Select, {"tower": options.tower, "kinds": options.kinds or list(KINDS)})
    rows = [("name", "tower", "depth", "kind", "width")]
    for site in sites_of(load(options.model).module, select):
        rows.append((site.path, site.tower, str(site.depth), site.kind, str(site.width)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        say("  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip())
    return 0


def compare(options: argparse.Namespace, device: Any) -> int:
    from tether._distributed import from_main
    from tether.runs import report as reporting
    from tether.runs.comparing.comparison import ReportOptions
    from tether.runs.comparing.comparison import compare as run_comparison
    from tether.runs.comparing.launch import Launch
    from tether.runs.comparing.plan import Plan, read_recipes
    from tether.runs.comparing.slurm import slurm_options
    from tether.runs.show import show_comparison

    plan = Plan(
        recipes=read_recipes(options.recipes, options.set, models=options.models, data=options.data_words),
        root=options.runs,
        seeds=options.seeds,
        folds=options.folds,
        tune=options.tune,
        tune_seed=options.tune_seed,
        tune_fold=options.tune_fold,
    )
    launch = Launch(
        device=device,
        workers=options.workers,
        slurm=slurm_options(options.slurm) if options.slurm else None,
    )
    report = ReportOptions(
        command=_comparing_command(options),
        reference=options.reference,
        baselines=options.baselines,
        highlighted=options.highlight,
    )
    several = len(plan.tables) > 1
    from_main(lambda: reporting.check_out(options.out, report.command, several=several))
    with _progress() as progress:
        comparisons = run_comparison(plan, launch, report, progress=progress, announce=say)
    reports = from_main(lambda: list(map(str, reporting.write_comparisons(comparisons, options.out))))
    for comparison, path in zip(comparisons, reports, strict=True):
        show_comparison(comparison.results)
        say(f"Table and report: {path}")
    return 0


def _comparing_command(options: argparse.Namespace) -> str:
    """What makes a comparison again, whoever does the runs."""
    import shlex

    words = [*options.recipes]
    words += ["--models", *options.models] if options.models else []
    words += ["--data", *map(str, options.data)] if options.data else []
    words += ["--seeds", *map(str, options.seeds), "--folds", *map(str, options.folds)]
    words += [word for assignment in options.set for word in ("--set", assignment)]
    if options.tune:
        words += ["--tune", str(options.tune)]
        words += ["--tune-seed", str(options.tune_seed), "--tune-fold", str(options.tune_fold)]
    words += ["--baselines", ",".join(options.baselines)] if options.baselines else []
    words += ["--reference", options.reference] if options.reference else []
    words += ["--highlight", options.highlight] if options.highlight else []
    return shlex.join(["tether", "compare", *words, "--out", str(options.out)])


def zero_shot(options: argparse.Namespace, device: Any) -> int:
    from tether.data.captions import CaptionBenchmark
    from tether.data.records import Benchmark
    from tether.evaluation import evaluate
    from tether.models import load
    from tether.runs.sweep import text_reader

    benchmark = _benchmark({"method": "icon_shift"}, options.overrides)
    if not isinstance(benchmark, Benchmark | CaptionBenchmark):
        raise TetherError(
            f"Nothing is answered without training where pictures have {benchmark.knows}, as in {benchmark.name}. "
            f"Train a head on it first: tether train."
        )
    model = load(options.model, device=device)
    with _progress() as progress:
        reader = text_reader(model, benchmark, progress=progress)
        scores = evaluate(model, benchmark.tests, reader, progress=progress)
    first, *rest = next(iter(scores.values())).metrics
    rest = [metric for metric in rest if metric.name in SHOWN_BESIDE]
    columns = [first.title, "95 % interval", *(metric.title for metric in rest)]

    def cells(name: str) -> list[str]:
        interval, values = scores[name].interval, scores[name].values()
        shown = [values[metric.name] for metric in rest]
        return [
            f"{values[first.name]:.1%}",
            f"{interval.low:.1%} – {interval.high:.1%}",
            *("" if value is None else f"{value:.1%}" for value in shown),
        ]

    _show_domains(f"{options.model} on {benchmark.name}", benchmark, columns, cells)
    return 0


def sweep(options: argparse.Namespace, device: Any) -> int:
    from tether.evaluation.scores import alpha_text
    from tether.evaluation.tables import marked
    from tether.runs.export import adapter_folder, run_config
    from tether.runs.sweep import ALPHAS, sweep

    words = [*_data_words(options.data), *options.overrides]
    folder = adapter_folder(options.adapter)
    of_run = run_config(folder).get("data") if folder else None
    if of_run is None and not words:
        raise TetherError(
            f"{options.adapter} lies in no run, so its data is not known. Name the data: --data FILE, or data.method=…"
        )
    anew = options.data or of_run is None or any(word.startswith("data.method=") for word in words)
    benchmark = _benchmark({} if anew else of_run, words)
    with _progress() as progress:
        swept, kept = sweep(
            options.adapter,
            benchmark,
            options.alphas or ALPHAS,
            base=options.model,
            device=device,
            progress=progress,
        )
    first = next(iter(swept.scores[0].values())).metrics[0]
    heads = [f"alpha {marked(alpha_text(alpha), 'kept' if alpha == kept else '')}" for alpha in swept.alphas]
    title = f"{first.title} of {options.adapter} on {benchmark.name}"
    _show_domains(
        title, benchmark, heads, lambda name: [f"{scores[name].value:.1%}" for scores in swept.scores]
    )
    return 0


def data(options: argparse.Namespace) -> int:
    from tether.config import read_yaml
    from tether.runs.data_check import check_data

    block: dict[str, Any] = {}
    if options.file and "=" in options.file:
        options.overrides.insert(0, options.file)
    elif options.file:
        block = read_yaml(Path(options.file))
        block = block["data"] if isinstance(block.get("data"), dict) else block
    if not block and not options.overrides:
        raise TetherError(
            "Say which data: a YAML file with its options, or data.method=folder data.train=PICTURES."
        )
    benchmark = _benchmark(block, options.overrides)
    with _progress() as progress:
        problems = check_data(benchmark, progress=progress)
    for problem in problems:
        say(f"{'' if problem.severe else '(may be meant so) '}{problem}")
    severe = sum(problem.severe for problem in problems)
    pictures = sum(map(len, (benchmark.train, benchmark.validation, *benchmark.tests.values())))
    say(f"{benchmark.name}: {pictures:,} pictures, {severe} problems, {len(problems) - severe} notes.")
    return 2 if severe else 0


def merge(options: argparse.Namespace) -> int:
    from tether.adapters.files import load_adapter
    from tether.adapters.head import HEAD_FILE
    from tether.evaluation.scores import alpha_text
    from tether.runs.export import adapter_folder, export
    from tether.runs.merged_card import CARD
    from tether.runs.predictor import DESCRIPTION, MERGED

    options.adapter = adapter_folder(options.adapter) or options.adapter
    report = export(options.model, options.adapter, options.out, alpha=options.alpha, head=options.head)
    error = (
        "" if report.max_error is None else f"; largest output difference on a probe {report.max_error:.2e}"
    )
    say(f"Merged at alpha {alpha_text(report.alpha)} into {len(report.changed)} tensors{error}.")
    say(f"Model: {options.out}; {options.out / CARD} says how to load it.")
    run = options.adapter.absolute().parent
    if (options.out / HEAD_FILE).is_file():
        say(f"Its linear head: {options.out / HEAD_FILE}")
    elif load_adapter(options.adapter).extra.get("head"):  # an earlier version put it beside the adapter
        say(
            f"This adapter was trained with a linear head, which lies in its run. To keep that too, add --head "
            f"RUN/{HEAD_FILE}."
        )
    if (run / DESCRIPTION).is_file():
        say(
            f"The run's ensemble mixes the outputs of two models; the merged model is its tuned one alone. To keep "
            f"the ensemble: tether export {quoted(options.adapter.parent)} OUT"
        )
    elif (run / MERGED).is_dir() and run / MERGED != options.adapter.absolute():
        say(f"The run's ensemble is {options.adapter.parent / MERGED}; merge that to keep it.")
    return 0


def rank(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from tether.adapters.files import load_adapter
    from tether.models import load
    from tether.runs.export import base_of, run_config
    from tether.runs.rank import shrink
    from tether.runs.show import show_table

    saved = load_adapter(options.adapter)
    data = run_config(options.adapter).get("data", {})
    if not data and not options.overrides:
        raise TetherError(
            f"{options.adapter} lies in no run, so say which pictures to judge by: data.method=folder "
            f"data.train=PICTURES, or data.method=icon_shift for the built-in ones."
        )
    benchmark = _benchmark(data, options.overrides)
    with _progress() as progress:
        results = shrink(
            load(options.model or base_of(saved, options.adapter)),
            benchmark,
            options.adapter,
            options.out,
            ranks=options.ranks,
            tolerance=options.tolerance,
            progress=progress,
        )
    best = results[-1].score - options.tolerance
    chosen = next(result for result in results if result.score >= best)
    table = Table("rank", "bytes", "validation top-1", title="Ranks of the adapter")
    for result in results:
        rank = f"{result.rank} (whole)" if result is results[-1] else str(result.rank)
        mark = " ← saved" if result is chosen else ""
        table.add_row(rank, f"{result.bytes:,}", f"{result.score:.1%}{mark}")
    show_table(table, Console())
    say(f"Adapter: {options.out}")
    return 0


def average(options: argparse.Namespace) -> int:
    from tether.runs.average import average_folders, average_models

    if all((folder / "adapter.json").is_file() for folder in options.folders):
        average_folders(options.folders, options.out, options.alpha)
        say(f"Mean of {len(options.folders)} adapters: {options.out}")
        return 0
    if options.alpha is not None:
        raise TetherError("--alpha belongs to adapters; a mean of whole models has none.")
    average_models([str(folder) for folder in options.folders], options.out)
    say(f"Mean of {len(options.folders)} models: {options.out}")
    return 0


def export(options: argparse.Namespace) -> int:
    if options.peft:
        return _export_peft(options)
    if options.model is not None or options.alpha is not None:
        raise TetherError("--model and --alpha belong to an adapter for peft; say so: --peft.")
    from tether.runs.predictor import export_predictor

    export_predictor(options.run, options.out)
    say(f"Predictor: {options.out} (tether.runs.predictor.load_predictor reads it)")
    return 0


def _export_peft(options: argparse.Namespace) -> int:
    from tether.adapters.head import HEAD_FILE
    from tether.evaluation.scores import alpha_text
    from tether.runs.export import adapter_folder
    from tether.runs.peft import export_peft

    adapter = adapter_folder(options.run) or options.run
    alpha = export_peft(options.model, adapter, options.out, alpha=options.alpha)
    say(f"LoRA at alpha {alpha_text(alpha)}: {options.out} (peft.PeftModel.from_pretrained reads it)")
    if (options.out / HEAD_FILE).is_file():
        say(f"Its linear head, which peft does not read: {options.out / HEAD_FILE}")
    return 0


def import_(options: argparse.Namespace) -> int:
    from tether.runs.peft import import_peft

    adapter = import_peft(options.folder, options.out, options.model)
    say(
        f"Adapter of {len(adapter.config.modules)} linears, rank {adapter.config.rank}: {options.out} (tether sweep, "
        f"merge, try and search take it)"
    )
    return 0


def search(options: argparse.Namespace) -> int:
    import torch

    from tether.adapters.files import apply, load_adapter
    from tether.adapters.mergeable import mergeable
    from tether.evaluation.picture_index import search
    from tether.models import load

    if options.alpha is not None and not options.adapter:
        raise TetherError("--alpha belongs to an adapter; name it: --adapter FOLDER.")
    model = load(options.model, device="cuda" if torch.cuda.is_available() else "cpu")
    if options.adapter:
        adapter = load_adapter(options.adapter)
        mergeable(apply(model, adapter)).merge(adapter.alpha if options.alpha is None else options.alpha)
    with _progress() as progress:
        matches = search(
            model, options.folder, options.text, options.k, cache=options.cache, progress=progress
        )
    for match in matches:
        say(f"{match.score:.3f}  {match.image}")
    return 0


def try_(options: argparse.Namespace) -> int:
    import torch

    from tether.evaluation.scores import alpha_text
    from tether.runs.answers import answers

    found = answers(
        options.source,
        options.pictures,
        texts=options.texts,
        base=options.model,
        alpha=options.alpha,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    for picture, columns in zip(options.pictures, found, strict=True):
        say(str(picture))
        heads = ["zero-shot" if one.alpha == 0 else f"alpha {alpha_text(one.alpha)}" for one in columns]
        cells = [[f"{100 * p:5.1f} %  {printable(text)}" for text, p in one.best] for one in columns]
        width = [max(map(len, (head, *column))) for head, column in zip(heads, cells, strict=True)]
        for row in (heads, *zip(*cells, strict=True)):
            say("  " + "   ".join(f"{text:<{size}}" for text, size in zip(row, width, strict=True)).rstrip())
    return 0


def demo(options: argparse.Namespace, device: Any) -> int:
    from tether.runs.demo import demo

    with _progress() as progress:
        demo(options.runs, progress, device=device)
    return 0


def _show_domains(title: str, benchmark: Any, columns: list[str], cells: Callable[[str], list[str]]) -> None:
    """A table with a row for each test of a benchmark, what looks like the training data first."""
    from rich.console import Console
    from rich.table import Table

    from tether.evaluation.tables import marked
    from tether.runs.show import show_table

    table = Table("domain", "pictures", *columns, title=cell(title))
    home = benchmark.in_distribution
    for name in sorted(benchmark.tests, key=lambda name: name != home):
        shown = cell(marked(name, "in-distribution" if name == home else ""))
        table.add_row(shown, str(len(benchmark.tests[name])), *cells(name))
    show_table(table, Console())


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


def _data_words(path: Path | None) -> list[str]:
    """The data block that a file of `--data` holds, as an assignment.

    Raises:
        TetherError: the file is missing, or holds no options of data.
    """
    if path is None:
        return []
    from tether.config import read_yaml

    block = read_yaml(path)
    if set(block) == {"data"} and isinstance(block["data"], dict):
        block = block["data"]
    if "method" not in block:
        raise TetherError(
            f"{path} should hold the options of the data alone, such as `method: folder` and `train: PICTURES`; found "
            f"{', '.join(map(str, block)) or 'nothing'}. Add its method: folder, manifest, imagenet or icon_shift."
        )
    return [f"data={json.dumps(block, default=str)}"]


def _progress() -> Any:
    from tether.training.progress import ProgressDisplay

    return ProgressDisplay()
