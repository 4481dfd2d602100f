"""The methods on a tiny model: each takes its step, and ours is the cheapest."""

import pytest

from benchmarks._methods import METHODS
from benchmarks._report import Target
from benchmarks.step import compare
from tether.data import EmojiShiftConfig, load_benchmark


def test_side_by_side_on_shapes_alone(monkeypatch) -> None:
    from benchmarks._methods import vit_b_16

    small = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2},
    }
    monkeypatch.setattr("benchmarks._methods.get_model_config", lambda name: small)
    rows = compare("tiny", vit_b_16, load_benchmark(EmojiShiftConfig()), 8, real=False, repeats=0)
    by = {row.method: row for row in rows}
    assert list(by) == [name for name in METHODS if "stem" not in name]  # this model has none
    assert by["ours"].gflops_per_pair < by["naive R-Adapter"].gflops_per_pair
    assert by["ours"].gflops_per_pair < by["full fine-tuning"].gflops_per_pair
    assert by["ours"].saved_mib_per_pair < by["full fine-tuning"].saved_mib_per_pair
    assert by["ours"].trained_parameters == by["naive R-Adapter"].trained_parameters == 8 * (32 * 32 + 1)


@pytest.mark.parametrize(
    ("found", "at_most", "verdict"),
    [(0.6, True, "reached"), (0.7, True, "NOT REACHED"), (0.6, False, "NOT REACHED")],
)
def test_verdicts(found: float, at_most: bool, verdict: str) -> None:
    assert Target(text="x", found=found, bound=0.62, at_most=at_most).line().startswith(f"{verdict}:")
