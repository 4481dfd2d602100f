"""From an adapter to a folder of peft's and back, by command, on a model in the hub's layout."""

from pathlib import Path

import peft
import pytest
import torch
import transformers as hf

from tether._files import read_json
from tether.adapters import RAdapterConfig, attach, load_adapter, save_adapter
from tether.adapters.head import Head
from tether.cli import main
from tether.errors import TetherError
from tether.models import load
from tether.runs import peft as runs_peft

from ..adapters.r_adapter.test_method import disturb

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture
def vit(tmp_path, monkeypatch):
    """A folder of a tiny ViT with random weights; the test runs beside it."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = hf.ViTConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    hf.ViTModel(config, add_pooling_layer=False).save_pretrained("vit")
    hf.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained("vit")
    return "vit"


@torch.no_grad()
def test_there_and_back_again(vit, capsys):
    model = load(vit)
    attached = attach(model, RAdapterConfig(rank=2))
    disturb(attached, 0.3)
    head = Head(torch.randn(3, 16), torch.zeros(3, 16))
    save_adapter("adapter", attached, alpha=0.5, head=head)
    attached.merge(0.5)
    pixels = torch.randn(2, 3, 16, 16)
    expected = model.module(pixel_values=pixels).last_hidden_state
    assert main(["export", "adapter", "--peft", "out"]) == 0
    told = capsys.readouterr().out
    assert "LoRA at alpha 0.5: out" in told and "which peft does not read: out/head.safetensors" in told
    assert read_json(Path("out/adapter_config.json"))["base_model_name_or_path"].endswith("/vit")
    base = hf.AutoModel.from_pretrained(vit, add_pooling_layer=False)
    theirs = peft.PeftModel.from_pretrained(base, "out").eval()
    torch.testing.assert_close(theirs(pixel_values=pixels).last_hidden_state, expected, rtol=1e-5, atol=1e-5)
    assert main(["import", "out", "again"]) == 0  # peft's description names the base
    assert "Adapter of 4 linears, rank 2: again" in capsys.readouterr().out
    assert load_adapter("again").fingerprint == load(vit).fingerprint()
    assert main(["merge", "again", "merged"]) == 0
    merged = load("merged").module(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-5)


def test_what_fails_leaves_nothing_and_overwrites_nothing(vit, tmp_path, monkeypatch, capsys):
    save_adapter("adapter", attach(load(vit), RAdapterConfig()))
    before = sorted(tmp_path.iterdir())
    assert main(["export", "adapter", "out", "--peft"]) == 2
    assert "has full rank" in capsys.readouterr().err
    assert main(["export", "adapter", "out", "--alpha", "0.5"]) == 2
    assert "--model and --alpha belong to an adapter for peft; say so: --peft" in capsys.readouterr().err
    save_adapter("small", attach(load(vit), RAdapterConfig(rank=2)))
    with monkeypatch.context() as patch:
        patch.setattr("tether.adapters.peft_files.write_json", full_disk)
        assert main(["export", "small", "out", "--peft"]) == 2
        assert "Could not write out: No space left" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "small"])
    assert main(["export", "small", "vit", "--peft"]) == 2
    assert "vit exists already, and nothing is overwritten" in capsys.readouterr().err
    assert main(["import", "small", "small"]) == 2
    assert "small exists already, and nothing is overwritten" in capsys.readouterr().err
    with pytest.raises(TetherError, match=r"does not say which model it belongs to.*--model"):
        runs_peft.import_peft(Path("small"), Path("out"))
    with pytest.raises(TetherError, match=r"no adapter_config\.json"):
        runs_peft.import_peft(Path("small"), Path("out"), vit)


def full_disk(*arguments):
    raise OSError(28, "No space left on device")
