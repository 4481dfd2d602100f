from pathlib import Path

import pytest
import torch

from tether.errors import TetherError
from tether.models import load, sites


def test_hub_ids_come_from_the_cache_without_a_network(clip: Path, save_transformers, hub) -> None:
    hub("some/open-clip", clip)
    hub("some/transformers", save_transformers("clip")[0])
    assert load("hf:some/open-clip").family == "open_clip"
    assert load("hf:some/transformers").family == "transformers"


def test_a_hub_id_that_is_not_at_hand_says_so(clip: Path, hub) -> None:
    with pytest.raises(TetherError, match=r"some/other is not in the local hub cache.*hf download"):
        load("hf:some/other")
    with pytest.raises(TetherError, match="hub id"):
        load("hf:not/a/hub/id")
    (clip / "open_clip_model.safetensors").unlink()
    hub("some/half", clip)
    with pytest.raises(TetherError, match="some/half"):
        load("hf:some/half")


def test_an_unknown_source_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(TetherError, match=r"'hf:org/name'"):
        load("org/name")
    with pytest.raises(TetherError, match="neither"):
        load(tmp_path)


def test_device_and_dtype(clip: Path) -> None:
    model = load(clip, device="cpu", dtype=torch.float64)
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float64)


def test_builtin_is_an_open_clip_folder_with_our_own_image_tower(save_open_clip, monkeypatch) -> None:
    from tether.models import builtin, hybrid  # noqa: F401  (hybrid makes the image tower known to timm)

    vision = {"image_size": 112, "timm_model_name": "tether_vit_lite0", "timm_pool": "avg"}
    folder, saved = save_open_clip({"size": 112}, custom_text=True, vision_cfg=vision)
    monkeypatch.setattr(builtin, "folder", lambda: folder)
    model = load("builtin")
    assert (model.source, model.family, model.image.size) == ("builtin", "open_clip", 112)
    pixels = torch.randn(1, 3, 112, 112)
    with torch.no_grad():
        assert torch.equal(model.encode_image(pixels), saved.encode_image(pixels, normalize=True))
    assert sites(model.module)[0].path == "visual.trunk.blocks.0.attn.proj"
