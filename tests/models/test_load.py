from pathlib import Path

import pytest
import torch

from tether.errors import TetherError
from tether.models import load


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
