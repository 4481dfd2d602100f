"""The card of a merged model says what it is, and its code loads it without the rest of tether."""

import re
import subprocess
import sys

import pytest
import torch
from PIL import Image

from tether._files import save_tensors
from tether.adapters import RAdapterConfig, attach
from tether.adapters.files import save_adapter
from tether.adapters.head import Head
from tether.cli import main
from tether.data.transforms import test_transform as plain_transform
from tether.models import load
from tether.runs.export import export

from ..models.image_models import save_timm, save_torchvision


def merged(source, folder, *, alpha=0.5, head=None):
    """A merged model in `folder/merged`, and its report."""
    attached = attach(load(source), RAdapterConfig(rank=1, drop=0.0))
    with torch.no_grad():
        for parameter in attached.named_parameters().values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_adapter(folder / "adapter", attached, alpha=alpha, head=head)
    return export(None, folder / "adapter", folder / "merged")


def code(card):
    return re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]


def test_open_clip_loads_the_merged_built_in_model_as_its_card_says(tmp_path):
    report = merged("builtin", tmp_path)
    card = (tmp_path / "merged" / "CARD.md").read_text()
    assert card.startswith("# merged\n\nThe model `builtin` with an adapter merged into its weights")
    assert (
        f"| alpha | 0.5 (0 is the base, 1 the tuned model) |\n| tensors changed | {len(report.changed)} |"
        in card
    )
    assert f"| {report.max_error:.2e}, {report.relative_error:.2e} of the largest output |" in card
    assert f"fingerprint `{load('builtin').fingerprint()}`" in card
    assert f"| adapter | `{tmp_path / 'adapter'}`, method `r_adapter` |" in card
    assert (tmp_path / "merged" / "BASE-CARD.md").read_text().startswith("# The built-in model")

    model = load(tmp_path / "merged")
    pixels = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    texts = ["a Cat, & a dog", "star"]
    with torch.no_grad():
        expected = torch.cat([model.encode_image(pixels), model.encode_text(model.tokenize(texts))])
    save_tensors(tmp_path / "expected.safetensors", {"pixels": pixels, "features": expected})
    check = f"""
import torch
from safetensors.torch import load_file
given = load_file("expected.safetensors")
with torch.no_grad():
    image = model.eval().encode_image(given["pixels"], normalize=True)
    text = model.encode_text(tokenizer({texts!r}), normalize=True)
torch.testing.assert_close(torch.cat([image, text]), given["features"])
"""
    done = subprocess.run(  # a process that has not loaded the tower
        [sys.executable, "-c", code(card) + check], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_model_of_open_clip_needs_nothing_of_tether(tiny_model, tmp_path, monkeypatch):
    merged(tiny_model, tmp_path, alpha={"image": 0.25, "text": 1.0})
    card = (tmp_path / "merged" / "CARD.md").read_text()
    assert "tether" not in code(card) and "BASE-CARD" not in card and "linear head" not in card
    assert "| alpha | image 0.25, text 1 (0" in card
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code(card), names)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found = names["model"].eval().encode_image(pixels, normalize=True)
        torch.testing.assert_close(found, load("merged").encode_image(pixels))


@pytest.fixture(params=["timm", "torchvision"])
def image_model(request, tmp_path, monkeypatch):
    """The folder of a model without texts."""
    if request.param == "timm":
        return save_timm(tmp_path / "base")
    return save_torchvision(tmp_path / "base", monkeypatch)


def test_a_model_without_texts_is_merged_and_its_library_loads_it_as_its_card_says(
    image_model, tmp_path, monkeypatch
):
    base = load(image_model)
    head = Head(torch.randn(3, base.dim), torch.randn(3, base.dim))
    report = merged(image_model, tmp_path, head=head)
    card = (tmp_path / "merged" / "CARD.md").read_text()
    assert (
        f"an ordinary {base.family} model" in card and "two texts" not in card and "tether" not in code(card)
    )
    assert f"times {base.dim**0.5:.6g} (√dim)" in card
    assert report.max_error < 1e-5
    model = load(tmp_path / "merged")
    pixels = torch.randn(2, 3, 32, 32)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code(card), names)
    with torch.no_grad():
        torch.testing.assert_close(names["model"](pixels), model.features(pixels))
        assert not torch.allclose(model.features(pixels), base.features(pixels), atol=1e-5)
    picture = Image.effect_noise((50, 40), 60).convert("RGB")
    torch.testing.assert_close(names["preprocess"](picture), plain_transform(model.image)(picture))


def test_the_card_tells_of_a_head(tiny_model, tmp_path):
    merged(tiny_model, tmp_path)
    ends = {"weight": torch.ones(3, 16), "zero_shot": torch.zeros(3, 16)}
    save_tensors(tmp_path / "head.safetensors", ends)
    export(None, tmp_path / "adapter", tmp_path / "other", head=tmp_path / "head.safetensors")
    assert "`head.safetensors` holds the linear head" in (tmp_path / "other" / "CARD.md").read_text()


@pytest.mark.parametrize("again", [False, True])
def test_the_command_names_the_card(tiny_model, tmp_path, capsys, again):
    merged(tiny_model, tmp_path)
    capsys.readouterr()
    source = tmp_path / "merged" if again else tiny_model
    if again:  # a model that was merged already: its card becomes the base's
        save_adapter(tmp_path / "second", attach(load(source), RAdapterConfig(rank=1)))
    adapter = tmp_path / ("second" if again else "adapter")
    assert main(["merge", str(adapter), str(tmp_path / "out")]) == 0
    assert (
        f"Model: {tmp_path / 'out'}; {tmp_path / 'out' / 'CARD.md'} says how to load it."
        in capsys.readouterr().out
    )
    assert (tmp_path / "out" / "BASE-CARD.md").exists() == again
