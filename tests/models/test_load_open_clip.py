import json
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from tether.errors import TetherError
from tether.models import ImageSpec, load

TEXTS = ["a cat", "a photo of a dog", "the 2 birds!", ""]
PIXELS = torch.linspace(-2, 2, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)


def edit(folder: Path, change) -> None:
    file = folder / "open_clip_config.json"
    described = json.loads(file.read_text())
    change(described)
    file.write_text(json.dumps(described))


CONFIGURATIONS = {
    "fused attention": {},
    "quick_gelu": {"quick_gelu": True},
    "own attention class": {"vision_cfg": {"qk_norm": True}, "text_cfg": {"scale_fc": True}},
    "layer scale": {"vision_cfg": {"ls_init_value": 0.5}, "text_cfg": {"ls_init_value": 0.5}},
    "CustomTextCLIP": {"custom_text": True},
    "pooled at eos": {"custom_text": True, "text_cfg": {"pool_type": "eos", "eos_id": 713}},
    "projection with bias": {"custom_text": True, "text_cfg": {"proj_bias": True}},
    "SigLIP-like text": {
        "custom_text": True,
        "init_logit_bias": -10,
        "text_cfg": {"no_causal_mask": True, "pool_type": "last"},
    },
    "timm tower": {
        "custom_text": True,
        "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "token"},
    },
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_folder_computes_what_was_saved(name: str, save_open_clip) -> None:
    changes = CONFIGURATIONS[name]
    size = 160 if name == "timm tower" else 32
    folder, saved = save_open_clip({"size": size}, **changes)
    model = load(folder)
    assert model.family == "open_clip"
    assert model.image.size == size
    assert model.context_length == 24
    pixels = F.interpolate(PIXELS, size)
    with torch.no_grad():
        image, text = model.encode_image(pixels), model.encode_text(model.tokenize(TEXTS))
        assert torch.equal(image, saved.encode_image(pixels, normalize=True))
        torch.testing.assert_close(
            text, saved.encode_text(model.tokenize(TEXTS), normalize=True), atol=2e-6, rtol=0
        )
    assert not model.module.training
    assert model.logit_scale == pytest.approx(1 / 0.07)
    assert model.logit_bias == (-10 if name == "SigLIP-like text" else None)


def test_it_reads_what_open_clip_itself_reads(save_open_clip) -> None:
    """The same folder through open_clip's own factory: same weights, tokens, preparation of pictures."""
    folder, _ = save_open_clip({"size": 32, "mean": [0.5] * 3, "std": [0.25] * 3, "resize_mode": "squash"})
    theirs = open_clip.create_model(f"local-dir:{folder}")
    ours = load(folder)
    assert ours.image == ImageSpec(size=32, mean=(0.5,) * 3, std=(0.25,) * 3, resize="squash")
    assert ours.module.visual.preprocess_cfg == theirs.visual.preprocess_cfg
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.module.state_dict()[name], tensor)
    assert torch.equal(ours.tokenize(TEXTS), open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS))


def test_half_precision_weights_load_as_fp32_and_the_other_way(clip: Path) -> None:
    file = clip / "open_clip_model.safetensors"
    half = {name: tensor.half() for name, tensor in load_file(file).items()}
    save_file(half, file)
    assert load(clip).dtype == torch.float32
    small = load(clip, dtype=torch.bfloat16)
    assert small.dtype == torch.bfloat16
    assert small.encode_image(PIXELS).dtype == torch.float32


def test_weights_that_do_not_fit_are_listed(clip: Path) -> None:
    file = clip / "open_clip_model.safetensors"
    state = load_file(file)
    state["visual.proj"] = state["visual.proj"][:, :8].contiguous()
    state["extra"] = state.pop("ln_final.weight")
    state["ln_final.bias"][0] = float("nan")
    save_file(state, file)
    with pytest.raises(TetherError) as error:
        load(clip)
    for part in (
        "missing: ln_final.weight",
        "unexpected: extra",
        "(32, 8)",
        "(32, 16)",
        "infinite: ln_final.bias",
    ):
        assert part in str(error.value)


