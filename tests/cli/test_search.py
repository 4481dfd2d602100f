import pytest
import torch
from PIL import Image

import tether
from tether.cli import main
from tether.evaluation.picture_index import search


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    (tmp_path / "pictures").mkdir()
    for colour in ("red", "green", "blue"):
        Image.new("RGB", (20, 24), colour).save(tmp_path / "pictures" / f"{colour}.png")
    return tmp_path / "pictures"


@pytest.fixture
def adapter(tiny_model, tmp_path):
    attached = tether.attach(tether.load(tiny_model), tether.RAdapterConfig(drop=0.0), seed=0)
    with torch.no_grad():
        for number, parameter in enumerate(attached.named_parameters().values()):
            parameter.add_(
                0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            )
    tether.save_adapter(tmp_path / "adapter", attached, alpha=0.5)
    return tmp_path / "adapter"


def lines(matches):
    return [f"{match.score:.3f}  {match.image}" for match in matches]


def test_a_line_for_each_picture(tiny_model, folder, tmp_path, capsys):
    words = [
        "search",
        str(tiny_model),
        str(folder),
        "a red apple",
        "-k",
        "2",
        "--cache",
        str(tmp_path / "mine"),
    ]
    assert main(words) == 0
    expected = search(tether.load(tiny_model), folder, "a red apple", 2, cache=tmp_path / "other")
    assert capsys.readouterr().out.splitlines() == lines(expected)
    assert (tmp_path / "mine").is_dir() and not (tmp_path / "user").exists()


@pytest.mark.parametrize(
    ("words", "alpha"),
    [([], 0.5), (["--alpha", "1"], 1.0), (["--alpha", "{image: 0, text: 1}"], {"image": 0.0, "text": 1.0})],
)
def test_with_an_adapter(tiny_model, folder, adapter, capsys, words, alpha):
    assert main(["search", str(tiny_model), str(folder), "a tree", "--adapter", str(adapter), *words]) == 0
    model = tether.load(tiny_model)
    from tether.adapters.files import apply

    apply(model, adapter).merge(alpha)
    assert capsys.readouterr().out.splitlines() == lines(search(model, folder, "a tree"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--alpha", "0.3"], "--alpha belongs to an adapter; name it: --adapter FOLDER."),
        (["--adapter", "nowhere"], "nowhere is no adapter folder"),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(tiny_model, folder, capsys, words, message):
    assert main(["search", str(tiny_model), str(folder), "a tree", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tether: ") and message in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--alpha", "half"], "--alpha: expected a number from 0 to 1"),
        (["--alpha", "1.5"], "--alpha: expected a number from 0 to 1"),
        (["-k", "0"], "-k: expected a whole number from 1"),
    ],
)
def test_numbers_out_of_range(tiny_model, folder, adapter, capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        main(["search", str(tiny_model), str(folder), "a tree", "--adapter", str(adapter), *words])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
