"""The command line from end to end: what works, and what each thing that goes wrong says and leaves."""

import json
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tether
from tether._files import read_json
from tether.adapters.files import load_adapter
from tether.cli import main
from tether.models import load
from tether.training import RunDirectory, read_metrics
from tether.training.checkpoint import latest_checkpoint, load_checkpoint

from .adapters.earlier import as_written_before


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """Each test in a folder of its own, where `runs` is made; one thread as before."""
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("RANK", raising=False)


@pytest.fixture
def recipe(tmp_path, tiny_recipe):
    path = tmp_path / "tiny.yaml"
    path.write_text(json.dumps(tiny_recipe))  # JSON is YAML
    return str(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_recipe):
    """A finished run that no test changes."""
    root = tmp_path_factory.mktemp("trained")
    (root / "tiny.yaml").write_text(json.dumps(tiny_recipe))
    assert main(["train", str(root / "tiny.yaml"), "--runs", str(root / "runs")]) == 0
    return root / "runs" / "tiny-001"


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def fails(capsys):
    """Give a command that must fail with exit code 2 and one line of words; gives the line."""

    def command(*arguments, code=2):
        capsys.readouterr()
        try:
            found = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            found = stop.code
        error = capsys.readouterr().err
        assert found == code, error
        assert "Traceback" not in error
        last = error.strip().splitlines()[-1]
        assert last.startswith("tether"), error
        return last

    return command


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What works


def test_train_prints_the_table_and_keeps_everything(recipe, tmp_path, capsys):
    assert (
        main(["train", recipe, "--alpha", "auto", "training.epochs=2", "--runs", "here", "alpha.grid=[0, 1]"])
        == 0
    )
    shown = capsys.readouterr()
    for text in ("alpha 0", "alpha 1", "colour", "outline", "mean of shifted", "No test picture was used"):
        assert text in shown.out, shown.out
    path = tmp_path / "here" / "tiny-001"
    assert f"Run: {path.relative_to(tmp_path)}" in shown.out.strip().splitlines()[-1]
    kept = {
        "config.json",
        "splits.json",
        "environment.json",
        "metrics.jsonl",
        "result.json",
        "scores.safetensors",
        "base.json",
        "report.html",
    }
    assert kept <= {file.name for file in path.iterdir()}
    config = read_json(path / "config.json")
    assert config["training"]["epochs"] == 2 and config["alpha"]["value"] == "auto"
    assert read_metrics(path)[-1]["step"] == 6


