"""What is said about merged models and alpha sweeps, on a tiny model."""

from contextlib import nullcontext

import pytest
import torch
from open_clip import get_tokenizer
from open_clip.model import CLIP

from benchmarks._inference import merged_against_base, readings_of_a_sweep
from benchmarks._methods import Making, known_to_be_safe, shapes_only
from tether.data import EmojiShiftConfig, load_benchmark
from tether.models import Model
from tether.models.load_open_clip import wrap


@pytest.fixture
def model() -> Model:
    return tiny(nullcontext)


def tiny(making: Making) -> Model:
    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2}
    with making():
        module = CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text)
    return wrap(module, {"size": 32}, get_tokenizer("ViT-B-16"), "tiny")


def test_merged_is_the_base_and_unmerged_is_not(model: Model) -> None:
    pixels = torch.randn(2, 3, 32, 32)
    found = merged_against_base(model, pixels, model.tokenize(["a", "b"]), nullcontext, repeats=1)
    assert found.same_modules
    assert found.same_operations
    assert found.flops_ratio == 1 < found.unmerged_flops_ratio
    assert found.time_ratio > 0


def test_the_same_is_told_of_shapes_alone() -> None:
    making = shapes_only()
    model = tiny(making)
    with making():
        pixels = torch.randn(2, 3, 32, 32)
    with known_to_be_safe():
        found = merged_against_base(model, pixels, model.tokenize(["a", "b"]), making)
    assert found.same_modules and found.same_operations and found.time_ratio is None
    assert found.flops_ratio == 1 < found.unmerged_flops_ratio


def test_a_sweep_reads_each_picture_once(model: Model) -> None:
    found = readings_of_a_sweep(model, load_benchmark(EmojiShiftConfig()), [0.0, 0.5, 1.0], pictures=3)
    assert (found.pictures, found.alphas, found.decoded, found.transformed) == (3, 3, 3, 3)