def test_position_embeddings_are_never_resized_silently(clip: Path) -> None:
    edit(clip, lambda described: described["model_cfg"]["vision_cfg"].update(image_size=64))
    edit(clip, lambda described: described["preprocess_cfg"].update(size=64))
    with pytest.raises(TetherError, match=r"visual.positional_embedding is \(17, 32\).*\(65, 32\)"):
        load(clip)


def test_a_file_cut_short_is_refused(clip: Path) -> None:
    file = clip / "open_clip_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(TetherError, match="cut short"):
        load(clip)


def test_pickled_weights_are_never_loaded(clip: Path) -> None:
    (clip / "open_clip_model.safetensors").unlink()
    (clip / "open_clip_pytorch_model.bin").write_bytes(b"would run code")
    with pytest.raises(TetherError, match=r"open_clip_pytorch_model.bin.*pickled"):
        load(clip)


def test_sizes_that_contradict_each_other_are_refused(save_open_clip) -> None:
    folder, _ = save_open_clip({"size": 64})
    with pytest.raises(TetherError, match=r"64 pixels.*takes 32"):
        load(folder)


def test_a_timm_tower_of_another_size_is_refused(save_open_clip) -> None:
    """open_clip builds a timm model at the size in its name, whatever image_size says."""
    vision = {"image_size": 128, "timm_model_name": "test_vit", "timm_pool": "token"}
    folder, _ = save_open_clip({"size": 128}, custom_text=True, vision_cfg=vision)
    with pytest.raises(TetherError, match=r"image_size is 128.*160"):
        load(folder)


def test_pictures_may_be_wider_than_high(save_open_clip) -> None:
    folder, saved = save_open_clip({"size": [32, 64]}, vision_cfg={"image_size": [32, 64]})
    model = load(folder)
    assert (model.image.size, model.image.height, model.image.width) == ((32, 64), 32, 64)
    pixels = torch.randn(2, 3, 32, 64)
    with torch.no_grad():
        assert torch.equal(model.encode_image(pixels), saved.encode_image(pixels, normalize=True))
    with pytest.raises(TetherError, match=r"32 × 64 pixels.*64 × 32"):
        model.encode_image(torch.zeros(1, 3, 64, 32))


def test_activation_is_the_folders_and_contradictions_are_refused(save_open_clip) -> None:
    folder, _ = save_open_clip(quick_gelu=True)
    assert load(folder).activation == "quick_gelu"
    with pytest.raises(TetherError, match="contradicts"):
        load(folder, activation="gelu")
    edit(folder, lambda described: described["model_cfg"].pop("quick_gelu"))
    assert load(folder).activation == "gelu"
    assert load(folder, activation="quick_gelu").activation == "quick_gelu"
    with pytest.raises(TetherError, match="'gelu' or 'quick_gelu'"):
        load(folder, activation="relu")


def test_a_tokenizer_of_another_vocabulary_is_refused(clip: Path) -> None:
    edit(clip, lambda described: described["model_cfg"]["text_cfg"].pop("hf_tokenizer_name"))
    with pytest.raises(TetherError, match=r"tokenizer.json.*does not use"):
        load(clip)
    (clip / "tokenizer.json").unlink()
    with pytest.raises(TetherError, match=r"knows 49408 words.*714 rows"):
        load(clip)


def test_a_tokenizer_much_smaller_than_the_table_is_refused(save_open_clip) -> None:
    folder, _ = save_open_clip(text_cfg={"vocab_size": 800})
    with pytest.raises(TetherError, match=r"knows 714 words.*800 rows"):
        load(folder)


@pytest.mark.parametrize("eos", [2, 712])
def test_a_tower_that_would_not_pool_at_the_end_is_refused(eos: int, save_open_clip) -> None:
    text = {"pool_type": "eos", "eos_id": eos}
    folder, _ = save_open_clip(custom_text=True, text_cfg=text)
    with pytest.raises(TetherError, match="not where they end"):
        load(folder)


def test_a_folder_that_asks_for_remote_code_is_refused(clip: Path) -> None:
    options = {"tokenizer_kwargs": {"trust_remote_code": True}}
    edit(clip, lambda described: described["model_cfg"]["text_cfg"].update(options))
    with pytest.raises(TetherError, match="never run"):
        load(clip)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model_cfg": {"embed_dim": 3}}'])
