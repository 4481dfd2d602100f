"""The smallest rank that will do, measured as the run measured."""

import pytest
import torch

from tether._files import sha256_file
from tether.adapters import FullConfig, Head, RAdapterConfig, attach, load_adapter, save_adapter
from tether.config import build
from tether.data import load_benchmark
from tether.errors import TetherError
from tether.evaluation import Classifier, evaluate
from tether.families import DataConfig
from tether.models import load
from tether.runs.rank import shrink

from ..adapters.r_adapter.test_method import disturb
from ..models.image_models import save_timm


@pytest.fixture(scope="module")
def benchmark(tiny_data):
    return load_benchmark(build(DataConfig, tiny_data))


def test_a_model_without_texts_is_judged_by_the_head_of_its_adapter(benchmark, tmp_path):
    model = load(save_timm(tmp_path / "base"))
    head = Head(torch.randn(3, model.dim), torch.randn(3, model.dim))
    attached = attach(model, RAdapterConfig(drop=0.0))
    disturb(attached)
    save_adapter(tmp_path / "adapter", attached, alpha=0.5, head=head)
    attached.merge(0.5)
    classifier = Classifier(weight=head.at(0.5), scale=model.head_scale)
    scores = evaluate(model, {"validation": benchmark.validation}, classifier)
    attached.detach()
    results = shrink(model, benchmark, tmp_path / "adapter", tmp_path / "small", ranks=[2], tolerance=1.0)
    assert [result.rank for result in results] == [2, 48]
    assert results[-1].score == scores["validation"].top1
    small = load_adapter(tmp_path / "small")
    assert torch.equal(small.head.weight, head.weight) and torch.equal(small.head.zero_shot, head.zero_shot)
    assert sha256_file(tmp_path / "small" / "head.safetensors") == sha256_file(
        tmp_path / "adapter" / "head.safetensors"
    )


def test_a_method_without_ranks_is_refused(benchmark, tiny_model, tmp_path):
    model = load(tiny_model)
    save_adapter(tmp_path / "adapter", attach(model, FullConfig()))
    with pytest.raises(
        TetherError, match="method full has the tensors that its model gives it, without a rank"
    ):
        shrink(model, benchmark, tmp_path / "adapter", tmp_path / "small")
    assert not (tmp_path / "small").exists()
