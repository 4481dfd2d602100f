import json
from io import BytesIO
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from tether.errors import TetherError
from tether.models import ImageSpec, load

TEXTS = ["a cat", "a photo of a dog", "two birds!", ""]
PIXELS = torch.linspace(-2, 2, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)


def edit(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("eos", [713, 2])
def test_clip_computes_what_was_saved(eos: int, save_transformers) -> None:
    """Also with the old eos_token_id 2, where CLIP pools at the largest id."""
    folder, saved = save_transformers("clip", text={"eos_token_id": eos})
    model = load(folder)
    assert model.family == "transformers"
    assert model.activation == "quick_gelu"
    assert (model.context_length, model.image.size, model.image.resize) == (24, 32, "shortest")
    assert model.logit_bias is None
    tokens = model.tokenize(TEXTS)
    with torch.no_grad():
        image = F.normalize(saved.get_image_features(pixel_values=PIXELS).pooler_output, dim=-1)
        text = F.normalize(saved.get_text_features(input_ids=tokens).pooler_output, dim=-1)
        assert torch.equal(model.encode_image(PIXELS), image)
        torch.testing.assert_close(model.encode_text(tokens), text, atol=2e-6, rtol=0)


@pytest.mark.parametrize("kind", ["siglip", "siglip2"])
def test_siglip_computes_what_was_saved(kind: str, save_transformers) -> None:
    folder, saved = save_transformers(kind)
    model = load(folder)
    assert model.activation == "gelu_tanh"
    assert model.image == ImageSpec(
        size=32, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation=model.image.interpolation, resize="squash"
    )
    assert model.logit_bias == pytest.approx(float(saved.logit_bias.detach()))
    assert model.logit_scale == pytest.approx(float(saved.logit_scale.detach().exp()))
    tokens = model.tokenize(TEXTS)
    assert tokens.shape == (4, 24)
    with torch.no_grad():
        text = F.normalize(saved.get_text_features(input_ids=tokens).pooler_output, dim=-1)
        assert torch.equal(model.encode_text(tokens), text)
        if kind == "siglip":
            image = saved.get_image_features(pixel_values=PIXELS).pooler_output
        else:
            from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

            image = saved.get_image_features(
                pixel_values=torch.stack([convert_image_to_patches(picture, 8) for picture in PIXELS]),
                pixel_attention_mask=torch.ones(2, 16, dtype=torch.int32),
                spatial_shapes=torch.full((2, 2), 4),
            ).pooler_output
        assert torch.equal(model.encode_image(PIXELS), F.normalize(image, dim=-1))


def test_the_first_siglip_as_the_hub_has_it_with_a_sentencepiece_model(save_transformers) -> None:
    from sentencepiece import SentencePieceTrainer

    folder, _ = save_transformers("siglip")
    (folder / "tokenizer.json").unlink()
    texts = [
        "a photo of a dog",
        "two small cats with a big hat",
        "the quick brown fox jumps over the lazy zebra",
    ]
    SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 20),
        model_writer=(written := BytesIO()),
        vocab_size=34,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(written.getvalue())
    special = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "SiglipTokenizer", "do_lower_case": True, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokens = load(folder).tokenize(["A Photo of: a dog!", "a photo of a dog"])
    assert torch.equal(tokens[0], tokens[1]), "lower case, no punctuation, as it was trained"
    assert tokens.shape == (2, 24) and int(tokens[0, -1]) == 1


def test_siglip_text_is_never_cut_off(save_transformers) -> None:
    """It attends in both directions and pools at the last token: a shorter row would be another text."""
    model = load(save_transformers("siglip")[0])
    tokens = model.tokenize(["a cat"])
    with torch.no_grad():
        assert not torch.allclose(model.encode_text(tokens), model.encode_text(tokens[:, :8]), atol=1e-4)


@pytest.mark.parametrize("vision", ["gelu", "quick_gelu"])
def test_activation_is_the_one_in_the_modules(vision: str, save_transformers) -> None:
    folder, _ = save_transformers("clip", text={"hidden_act": "gelu"}, vision={"hidden_act": vision})
    expected = "gelu" if vision == "gelu" else "image: quick_gelu, text: gelu"
    assert load(folder).activation == expected
    with pytest.raises(TetherError, match="contradicts"):
        load(folder, activation="quick_gelu")


def test_processor_in_one_file(save_transformers) -> None:
    """A folder saved through a processor has the preparation of pictures inside processor_config.json."""
    folder, _ = save_transformers("clip")
    inner = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(TetherError, match=r"preprocessor_config\.json"):
        load(folder)
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": inner}))
    assert load(folder).image.size == 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}, "64 pixels.*takes 32"),
        ({"size": {"shortest_edge": 48}}, "not supported"),
        ({"size": 32, "crop_size": 16}, "not supported"),
        ({"do_center_crop": False}, "not supported"),
        ({"resample": 5}, "resample=5"),
        ({"do_normalize": False}, "do_normalize=False"),
        ({"image_mean": None}, "mean"),
    ],
)
def test_preparation_that_does_not_fit_is_refused(changes: dict, message: str, save_transformers) -> None:
    folder, _ = save_transformers("clip")
    edit(folder / "preprocessor_config.json", **changes)
    with pytest.raises(TetherError, match=message):
        load(folder)