def test_a_broken_configuration_is_refused(content: str, clip: Path) -> None:
    (clip / "open_clip_config.json").write_text(content)
    with pytest.raises(TetherError):
        load(clip)


def test_an_unknown_setting_is_refused(clip: Path) -> None:
    edit(clip, lambda described: described["model_cfg"]["vision_cfg"].update(widht=32))
    with pytest.raises(TetherError, match="widht"):
        load(clip)


def test_a_tokenizer_file_beside_weights_that_use_clips_own(save_open_clip) -> None:
    """open_clip's hub folders carry CLIP's tokenizer without using it; another one there is an error."""
    text = {"vocab_size": 49408, "context_length": 77, "hf_tokenizer_name": ""}
    folder, _ = save_open_clip(text_cfg=text)
    words = dict(SimpleTokenizer().encoder)
    words["<|startoftext|>"], words["<|endoftext|>"] = (
        words.pop("<start_of_text>"),
        words.pop("<end_of_text>"),
    )
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": words}}))
    assert load(folder).tokenize(["a"]).tolist()[0][:3] == [49406, 320, 49407]
    words["a</w>"], words["the</w>"] = words["the</w>"], words["a</w>"]
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": words}}))
    with pytest.raises(TetherError, match="does not use"):
        load(folder)


class TestArchitectures:
    @pytest.fixture
    def weights(self, architectures, tmp_path: Path) -> Path:
        file = tmp_path / "weights.safetensors"
        save_file(architectures["tiny"].state_dict(), file)
        return file

    def test_a_weights_file_must_say_its_activation(self, weights: Path) -> None:
        source = f"open_clip:tiny/{weights}"
        with pytest.raises(TetherError, match=r"GELU or QuickGELU.*activation="):
            load(source)
        assert load(source, activation="gelu").activation == "gelu"
        assert load(source, activation="quick_gelu").activation == "quick_gelu"
        assert load(f"open_clip:tiny-quickgelu/{weights}").activation == "quick_gelu"
        with pytest.raises(TetherError, match="contradicts"):
            load(f"open_clip:tiny-quickgelu/{weights}", activation="gelu")

    def test_it_computes_what_was_saved(self, weights: Path, architectures) -> None:
        model = load(f"open_clip:tiny/{weights}", activation="gelu")
        tokens = model.tokenize(TEXTS)
        assert tokens.shape == (4, 77)
        with torch.no_grad():
            expected = architectures["tiny"].encode_text(tokens, normalize=True)
            torch.testing.assert_close(model.encode_text(tokens), expected, atol=2e-6, rtol=0)

    def test_other_files_are_refused(self, architectures) -> None:
        with pytest.raises(TetherError, match="no weights file"):
            load("open_clip:tiny/nowhere.safetensors", activation="gelu")
        with pytest.raises(TetherError, match=r"\.safetensors"):
            load("open_clip:tiny/weights.pt")

    def test_unknown_names_get_suggestions(self, architectures) -> None:
        with pytest.raises(TetherError, match="'ViT-B-16'"):
            load("open_clip:ViT-B16/openai")
        with pytest.raises(TetherError, match="openai"):
            load("open_clip:ViT-B-16/openia")
        with pytest.raises(TetherError, match="Which weights"):
            load("open_clip:ViT-B-16")

    @pytest.mark.parametrize("architecture", ["tiny", "tiny-quickgelu"])
    @pytest.mark.parametrize("quick", [True, False])
    def test_a_tag_decides_the_activation(
        self, architecture: str, quick: bool, architectures, hub, tmp_path: Path, monkeypatch
    ) -> None:
        """OpenAI's weights in an architecture of another activation run with OpenAI's activation."""
        import open_clip.pretrained as pretrained

        (tmp_path / "files").mkdir()
        save_file(architectures["tiny"].state_dict(), tmp_path / "files" / "open_clip_model.safetensors")
        hub("some/tiny", tmp_path / "files")
        tag = {"hf_hub": "some/tiny/", "quick_gelu": quick, "mean": (0.1,) * 3, "std": (0.2,) * 3}
        monkeypatch.setitem(pretrained._PRETRAINED, architecture, {"some_tag": tag})
        model = load(f"open_clip:{architecture}/some_tag")
        assert model.activation == ("quick_gelu" if quick else "gelu")
        assert model.image == ImageSpec(size=32, mean=(0.1,) * 3, std=(0.2,) * 3)
        with pytest.raises(TetherError, match="contradicts"):
            load(f"open_clip:{architecture}/some_tag", activation="gelu" if quick else "quick_gelu")

    def test_a_tag_that_says_nothing_leaves_the_architectures_activation(
        self, architectures, hub, tmp_path: Path, monkeypatch
    ) -> None:
        import open_clip.pretrained as pretrained

        (tmp_path / "files").mkdir()
        save_file(architectures["tiny"].state_dict(), tmp_path / "files" / "weights.safetensors")
        hub("some/tiny", tmp_path / "files")
        for architecture, expected in (("tiny", "gelu"), ("tiny-quickgelu", "quick_gelu")):
            tag = {"hf_hub": "some/tiny/weights.bin"}
            monkeypatch.setitem(pretrained._PRETRAINED, architecture, {"some_tag": tag})
            assert load(f"open_clip:{architecture}/some_tag").activation == expected

    def test_a_tag_with_only_a_pickle_is_refused(self, architectures, monkeypatch) -> None:
        import open_clip.pretrained as pretrained

        tag = {"url": "https://example.org/weights.pt", "hf_hub": ""}
        monkeypatch.setitem(pretrained._PRETRAINED, "tiny", {"old": tag})
        with pytest.raises(TetherError, match="pickled"):
            load("open_clip:tiny/old")


