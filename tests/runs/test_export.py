"""Merged folders of both libraries load like any other and answer as the adapter did."""

from dataclasses import dataclass, replace

import pytest
import torch

from tether._alpha import tower_of
from tether.adapters import Attached, FullConfig, RAdapterConfig, attach
from tether.adapters.files import load_adapter, save_adapter
from tether.adapters.head import Head, save_head
from tether.config import method
from tether.errors import TetherError
from tether.families import AdapterConfig
from tether.models import load
from tether.runs.export import base_of, export


@pytest.fixture(scope="module")
def transformers_clip(tmp_path_factory, tiny_model):
    """A folder of a tiny transformers CLIP."""
    import transformers as hf

    tokenizer = hf.AutoTokenizer.from_pretrained(tiny_model)
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"pad_token_id": len(tokenizer) - 1, "eos_token_id": len(tokenizer) - 1}
    words = {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "bos_token_id": len(tokenizer) - 2}
    config = hf.CLIPConfig(
        text_config=tower | words | special,
        vision_config=tower | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    folder = tmp_path_factory.mktemp("clip")
    hf.CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(params=["open_clip", "transformers"])
def base(request, tiny_model, transformers_clip):
    return tiny_model if request.param == "open_clip" else transformers_clip


def features(model):
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    tokens = model.tokenize(["a photo of a circle", "a cross"])
    with torch.no_grad():
        return torch.cat([model.encode_image(pixels), model.encode_text(tokens)])


@pytest.mark.parametrize("alpha", [None, {"image": 0.25, "text": 1.0}])
def test_a_merged_folder_answers_as_the_merged_model(base, tmp_path, alpha):
    model = load(base)
    before = features(model)
    attached = attach(model, RAdapterConfig(drop=0.0))
    with torch.no_grad():
        for parameter in attached.named_parameters().values():
            parameter.add_(0.3 * torch.randn_like(parameter))
    attached.eval_mode()
    save_adapter(tmp_path / "adapter", attached, alpha=0.5)
    attached.merge(0.5 if alpha is None else alpha)
    expected = features(model)
    report = export(str(base), tmp_path / "adapter", tmp_path / "out", alpha=alpha)
    merged = load(tmp_path / "out")
    torch.testing.assert_close(features(merged), expected, rtol=1e-5, atol=1e-6)
    assert (features(merged) - before).abs().max() > 1e-3
    assert report.max_error < 1e-5
    names = {path.name for path in base.iterdir()}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names | {"CARD.md"}


def test_an_adapter_says_which_model_it_belongs_to_from_any_folder(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_model.parent)
    save_adapter(tmp_path / "adapter", attach(load(tiny_model.name), RAdapterConfig()))
    monkeypatch.chdir(tmp_path)
    assert base_of(load_adapter(tmp_path / "adapter"), tmp_path / "adapter") == str(tiny_model)
    export(None, tmp_path / "adapter", tmp_path / "out")
    assert load(tmp_path / "out").fingerprint() == load(tiny_model).fingerprint()


def test_a_model_that_is_not_where_it_was_is_asked_for(tiny_model, tmp_path, monkeypatch):
    folder = tmp_path / "run" / "adapter"
    save_adapter(folder, attach(load(tiny_model).module, RAdapterConfig()))  # a bare module says nothing
    adapter = load_adapter(folder)
    with pytest.raises(TetherError, match=r"does not say which model.*--model"):
        base_of(adapter, folder)
    (tmp_path / "run" / "config.json").write_text('{"model": "models/clip"}')
    with pytest.raises(TetherError, match=r"no 'models/clip' here.*--model"):
        export(None, folder, tmp_path / "out")
    (tmp_path / "models" / "clip").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert base_of(adapter, folder) == "models/clip"
    assert base_of(replace(adapter, source="builtin"), folder) == "builtin"


def test_what_is_no_head_is_told(tiny_model, tmp_path):
    save_adapter(tmp_path / "adapter", attach(load(tiny_model), RAdapterConfig()))
    wrong = tmp_path / "adapter" / "adapter.safetensors"
    with pytest.raises(TetherError, match=r"no head\.safetensors: expected weight and zero_shot"):
        export(None, tmp_path / "adapter", tmp_path / "out", head=wrong)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("own_methods")
def test_a_method_that_is_not_linear_in_the_weights_is_not_merged(tiny_model, tmp_path):
    @method("squared_shift")
    @dataclass(frozen=True, kw_only=True)
    class Config(AdapterConfig):
        def attach(self, model, *, seed=0):
            return Shifted(model, self)

    class Shifted(Attached):
        """A parameter whose square is added to the output of a block."""

        def __init__(self, model, config):
            super().__init__(model, config)
            self._shift = torch.nn.Parameter(torch.zeros(32))
            self._start()

        def named_parameters(self):
            return {"shift": self._shift}

        def _engage(self):
            block = self.module.visual.transformer.resblocks[0]
            self._hook = block.register_forward_hook(lambda block, given, output: output + self._shift**2)

        def _withdraw(self):
            self._hook.remove()

    save_adapter(tmp_path / "adapter", attach(load(tiny_model), Config()))
    with pytest.raises(TetherError, match=r"method squared_shift is not linear .* cannot be merged\. Use"):
        export(None, tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_was_made_in_memory_is_refused(tiny_model, tmp_path):
    with pytest.raises(TetherError, match="made in memory"):
        replace(load(tiny_model), describe=None).save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("config", [RAdapterConfig(drop=0.0), FullConfig()], ids=["r_adapter", "full"])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_tower_that_would_answer_no_numbers_is_not_saved(tiny_model, tmp_path, config, tower):
    """The tensors of the adapter are finite, and so are the merged ones."""
    attached = attach(load(tiny_model), config)
    with torch.no_grad():
        for name, parameter in attached.named_parameters().items():
            if tower_of(name) == tower and "mlp.c_proj" in name and "weight" in name:
                parameter.fill_(1e38)
    save_adapter(tmp_path / "adapter", attached)
    with pytest.raises(TetherError, match=r"NaN or infinity.*nothing was merged"):
        export(None, tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_head_that_is_no_number_is_not_saved(tiny_model, tmp_path):
    save_adapter(tmp_path / "adapter", attach(load(tiny_model), RAdapterConfig()))
    head = torch.full((3, 8), torch.nan)
    save_head(tmp_path / "head.safetensors", Head(head, torch.zeros(3, 8)))
    with pytest.raises(TetherError, match=r"The head in .* holds NaN or infinity, so it is not saved"):
        export(None, tmp_path / "adapter", tmp_path / "out", head=tmp_path / "head.safetensors")
    assert not (tmp_path / "out").exists()