def test_a_second_run_gets_its_own_directory_and_the_same_bytes(recipe, trained, tmp_path):
    assert main(["train", recipe]) == 0 and main(["train", recipe]) == 0
    one, two = (tmp_path / "runs" / f"tiny-00{number}" for number in (1, 2))
    for name in ("adapter/adapter.safetensors", "scores.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes() == (trained / name).read_bytes()


def unnamed(run):
    """What lies in a run's directory and is not in the list of its files in the documentation."""
    page = (Path(__file__).parents[1] / "docs" / "guides" / "files.md").read_text()
    names = [re.sub(r"^vrf-[0-9a-f]+", "vrf-*", path.name) for path in run.iterdir()]
    return [name for name in names if not re.search(rf"^ .*{re.escape(name)}[/, ]", page, re.MULTILINE)]


def test_the_guide_names_every_file_of_a_run(trained, recipe, tmp_path):
    assert not unnamed(trained)
    words = ["adapter={method: frozen}", "objective={method: cross_entropy}", "training.epochs=1"]
    assert main(["train", recipe, *words, "probe={epochs: 1}", "ensemble={method: vrf}"]) == 0
    assert not unnamed(tmp_path / "runs" / "tiny-001")


def test_recipes_lists_them_and_prints_each_whole(capsys):
    assert main(["recipes"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"r-adapter", "full", "flyp", "wise-ft", "linear-probe"} <= set(names)
    for name in names:
        assert main(["recipes", name]) == 0
        assert "batch_size:" in capsys.readouterr().out


def test_zero_shot_is_what_a_run_reports_at_alpha_0(tiny_recipe, trained, capsys):
    data = [f"data.{name}={json.dumps(value)}" for name, value in tiny_recipe["data"].items()]
    assert main(["zero-shot", *data, "--model", tiny_recipe["model"]]) == 0
    shown = capsys.readouterr().out
    at_zero = read_json(trained / "result.json")["test"]["0.0"]
    for name in ("colour", "outline"):
        row = next(line for line in shown.splitlines() if name in line and "│" in line)
        assert f"{at_zero[name]['top1']:.1%}" in row and str(at_zero[name]["n"]) in row


def test_a_sweep_has_the_reported_numbers_at_every_alpha(trained, capsys):
    assert main(["sweep", str(trained), "--alphas", "0", "0.5", "1"]) == 0
    shown = capsys.readouterr().out
    assert "alpha 0.5 (kept)" in " ".join(shown.split())
    result = read_json(trained / "result.json")["test"]
    for name in ("colour", "outline"):
        row = next(line for line in shown.splitlines() if name in line and "│" in line)
        assert [f"{result[alpha][name]['top1']:.1%}" for alpha in ("0.0", "0.5", "1.0")] == [
            word for word in row.split() if word.endswith("%")
        ]


def test_a_sweep_takes_other_data_and_says_what_it_lacks(trained, tiny_recipe, tmp_path, capsys, fails):
    shutil.copytree(trained / "adapter", tmp_path / "alone")
    assert "alone lies in no run, so its data is not known" in fails("sweep", "alone")
    data = [f"data.{name}={json.dumps(value)}" for name, value in tiny_recipe["data"].items()]
    assert main(["sweep", "alone", *data, "--alphas", "1"]) == 0
    assert "outline" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert "is no adapter, and no run that has one" in fails("sweep", "empty", *data)


def test_merge_gives_an_ordinary_model_with_the_reported_answers(trained, tiny_recipe, tmp_path, capsys):
    assert main(["merge", str(trained / "adapter"), "merged"]) == 0  # the base is that of the run
    assert "alpha 0.5" in capsys.readouterr().out
    data = [f"data.{name}={json.dumps(value)}" for name, value in tiny_recipe["data"].items()]
    assert main(["zero-shot", "--model", "merged", *data]) == 0
    shown = capsys.readouterr().out
    reported = read_json(trained / "result.json")["test"]["0.5"]
    for name in ("colour", "outline"):
        row = next(line for line in shown.splitlines() if name in line and "│" in line)
        assert f"{reported[name]['top1']:.1%}" in row
    base, merged = load(tiny_recipe["model"]).module.state_dict(), load("merged").module.state_dict()
    assert base.keys() == merged.keys()
    assert any(not torch.equal(base[name], merged[name]) for name in base)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_merge_takes_a_run_for_the_adapter_in_it(trained, tmp_path, capsys):
    assert main(["merge", str(trained), "merged"]) == 0
    assert (tmp_path / "merged" / "open_clip_config.json").is_file()
    assert "Model: merged" in capsys.readouterr().out


def test_memory_that_ran_out_is_one_line(monkeypatch, capsys):
    def load(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    monkeypatch.setattr("tether.models.load", load)
    assert main(["zero-shot"]) == 2
    assert "tether: Memory ran out (DefaultCPUAllocator" in capsys.readouterr().err


def test_merge_at_alpha_0_is_the_base(trained, tiny_recipe):
    assert main(["merge", str(trained / "adapter"), "merged", "--alpha", "{image: 0, text: 0}"]) == 0
    base, merged = load(tiny_recipe["model"]).module.state_dict(), load("merged").module.state_dict()
    assert all(torch.equal(base[name], merged[name]) for name in base)


def test_merge_keeps_the_head_also_of_runs_made_before(recipe, tmp_path, capsys):
    """A run is made once; then its folder is as earlier versions left it, and then without the run."""
    words = ["objective={method: cross_entropy}", "training.epochs=1"]
    assert main(["train", recipe, *words]) == 0
    run = tmp_path / "runs" / "tiny-001"
    assert not (run / "head.safetensors").exists()
    head = load_file(run / "adapter" / "head.safetensors")
    expected = head["zero_shot"] + 0.5 * (head["weight"] - head["zero_shot"])
    assert main(["merge", str(run / "adapter"), "now"]) == 0
    as_written_before(run / "adapter")
    assert main(["merge", str(run), "before"]) == 0
    assert "--head" not in capsys.readouterr().out
    shutil.copytree(run / "adapter", "alone")
    assert main(["merge", "alone", "without"]) == 0
    assert "--head RUN/head.safetensors" in capsys.readouterr().out
    assert main(["merge", "alone", "given", "--head", str(run / "head.safetensors")]) == 0
    for name in ("now", "before", "given"):
        torch.testing.assert_close(load_file(tmp_path / name / "head.safetensors")["weight"], expected)
    assert not (tmp_path / "without" / "head.safetensors").exists()


def test_merge_says_that_an_ensemble_stays_behind(recipe, tmp_path, capsys):
    for number, method in ((1, "output"), (2, "fisher")):
        words = ["training.epochs=1", f"ensemble={{method: {method}}}", "objective={method: cross_entropy}"]
        assert main(["train", recipe, *words]) == 0
        run = tmp_path / "runs" / f"tiny-00{number}"
        capsys.readouterr()
        assert main(["merge", f"{run}/adapter", method]) == 0
        assert not unnamed(run)
        told = f"tether export {run}" if method == "output" else f"ensemble is {run}/fisher"
        assert told in capsys.readouterr().out
    assert main(["merge", f"{run}/fisher", "fisher-merged"]) == 0
    assert load_adapter(run / "fisher").source == load_adapter(run / "adapter").source
    shown = capsys.readouterr().out
    assert "ensemble is" not in shown and "Its linear head: fisher-merged/head.safetensors" in shown


def test_rank_saves_the_smallest_that_will_do(trained, capsys):
    assert (
        main(["rank", str(trained / "adapter"), "--out", "small", "--ranks", "2", "1", "--tolerance", "1"])
        == 0
    )
    rows = [line for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert "saved" in rows[0] and "32 (whole)" in rows[-1]
    small, whole = load_adapter("small"), load_adapter(trained / "adapter")
    assert {len(t) for name, t in small.state.items() if name.endswith("down")} == {1}
    assert (small.fingerprint, small.alpha) == (whole.fingerprint, whole.alpha)
    assert main(["merge", "small", "merged"]) == 0  # the adapter says which model it belongs to


def test_rank_of_an_adapter_with_a_head_measures_what_the_run_measured(recipe, tmp_path, capsys):
    assert main(["train", recipe, "objective={method: cross_entropy}", "training.epochs=1"]) == 0
    run = tmp_path / "runs" / "tiny-001"
    capsys.readouterr()
    assert main(["rank", str(run / "adapter"), "--out", "small", "--ranks", "1", "--tolerance", "1"]) == 0
    whole = next(line for line in capsys.readouterr().out.splitlines() if "(whole)" in line)
    (measured,) = read_json(run / "result.json")["validation"]
    assert f"{measured['in_distribution']:.1%}" in whole
    assert load_adapter("small").head is not None


def test_rank_outside_of_a_run_asks_for_pictures(trained, tiny_recipe, fails, tmp_path):
    shutil.copytree(trained / "adapter", tmp_path / "alone")
    words = ["--out", "small", "--ranks", "1"]
    assert "lies in no run, so say which pictures" in fails("rank", "alone", *words)
    data = [f"data.{name}={json.dumps(value)}" for name, value in tiny_recipe["data"].items()]
    assert main(["rank", "alone", *data, *words]) == 0


def test_rank_refuses_what_it_could_not_judge(trained, fails, tmp_path):
    adapter = trained / "adapter"
    for tolerance in ("nan", "5", "-0.1"):
        assert "from 0 to 1" in fails("rank", adapter, "--out", "small", "--tolerance", tolerance)
    assert "whole number from 1" in fails("rank", adapter, "--out", "small", "--ranks", "0")
    assert "none of the ranks to try is smaller" in fails("rank", adapter, "--out", "small", "--ranks", "32")
    run = shutil.copytree(trained, tmp_path / "run")
    description = read_json(run / "adapter" / "adapter.json")
    (run / "adapter" / "adapter.json").write_text(json.dumps({**description, "alpha": 0.0}))
    assert "at alpha 0, where it does nothing" in fails("rank", run / "adapter", "--out", "small")
    assert not (tmp_path / "small").exists()


def test_the_average_of_an_adapter_and_itself_merges_into_the_same_model(trained, tiny_recipe):
    adapter = str(trained / "adapter")
    assert main(["average", adapter, adapter, "--out", "mean"]) == 0
    for source, out in ((adapter, "one"), ("mean", "two")):
        assert main(["merge", source, out, "--model", tiny_recipe["model"]]) == 0
    one, two = load("one").module.state_dict(), load("two").module.state_dict()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-6)


def test_an_adapter_of_a_run_is_read_where_nothing_else_was_imported(trained):
    code = f"import tether; print(tether.load_adapter({str(trained / 'adapter')!r}).config.drop)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) >= 0


@pytest.mark.parametrize("method", ["bias_only", "norm_only", "last_blocks"])
def test_every_adapter_can_be_named_in_a_recipe(recipe, tmp_path, method):
    words = [f"adapter={{method: {method}}}", "objective={method: cross_entropy}", "training.epochs=1"]
    assert main(["train", recipe, *words]) == 0
    assert load_adapter(tmp_path / "runs" / "tiny-001" / "adapter").state


@pytest.mark.parametrize(
    "command", [[], ["train"], ["compare"], ["merge"], ["rank"], ["average"], ["zero-shot"], ["search"]]
)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: tether") and len(shown.splitlines()) > 5


# What goes wrong before anything is done: no run directory is made


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["optimizer.lrr=1"], "did you mean 'lr'"),
        (["adapter.dropp=0.1"], "did you mean 'drop'"),
        (["objective.method=mpmnce"], "did you mean 'mpm_nce'"),
        (["training.batch_size=many"], "training.batch_size takes a whole number"),
        (["optimizer.lr=-1"], "optimizer.lr must be positive"),
        (["model=/nowhere/model"], "/nowhere/model"),
        (["data.train=/nowhere/pictures"], "/nowhere/pictures"),
        (["alpha.value=best"], "'auto'"),
        (["--alpha", "best"], "'auto'"),
        (["--resumee", "x"], "did you mean '--resume'"),
        (["--resume", "runs/none"], "no run to go on with at runs/none"),
        (["another-recipe"], "Expected NAME=VALUE"),
        (["name=../elsewhere"], "A run's name"),
    ],
)
def test_a_wrong_word_is_told_and_nothing_is_made(recipe, fails, tmp_path, words, told):
    if words[:2] == ["--resume", "runs/none"]:
        line = fails("train", *words)
    else:
        line = fails("train", recipe, *words)
    assert told in line
    assert not (tmp_path / "runs").exists()