def test_sizes_as_plain_numbers(save_transformers) -> None:
    """As in folders saved years ago."""
    folder, _ = save_transformers("clip")
    edit(folder / "preprocessor_config.json", size=32, crop_size=32, resample=2)
    assert (load(folder).image.size, load(folder).image.interpolation) == (32, "bilinear")


def test_weights_that_do_not_fit_are_refused(save_transformers) -> None:
    """transformers itself fills missing weights with random ones and goes on."""
    folder, _ = save_transformers("clip")
    file = folder / "model.safetensors"
    state = load_file(file)
    state["extra"] = state.pop("visual_projection.weight")
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(TetherError, match=r"missing: visual_projection.weight.*unexpected: extra"):
        load(folder)


def test_position_numbers_in_old_files_are_no_weights(save_transformers) -> None:
    folder, _ = save_transformers("clip")
    file = folder / "model.safetensors"
    state = load_file(file) | {"text_model.embeddings.position_ids": torch.arange(24)[None]}
    save_file(state, file, metadata={"format": "pt"})
    assert load(folder).context_length == 24


def test_weights_of_another_shape_are_refused(save_transformers) -> None:
    folder, _ = save_transformers("clip")
    file = folder / "model.safetensors"
    state = load_file(file)
    state["visual_projection.weight"] = torch.ones(8, 32)
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(TetherError, match=r"visual_projection.weight is \(8, 32\).*\(16, 32\)"):
        load(folder)


def test_weights_cut_short_or_pickled_are_refused(save_transformers) -> None:
    folder, _ = save_transformers("clip")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(TetherError):
        load(folder)
    file.rename(folder / "pytorch_model.bin")
    with pytest.raises(TetherError, match="Pickled"):
        load(folder)


def test_a_tokenizer_of_another_vocabulary_is_refused(save_transformers) -> None:
    folder, _ = save_transformers(
        "clip", text={"vocab_size": 600, "eos_token_id": 599, "bos_token_id": 598, "pad_token_id": 599}
    )
    with pytest.raises(TetherError, match=r"714 words.*600 rows"):
        load(folder)


def test_a_tower_that_would_not_pool_at_the_end_is_refused(save_transformers) -> None:
    folder, _ = save_transformers("clip", text={"eos_token_id": 712})
    with pytest.raises(TetherError, match="not where they end"):
        load(folder)


def test_a_folder_without_tokenizer_is_refused(save_transformers) -> None:
    folder, _ = save_transformers("clip")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(TetherError, match=r"has no tokenizer: none of tokenizer\.json.*save_pretrained\("):
        load(folder)


def test_other_models_are_refused(save_transformers) -> None:
    folder, _ = save_transformers("clip")
    edit(folder / "config.json", model_type="siglip3", auto_map={"AutoModel": "evil.Model"})
    with pytest.raises(TetherError, match="'siglip'"):
        load(folder)


@pytest.mark.parametrize(
    ("tower", "settings"),
    [
        ("text_config", {"num_hidden_layers": 1_000_000}),
        ("text_config", {"hidden_size": 4_000_000}),
        ("text_config", {"vocab_size": 10**9}),
        ("vision_config", {"intermediate_size": 10**9}),
        ("vision_config", {"image_size": 1_000_000}),
    ],
)
def test_a_configuration_that_asks_for_more_than_the_weights_fill_is_refused(
    tower: str, settings: dict, save_transformers
) -> None:
    folder, _ = save_transformers("clip")
    described = json.loads((folder / "config.json").read_text())
    edit(folder / "config.json", **{tower: described[tower] | settings})
    with pytest.raises(TetherError, match=r"far more than its weights fill: model\.safetensors holds"):
        load(folder)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_list_where_settings_should_be_is_refused_with_its_file(name: str, save_transformers) -> None:
    folder, _ = save_transformers("clip")
    (folder / name).write_text("[1]")
    with pytest.raises(TetherError, match=rf"{name} holds something else than it should"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_std": [0.5, 0.5, 0]}, "image_std of .* three numbers greater than 0"),
        ({"image_mean": [0.5, 0.5]}, r"image_mean of .* three numbers, one per channel; found \[0.5, 0.5\]"),
        ({"size": [32]}, "not supported"),
        ({"resample": [3]}, r"resample=\[3\]"),
    ],
)
def test_preparation_of_another_form_is_refused(changes: dict, message: str, save_transformers) -> None:
    folder, _ = save_transformers("clip")
    edit(folder / "preprocessor_config.json", **changes)
    with pytest.raises(TetherError, match=message):
        load(folder)
