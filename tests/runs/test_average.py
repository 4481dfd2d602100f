"""The mean of runs: its merge is the mean of their merges, and its folder a model like theirs."""

from dataclasses import replace

import pytest
import torch

from tether.adapters import BiasOnlyConfig, FrozenConfig, FullConfig, RAdapterConfig, attach, combine
from tether.adapters.files import Adapter, apply, load_adapter, save_adapter
from tether.adapters.head import Head, save_head
from tether.errors import TetherError
from tether.models import load
from tether.runs.average import average_adapters, average_folders, average_models

from ..adapters.earlier import as_written_before


def trained(source, config, seed):
    """An adapter with random weights, and the weights its merge gives."""
    attached = attach(load(source), config)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in attached.named_parameters().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    attached.eval_mode()
    state = {name: tensor.clone() for name, tensor in attached.state_dict().items()}
    adapter = Adapter(attached.config, state, attached.fingerprint(), alpha=0.5)
    attached.merge(1.0)
    return adapter, attached.module.state_dict()


@pytest.mark.parametrize("config", [RAdapterConfig(drop=0.0), BiasOnlyConfig(), FullConfig()])
def test_the_merge_of_the_mean_is_the_mean_of_the_merges(tiny_model, config):
    runs = [trained(tiny_model, config, seed) for seed in range(3)]
    mean = average_adapters([adapter for adapter, _ in runs])
    assert mean.alpha == 0.5
    model = load(tiny_model)
    apply(model, mean).merge(1.0)
    differ = []
    for name, tensor in model.module.state_dict().items():
        merged = [weights[name] for _, weights in runs]
        if not tensor.is_floating_point():
            assert torch.equal(tensor, merged[0])
            continue
        torch.testing.assert_close(tensor, torch.stack(merged).mean(0), rtol=1e-5, atol=1e-6)
        differ.append(not torch.equal(merged[0], merged[1]))
    assert any(differ)


def test_adapters_that_are_not_alike_are_refused(tiny_model):
    one, _ = trained(tiny_model, BiasOnlyConfig(), 0)
    other, _ = trained(tiny_model, FullConfig(), 0)
    with pytest.raises(TetherError, match="config"):
        average_adapters([one, other])
    with pytest.raises(TetherError, match="fingerprint"):
        average_adapters([one, replace(one, fingerprint="other")])
    with pytest.raises(TetherError, match="different alphas"):
        average_adapters([one, replace(one, alpha=1.0)])
    assert average_adapters([one, replace(one, alpha=1.0)], alpha=0.25).alpha == 0.25


def test_a_method_that_has_no_mean_is_refused():
    adapters = [Adapter(FrozenConfig(), {}, "f")] * 2
    with pytest.raises(TetherError, match="method frozen does not say what the mean of its adapters is"):
        average_adapters(adapters)


@pytest.fixture
def headed(tiny_model, tmp_path):
    """Folders of two runs with heads: a function that makes one."""
    start = torch.nn.functional.normalize(torch.randn(3, 16), dim=1)

    def make(name, head=None, zero_shot=start):
        adapter, _ = trained(tiny_model, FullConfig(), len(name))
        trained_head = None if head is None else Head(head, zero_shot)
        return save_adapter(tmp_path / name / "adapter", adapter, head=trained_head)

    return make, start


def test_heads_are_averaged_with_their_adapters(headed, tmp_path):
    make, start = headed
    heads = [torch.randn(3, 16) for _ in range(2)]
    average_folders([make("a", heads[0]), make("bb", heads[1])], tmp_path / "mean")
    mean = load_adapter(tmp_path / "mean")
    torch.testing.assert_close(mean.head.weight, (heads[0] + heads[1]) / 2)
    assert torch.equal(mean.head.zero_shot, start)
    assert mean.extra == {"combined": 2}


def test_heads_are_combined_with_their_adapters(tiny_model):
    """What training added to the shared classifier is added, as what it added to the weights."""
    adapter, _ = trained(tiny_model, RAdapterConfig(rank=2), 0)
    start, steps = torch.randn(3, 16), torch.randn(2, 3, 16)
    one, other = (replace(adapter, head=Head(start + step, start)) for step in steps)
    head = combine([one, other], [1.0, -0.5]).head
    torch.testing.assert_close(head.weight, start + steps[0] - 0.5 * steps[1])
    assert torch.equal(head.zero_shot, start)
    with pytest.raises(
        TetherError, match="Adapter 1 was trained with a linear head and adapter 2 without one"
    ):
        combine([one, adapter], [1.0, 1.0])


def test_heads_that_have_no_mean_are_refused(headed, tmp_path):
    make, start = headed
    one = make("a", torch.randn(3, 16))
    missing = as_written_before(make("lost", torch.randn(3, 16)))
    missing.with_name("head.safetensors").unlink()
    for other, told in (
        (make("none"), "Adapter 1 was trained with a linear head and adapter 2 without one"),
        (make("others", torch.randn(3, 16), start.flip(0)), "different zero-shot classifiers"),
        (make("more", torch.randn(4, 16), torch.randn(4, 16)), "different zero-shot classifiers"),
        (missing, "no head.safetensors in it or beside it"),
    ):
        with pytest.raises(TetherError, match=told):
            average_folders([one, other], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_merged_models_with_heads_are_not_averaged_without_them(make_tiny_model, tmp_path):
    load(make_tiny_model(0)).save(tmp_path / "one")
    save_head(tmp_path / "one" / "head.safetensors", Head(torch.randn(3, 16), torch.randn(3, 16)))
    with pytest.raises(TetherError, match="Average the adapters"):
        average_models([str(make_tiny_model(1)), str(tmp_path / "one")], tmp_path / "mean")


def test_a_mean_of_models_is_a_model_folder(make_tiny_model, tmp_path):
    folders = [make_tiny_model(seed) for seed in range(3)]
    average_models([str(folder) for folder in folders], tmp_path / "mean")
    found = load(tmp_path / "mean").module.state_dict()
    states = [load(folder).module.state_dict() for folder in folders]
    for name, tensor in found.items():
        if tensor.is_floating_point():
            expected = torch.stack([state[name].double() for state in states]).mean(0)
            assert torch.equal(tensor, expected.float()), name
    assert {path.name for path in (tmp_path / "mean").iterdir()} == {
        path.name for path in folders[0].iterdir()
    }
    with pytest.raises(TetherError, match="exists already"):
        average_models([str(folders[0])], tmp_path / "mean")
    with pytest.raises(TetherError, match="nothing to average"):
        average_models([], tmp_path / "none")