def test_an_unknown_recipe(fails, tmp_path):
    assert "did you mean 'r-adapter'" in fails("train", "r-adaptor")
    assert "Name a recipe" in fails("train")
    assert "Name a recipe" in fails("train", "optimizer.lr=1e-3")
    assert "no file" in fails("train", "none.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    assert "not valid YAML" in fails("train", "broken.yaml")
    (tmp_path / "folder.yaml").mkdir()
    assert "folder.yaml" in fails("train", "folder.yaml")
    assert not (tmp_path / "runs").exists()


def manifest(tmp_path, tiny_data, head):
    rows = [f"circle/{n}.png,circle" for n in range(10)] + [f"square/{n}.png,square" for n in range(10)]
    (tmp_path / "table.csv").write_text("\n".join([head, *rows]) + "\n")
    return [f"data={{method: manifest, path: table.csv, root: {tiny_data['train']}}}", "training.epochs=1"]


def test_a_manifest_trains_and_a_wrong_column_is_told(recipe, tiny_data, fails, tmp_path):
    assert main(["train", recipe, *manifest(tmp_path, tiny_data, "path,label")]) == 0
    line = fails("train", recipe, *manifest(tmp_path, tiny_data, "file,label"))
    assert "path" in line and "file" in line
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_an_empty_class(recipe, tiny_data, fails, tmp_path):
    shutil.copytree(tiny_data["train"], tmp_path / "pictures")
    (tmp_path / "pictures" / "triangle").mkdir()
    line = fails("train", recipe, f"data.train={tmp_path / 'pictures'}")
    assert "triangle" in line and not (tmp_path / "runs").exists()


# What goes wrong on the way: the run can be continued once it is mended


@pytest.mark.parametrize("kind", ["damaged within", "cut short", "gigantic"])
@pytest.mark.parametrize("split", ["train", "outline"])
def test_a_bad_picture_is_named_and_the_run_goes_on_when_it_is_mended(
    recipe, trained, tiny_data, fails, tmp_path, kind, split
):
    for name, source in (("train", tiny_data["train"]), ("outline", tiny_data["shifted"]["outline"])):
        shutil.copytree(source, tmp_path / "pictures" / name)
    # the picture must be one that the split keeps for training
    from tether import recipe as recipes
    from tether.data import load_benchmark

    data = [
        f"data.train={tmp_path / 'pictures' / 'train'}",
        f"data.shifted.outline={tmp_path / 'pictures' / 'outline'}",
    ]
    benchmark = load_benchmark(recipes.read(recipe, data).data)
    examples = benchmark.train.examples if split == "train" else benchmark.tests["outline"].examples
    bad = tmp_path / "pictures" / split / examples[0].image.name
    good = bad.read_bytes()
    kinds = {"damaged within": damaged_within, "cut short": cut_short, "gigantic": gigantic}
    bad.write_bytes(kinds[kind](good))
    line = fails("train", recipe, *data)
    assert str(bad) in line and ("pixels" in line if kind == "gigantic" else "damaged" in line)
    run = tmp_path / "runs" / "tiny-001"
    if kind != "damaged within":  # seen before training
        assert not run.exists()
        return
    assert "is mended" in line and "`tether train --resume runs/tiny-001` goes on" in line
    assert not (run / "result.json").exists() and not (run / "adapter").exists()
    assert not list(run.rglob("*.tmp"))

    bad.write_bytes(good)
    assert main(["train", "--resume", str(run)]) == 0
    assert (run / "adapter/adapter.safetensors").read_bytes() == (
        trained / "adapter/adapter.safetensors"
    ).read_bytes()


def damaged_within(png):
    """The same picture with a wrong bit where its pixels begin."""
    place = png.index(b"IDAT") + 4
    return png[:place] + bytes([png[place] ^ 1]) + png[place + 1 :]


def cut_short(png):
    return png[: len(png) // 2]


def gigantic(png):
    """The same picture with 60,000 × 60,000 pixels in its header."""
    import struct
    import zlib

    header = struct.pack(">II", 60_000, 60_000) + png[24:29]
    checksum = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return png[:16] + header + checksum + png[33:]


def test_a_loss_that_is_no_number_stops_the_run_and_saves_no_adapter(recipe, fails, tmp_path):
    line = fails("train", recipe, "optimizer.lr=1e30", "schedule.warmup=0", "training.clip_norm=null")
    assert "not finite" in line and "lower the learning rate" in line
    run = tmp_path / "runs" / "tiny-001"
    assert not (run / "adapter").exists() and not (run / "result.json").exists()
    assert list(run.glob("non-finite-step-*.json"))


LOCKS = """
import sys
from pathlib import Path
from tether.training import lock
lock.acquire(Path(sys.argv[1]) / "lock")
print(flush=True)
sys.stdin.read()
"""


def test_a_run_in_use_by_a_living_process_is_left_alone_and_taken_over_when_that_is_gone(run, fails):
    (run / "result.json").unlink()  # a finished run is only read, which needs no lock
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", LOCKS, str(run)], **pipes) as other:
        assert other.stdout.readline() == "\n"
        before = files(run)
        assert f"in use by process {other.pid}" in fails("train", "--resume", run)
        assert files(run) == before
        other.kill()
    assert (run / "lock").read_text()
    with RunDirectory.open(run):
        assert "in use" in fails("train", "--resume", run)
    assert main(["train", "--resume", str(run)]) == 0


def test_a_run_goes_on_with_its_own_options_only(run, fails):
    before = files(run)
    assert "optimizer.lr was 0.02 and is 0.5" in fails("train", "--resume", run, "optimizer.lr=0.5")
    assert "leave the recipe out" in fails("train", "r-adapter", "--resume", run)
    assert files(run) == before
    assert main(["train", "--resume", str(run), "training.log_every=1"]) == 0  # this may change


def test_a_finished_run_is_shown_again_and_not_changed(run, capsys):
    before = {
        name: data
        for name, data in files(run).items()
        if name.endswith(("safetensors", "jsonl", "result.json"))
    }
    assert main(["train", "--resume", str(run)]) == 0
    assert "mean of shifted" in capsys.readouterr().out
    after = files(run)
    assert before == {name: after[name] for name in before}


# What goes wrong with adapters


def test_an_adapter_for_another_base(trained, make_tiny_model, fails, tmp_path):
    line = fails("merge", trained / "adapter", "merged", "--model", make_tiny_model(1))
    assert "belongs to a base with fingerprint" in line and "--model" in line
    assert not (tmp_path / "merged").exists() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("damage", ["truncated", "missing", "extra", "changed"])
def test_a_damaged_adapter(run, fails, tmp_path, damage):
    from safetensors.torch import save_file

    file = run / "adapter" / "adapter.safetensors"
    tensors = load_file(file)
    name = min(tensors)
    match damage:
        case "truncated":
            file.write_bytes(file.read_bytes()[:-100])
        case "missing":
            save_file({key: tensor for key, tensor in tensors.items() if key != name}, file)
        case "extra":
            save_file({**tensors, "extra": torch.zeros(1)}, file)
        case "changed":
            save_file({**tensors, name: tensors[name] + 1}, file)
    told = f"{file} is damaged: it was cut short or changed"
    for command in (["merge", run / "adapter", "out"], ["rank", run / "adapter", "--out", "out"]):
        assert told in fails(*command)
    assert told in fails("average", run / "adapter", run / "adapter", "--out", "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(trained, fails, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    adapter = trained / "adapter"
    assert "exists already" in fails("merge", adapter, "there")
    assert "exists already" in fails("rank", adapter, "--out", "there")
    assert "exists already" in fails("average", adapter, adapter, "--out", adapter)
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["mine.txt"]
    assert "no adapter folder" in fails("merge", tmp_path / "there", "out")
    for alpha in ("half", "1.5", "-0.1", "nan", ".nan", ".inf", "true", "{image: 2, text: 0}", "{image: 1}"):
        assert "expected a number from 0 to 1" in fails("merge", adapter, "out", f"--alpha={alpha}")
    assert "is no head.safetensors: expected weight and zero_shot" in fails(
        "merge", adapter, "out", "--head", adapter / "adapter.safetensors"
    )
    assert "holds no ensemble of outputs" in fails("export", trained, "out")


# Ctrl-C outside of training, and real processes


def test_ctrl_c_while_evaluating_leaves_a_run_that_goes_on(recipe, trained, fails, tmp_path, monkeypatch):
    from tether.runs import judge

    with monkeypatch.context() as patch:

        def interrupt(*arguments, **options):
            raise KeyboardInterrupt

        patch.setattr(judge, "alpha_sweep", interrupt)
        line = fails("train", recipe, code=130)
    assert line == "tether: To go on: tether train --resume runs/tiny-001"
    assert main(["train", "--resume", "runs/tiny-001"]) == 0
    name = "adapter/adapter.safetensors"
    assert (tmp_path / "runs/tiny-001" / name).read_bytes() == (trained / name).read_bytes()


def plain(value):
    """Tensors as bytes, so that == compares bits."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value.numpy().tobytes() if hasattr(value, "numpy") else value


def assert_same_end(run, whole):
    for name in ("adapter/adapter.safetensors", "scores.safetensors"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    states = [load_checkpoint(latest_checkpoint(path / "checkpoints")) for path in (run, whole)]
    assert plain(states[0]) == plain(states[1])
    assert not list(run.rglob("*.tmp"))


@pytest.mark.slow
def test_kill_9_at_random_moments_changes_no_bit_of_the_result(tether_processes, tiny_recipe):
    training = {**tiny_recipe["training"], "epochs": 20, "checkpoint_every": 1}
    folder, report = tether_processes("killed", {**tiny_recipe, "training": training})
    texts = {path.name: path.read_text() for path in folder.glob("*.err")}
    assert report["whole"] == 0 and report["codes"][-1] == 0, texts
    assert report["codes"].count(-9) >= 4 and set(report["codes"]) == {0, -9}
    run = Path(report["run"])
    assert_same_end(run, folder / "whole" / "tiny-001")


def test_ctrl_c_ends_with_130_a_checkpoint_and_a_clear_last_line(tether_processes, tiny_recipe, trained):
    training = {**tiny_recipe["training"], "epochs": 20}  # so long that it is stopped on the way
    folder, report = tether_processes("interrupted", {**tiny_recipe, "training": training})
    assert report["sent"] and report["codes"] == [130, 0], (folder / "continued.err").read_text()
    *_, said, last = (folder / "stopped.err").read_text().strip().splitlines()
    step = int(max(report["checkpoints"]).removeprefix("step-"))
    assert f"Stopped by Ctrl-C after step {step} of 60. The checkpoint is written" in said
    assert last == f"tether: To go on: tether train --resume {folder / 'runs' / 'tiny-001'}"
    assert 3 <= step < 60


def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_space(tether_processes, tiny_recipe, trained):
    folder, report = tether_processes("full_disk", tiny_recipe)
    texts = {name: (folder / f"{name}.err").read_text() for name in ("full", "continued", "merge", "merged")}
    assert report["codes"] == [2, 0, 2, 0], texts
    *_, last = texts["full"].strip().splitlines()
    assert last.startswith("tether: Could not write") and "step-00000012" in last
    assert "Training goes on." in texts["full"]  # at the first, with no checkpoint yet
    assert "Could not write" in texts["merge"].strip().splitlines()[-1]
    assert not any("Traceback" in text for text in texts.values())
    assert not any("tmp" in name or "step-" in name for name in report["left"]), report["left"]
    assert "space" in report["there"] and "no-space" not in report["there"]
    assert not any(name.endswith(".tmp") for name in report["there"])
    for name in ("adapter/adapter.safetensors", "scores.safetensors"):
        assert (folder / "runs" / "tiny-001" / name).read_bytes() == (trained / name).read_bytes()


# Texts of users, and what is printed to be given again


def test_a_domain_of_any_name_is_shown_and_what_is_to_be_typed_again_is_quoted(
    recipe, tiny_data, capsys, monkeypatch
):
    from tether.runs import judge

    shifted = json.dumps({"[/red] [v2]\x1b[2J": tiny_data["shifted"]["outline"]})
    words = ["train", recipe, f"data.shifted={shifted}", "training.epochs=1", "--runs", "my [v2] runs"]
    with monkeypatch.context() as patch:

        def interrupt(*arguments, **options):
            raise KeyboardInterrupt

        patch.setattr(judge, "alpha_sweep", interrupt)
        assert main(words) == 130
    assert capsys.readouterr().err.endswith("To go on: tether train --resume 'my [v2] runs/tiny-001'\n")
    assert main(["train", "--resume", "my [v2] runs/tiny-001"]) == 0
    shown = capsys.readouterr()
    assert "[/red] [v2]\\x1b[2J" in shown.out and "\x1b" not in shown.out + shown.err
    assert "Run: my [v2] runs/tiny-001\n" in shown.out
    assert (
        main(["zero-shot", *as_words(tiny_data), f"data.shifted={shifted}", "--model", model_of(recipe)]) == 0
    )
    assert "[/red] [v2]\\x1b[2J" in capsys.readouterr().out


def as_words(data):
    return [f"data.{name}={json.dumps(value)}" for name, value in data.items()]


def model_of(recipe):
    return json.loads(Path(recipe).read_text())["model"]


def test_errors_and_warnings_write_control_characters_out(fails, capsys):
    assert "\\x1b[31mred" in fails("train", "\x1b[31mred")
    main(["recipes"])
    ours = Path(tether.__file__).with_name("errors.py")
    assert warnings.formatwarning("\x1b", UserWarning, str(ours), 1, "") == "tether: \\x1b\n"


# A data file, the sites of a model, the version


@pytest.mark.parametrize("form", ["block", "under data"])
def test_data_of_ones_own_goes_with_any_recipe(recipe, tiny_data, tmp_path, form):
    block = tiny_data if form == "block" else {"data": tiny_data}
    (tmp_path / "my-data.yaml").write_text(json.dumps(block))
    words = ["training.epochs=1", "schedule.warmup=0", f"model={model_of(recipe)}"]
    assert main(["train", "r-adapter", "--data", "my-data.yaml", "data.domain=mine", *words]) == 0
    config = read_json(tmp_path / "runs" / "r-adapter-001" / "config.json")
    assert config["data"]["train"] == tiny_data["train"] and config["data"]["domain"] == "mine"


def test_a_file_that_holds_no_data_is_told(fails, tmp_path):
    (tmp_path / "data.yaml").write_text("train: pictures")
    line = fails("train", "r-adapter", "--data", "data.yaml")
    assert (
        "data.yaml should hold the options of the data alone" in line
        and "found train. Add its method" in line
    )
    assert "no file none.yaml" in fails("compare", "r-adapter", "full", "--data", "none.yaml", "--out", "out")
    (tmp_path / "data.yaml").write_text("{method: folder, trian: pictures}")
    assert "no option 'data.trian'; did you mean 'train'" in fails("train", "full", "--data", "data.yaml")


def test_the_options_of_another_data_method_say_that_it_is_to_be_named(fails):
    line = fails("train", "r-adapter", "data.train=pictures")
    assert "'data.train' belongs to the methods coco, folder, imagenet" in line
    assert "name the one that is meant, as data.method=…, with it" in line


def test_sites_lists_where_an_adapter_can_go(tiny_model, capsys, fails):
    assert main(["sites", str(tiny_model), "--kinds", "attention", "mlp"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "tower", "depth", "kind", "width"]
    assert len(rows) == 8 and {tuple(row.split()[1:]) for row in rows} == {
        (tower, str(depth), kind, "32")
        for tower in ("image", "text")
        for depth in (0, 1)
        for kind in ("attention", "mlp")
    }
    expected = tether.sites(load(tiny_model).module)
    assert [row.split()[0] for row in rows] == [site.path for site in expected]
    assert "did you mean 'attention'" in fails("sites", tiny_model, "--kinds", "atention")


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out == f"tether {tether.__version__}\n"


def test_what_takes_long_is_told_where_output_is_no_terminal(trained, tiny_recipe, capsys, monkeypatch):
    from tether.training import progress

    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0)
    assert main(["zero-shot", *as_words(tiny_recipe["data"]), "--model", tiny_recipe["model"]]) == 0
    told = capsys.readouterr().err
    assert "encoding prompts: " in told and "evaluating outline: 18/18" in told
    recipe = Path(trained).parents[1] / "tiny.yaml"
    assert main(["train", str(recipe), "training.epochs=1"]) == 0
    told = capsys.readouterr().err
    for line in (
        "checking pictures: 42/42",
        "training: 2/3",
        "evaluating validation: 6/6",
        "evaluating colour",
    ):
        assert line in told, told


def test_our_own_warnings_are_plain_lines_and_others_stay_as_they_are(capsys):
    main(["recipes"])
    ours = Path(tether.__file__).with_name("errors.py")
    assert warnings.formatwarning("Mind this.", UserWarning, str(ours), 1, "") == "tether: Mind this.\n"
    assert "elsewhere.py:1: UserWarning" in warnings.formatwarning("No.", UserWarning, "elsewhere.py", 1, "")