@pytest.mark.parametrize(
    ("tower", "settings"),
    [
        ("vision_cfg", {"layers": 1_000_000}),
        ("vision_cfg", {"width": 1_000_000}),
        ("vision_cfg", {"mlp_ratio": 1e7}),
        ("vision_cfg", {"image_size": 1_000_000}),
        ("vision_cfg", {"timm_model_name": "vit_giant_patch14_224", "image_size": 224}),
        ("text_cfg", {"layers": 10**9}),
        ("text_cfg", {"width": 4_000_000}),
        ("text_cfg", {"vocab_size": 10**9}),
        ("text_cfg", {"context_length": 10**8}),
    ],
)
def test_a_configuration_that_asks_for_more_than_the_weights_fill_is_refused(
    tower: str, settings: dict, clip: Path
) -> None:
    edit(clip, lambda described: described["model_cfg"][tower].update(settings))
    with pytest.raises(
        TetherError, match=r"far more than its weights fill: open_clip_model\.safetensors holds"
    ):
        load(clip)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(model_cfg=[1]), r"model_cfg in .* should hold settings by name, found \[1\]"),
        (lambda d: d.update(preprocess_cfg=[1]), "preprocess_cfg in .* should hold settings by name"),
        (lambda d: d["model_cfg"].update(vision_cfg=[1]), "no vision_cfg and text_cfg"),
        (lambda d: d["model_cfg"].update(text_cfg=[1]), "no vision_cfg and text_cfg"),
        (lambda d: d["model_cfg"].update(embed_dim=[1]), "cannot build the model"),
        (lambda d: d["model_cfg"]["vision_cfg"].update(head_width=0), "cannot build the model"),
        (
            lambda d: d["model_cfg"]["vision_cfg"].update(timm_model_name="local-dir:/tmp/trunk"),
            "image tower from 'local-dir:/tmp/trunk'. Expected a name that timm knows",
        ),
        (
            lambda d: d["preprocess_cfg"].update(std=[0.5, 0, 0.5]),
            "three numbers greater than 0, one per channel",
        ),
        (
            lambda d: d["preprocess_cfg"].update(mean=[0.5, 0.5]),
            r"mean of .* three numbers, .* found \[0.5, 0.5\]",
        ),
        (lambda d: d["preprocess_cfg"].update(mean="half"), "mean of .* found 'half'"),
    ],
)
def test_a_configuration_of_another_form_is_refused(change, message: str, clip: Path) -> None:
    edit(clip, change)
    with pytest.raises(TetherError, match=message):
        load(clip)
