"""R-Adapters on whole models of each library: the acceptance list of the method."""

import copy

import open_clip
import pytest
import torch
from torch import nn

from tether.adapters import RAdapterConfig, attach
from tether.adapters.r_adapter.fold import FoldedRAdapter, SkippedRAdapter
from tether.adapters.r_adapter.method import RAttached, adapter_path
from tether.adapters.r_adapter.module import RAdapter
from tether.errors import TetherError
from tether.models.site import Select, Site

from ..models import (
    CONTEXT,
    MODELS,
    TEXTS,
    Block,
    block_site,
    features,
    open_clip_model,
    pixels,
    timm_model,
    tokens,
)

KEYS = torch.arange(TEXTS)
EVERY_MODEL = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
EVERY_RANK = pytest.mark.parametrize("rank", [None, 3])


def disturb(attached: RAttached, size: float = 0.1) -> None:
    """Adapters as if trained."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in attached.named_parameters().values():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@EVERY_MODEL
@EVERY_RANK
@torch.no_grad()
def test_new_adapters_change_nothing_in_training_whatever_is_dropped(make, rank):
    """In evaluation too: see the matrix."""
    model = make().train()
    expected = features(model)
    attached = attach(model, RAdapterConfig(rank=rank))
    attached.begin_step(0, KEYS, KEYS)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(features(model), expected, strict=True))


@EVERY_MODEL
@EVERY_RANK
@torch.no_grad()
def test_merged_equals_unmerged_and_comes_back_bit_for_bit(make, rank):
    model = make()
    base, outputs = snapshot(model), features(model)
    attached = attach(model, RAdapterConfig(rank=rank))
    disturb(attached)
    adapted = features(model)
    assert max(float((a - b).abs().max()) for a, b in zip(adapted, outputs, strict=True)) > 1e-3
    for alpha in (0.0, 0.4, 1.0, 1.5):
        classes = {name: type(part) for name, part in make().named_modules()}
        report = attached.merge(alpha, probe=lambda: features(model))
        assert report.max_error <= 1e-5
        assert {name: type(part) for name, part in model.named_modules()} == classes
        assert model.state_dict().keys() == base.keys()
        if alpha == 1:
            assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(features(model), adapted, strict=True))
        if alpha == 0:
            assert_same(snapshot(model), base)
        attached.unmerge()
        assert all(torch.equal(a, b) for a, b in zip(features(model), adapted, strict=True))
    attached.detach()
    assert_same(snapshot(model), base)
    assert all(torch.equal(a, b) for a, b in zip(features(model), outputs, strict=True))


@EVERY_MODEL
def test_alpha_interpolates_every_tensor(make):
    model = make()
    base = snapshot(model)
    attached = attach(model, RAdapterConfig(rank=None))
    disturb(attached)
    states = {}
    for alpha in (0.3, 1.0):
        report = attached.merge(alpha)
        states[alpha] = snapshot(model)
        attached.unmerge()
    for name, tensor in base.items():
        expected = (1 - 0.3) * tensor + 0.3 * states[1.0][name] if tensor.is_floating_point() else tensor
        expected = (
            torch.where(torch.isfinite(tensor), expected, tensor) if tensor.is_floating_point() else tensor
        )
        assert torch.allclose(states[0.3][name], expected, atol=1e-6), name
        assert torch.equal(states[1.0][name], tensor) == (name not in report.changed), name
    delta = attached.delta()
    for name in report.changed:
        assert torch.allclose(base[name] + delta[name], states[1.0][name], atol=1e-7)
    biases = [name for name in report.changed if name.endswith("bias")]
    assert 2 * len(biases) == len(report.changed) == 2 * len(attached.sites)


def test_alpha_per_tower():
    model = open_clip_model()
    base = snapshot(model)
    attached = attach(model, RAdapterConfig())
    disturb(attached)
    with torch.no_grad():
        report = attached.merge({"image": 0.0, "text": 1.0}, probe=lambda: features(model))
    assert report.max_error < 1e-5
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, base[name])}
    assert changed and all(name.startswith("transformer.") for name in changed)
    attached.unmerge()
    with pytest.raises(TetherError, match="says nothing about the text tower"):
        attached.merge({"image": 1.0})
    with pytest.raises(TetherError, match="did you mean 'image'"):
        attached.merge({"imag": 1.0, "text": 0.0})


def test_merge_on_the_wrong_side_is_caught_by_the_probe(monkeypatch):
    """Out-projections are square, so A on the wrong side has the right shape."""
    model = open_clip_model()
    attached = attach(model, RAdapterConfig(select=Select(kinds=("attention",))))
    disturb(attached)
    right = attached.delta()
    wrong = {}
    for path, tensors in attached._tensors(None).items():
        weight = model.get_submodule(path).out_proj.weight
        wrong[f"{path}.out_proj.weight"] = (tensors["scale"] * weight @ tensors["weight"]).detach()
        wrong[f"{path}.out_proj.bias"] = right[f"{path}.out_proj.bias"]
    assert {name: tensor.shape for name, tensor in wrong.items()} == {n: t.shape for n, t in right.items()}
    before = snapshot(model)
    monkeypatch.setattr(attached, "delta", lambda state=None: wrong)
    with torch.no_grad(), pytest.raises(TetherError, match="Nothing was merged"):
        attached.merge(1.0, probe=lambda: features(model))
    assert_same(snapshot(model), before)
    without_bias = right | {name: torch.zeros_like(t) for name, t in right.items() if name.endswith("bias")}
    monkeypatch.setattr(attached, "delta", lambda state=None: without_bias)
    with torch.no_grad(), pytest.raises(TetherError, match="Nothing was merged"):
        attached.merge(1.0, probe=lambda: features(model))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_merge_in_half_precision_is_cast_last_and_measured(dtype):
    model = timm_model().to(dtype)
    base = {name: tensor.float() for name, tensor in snapshot(model).items()}
    attached = attach(model, RAdapterConfig())
    disturb(attached)
    report = attached.merge(0.5, probe=(pixels().to(dtype),))
    assert 0 < report.relative_error < 5e-2
    delta = attached.delta()
    for name in report.changed:
        assert delta[name].dtype == torch.float32
        assert torch.equal(model.state_dict()[name], (base[name] + 0.5 * delta[name]).to(dtype))
    attached.unmerge()
    with pytest.raises(TetherError, match="more than 1e-09"):
        attached.merge(0.5, probe=(pixels().to(dtype),), bound=1e-9)
    attached.detach()
    assert_same(snapshot(model), {name: tensor.to(dtype) for name, tensor in base.items()})


@pytest.mark.parametrize(
    ("name", "count", "sites"),
    [("ViT-B-16", 20_447_232, 48), ("ViT-B-32", 20_447_232, 48), ("ViT-L-14", 64_487_424, 72)],
)
def test_parameter_counts_of_the_paper(name, count, sites):
    with torch.device("meta"):
        model = open_clip.CLIP(**open_clip.get_model_config(name))
    attached = attach(model, RAdapterConfig())
    parameters = attached.named_parameters()
    assert sum(p.numel() for p in parameters.values()) == count + sites
    assert len(attached.sites) == sites
    assert {n for n, p in model.named_parameters() if p.requires_grad} == parameters.keys()
    assert not model.logit_scale.requires_grad
    attached.detach()
    attached = attach(model, RAdapterConfig(scale=None))
    assert sum(p.numel() for p in attached.named_parameters().values()) == count
    attached.detach()
    low = attach(model, RAdapterConfig(scale=None, rank=4)).named_parameters()
    expected = 4 * 4 * (12 * 768 + 12 * 512) if "B" in name else 4 * 4 * (24 * 1024 + 12 * 768)
    assert sum(p.numel() for p in low.values()) == expected


def test_only_adapters_get_gradients_and_detach_restores_what_required_them():
    model = open_clip_model()
    model.visual.conv1.requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    attached = attach(model, RAdapterConfig())
    attached.begin_step(0, KEYS, KEYS)
    image, text = features(model)
    (model.logit_scale.exp() * image @ text.T).sum().backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == attached.named_parameters().keys()
    attached.detach()
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before


def test_a_training_forward_for_which_nothing_was_drawn_warns():
    """And no other: not evaluation, nor a forward without gradients, nor one in the middle of a step."""
    model = open_clip_model().train()
    attached = attach(model, RAdapterConfig(drop=0.3))
    disturb(attached)
    undropped = "drop=0.3 is in training mode, but begin_step has drawn nothing"
    with pytest.warns(UserWarning, match=undropped):
        found = features(model)
    with torch.no_grad():
        features(model)
    attached.eval_mode()
    torch.testing.assert_close(features(model), found)
    attached.train_mode()
    with pytest.warns(UserWarning, match=undropped):
        features(model)
    for step in range(8):
        attached.begin_step(step, KEYS, KEYS)
        dropped = features(model)
        with attached.ordinary():
            features(model)
        attached.train_mode()
        assert all(torch.equal(a, b) for a, b in zip(features(model), dropped, strict=True))
    attached.begin_step(8, KEYS)  # no text is run, it says
    model.encode_image(pixels())
    with pytest.warns(UserWarning, match=undropped):
        model.encode_text(tokens())
    attached.detach()
    attach(model, RAdapterConfig(drop=0.0))
    features(model)


def loss(model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """A sum over rows, so that it can be split."""
    weights = torch.linspace(-1, 1, 12)
    return (model.encode_image(pixels()[rows]) @ weights + model.encode_text(tokens()[rows]) @ weights).sum()


def gradients(attached: RAttached, parts: list[list[int]], step: int = 5) -> dict[str, torch.Tensor]:
    for parameter in attached.named_parameters().values():
        parameter.grad = None
    for part in parts:
        rows = torch.tensor(part)
        attached.begin_step(step, KEYS[rows] + 100, KEYS[rows] + 200)
        loss(attached.module, rows).backward()
    return {name: parameter.grad.clone() for name, parameter in attached.named_parameters().items()}


@pytest.mark.parametrize("granularity", ["batch", "sample", "token"])
@pytest.mark.parametrize("rank", [None, 3])
def test_folded_training_equals_naive_training(granularity, rank):
    results = []
    for fold in ("never", "always"):
        model = open_clip_model().train()
        attached = attach(model, RAdapterConfig(granularity=granularity, rank=rank, drop=0.4, fold=fold))
        disturb(attached)
        results.append(gradients(attached, [list(range(TEXTS))]))
        kinds = {type(adapter) for adapter in attached._adapters.values()}
        assert (FoldedRAdapter in kinds) == (fold == "always" and granularity != "token")
        assert (SkippedRAdapter in kinds) <= (granularity != "token")
    for name, gradient in results[0].items():
        assert torch.allclose(gradient, results[1][name], rtol=1e-3, atol=1e-4), name


@pytest.mark.parametrize("granularity", ["batch", "sample", "token"])
def test_masks_do_not_depend_on_order_or_on_how_the_batch_is_split(granularity):
    model = open_clip_model().train()
    attached = attach(model, RAdapterConfig(granularity=granularity, drop=0.4, fold="never"))
    disturb(attached)
    whole = gradients(attached, [[0, 1, 2, 3, 4]])
    for parts in ([[3, 1, 4, 0, 2]], [[0, 2, 4], [1, 3]]):
        for name, gradient in gradients(attached, parts).items():
            assert torch.allclose(gradient, whole[name], rtol=1e-3, atol=1e-4), name
    other = gradients(attached, [[0, 1, 2, 3, 4]], step=6)
    assert any(not torch.allclose(other[name], whole[name], rtol=1e-2) for name in whole)


@torch.no_grad()
def test_every_row_has_its_own_mask_and_both_adapters_of_a_block_theirs():
    model = open_clip_model(layers=1).train()
    attached = attach(model, RAdapterConfig(drop=0.5, fold="never"))
    keys = torch.arange(4000)
    attached.begin_step(0, keys, keys)
    keep = [attached._adapters[adapter_path(site)].drop.keep.double() for site in attached.sites]
    assert len(keep) == 4
    correlation = torch.corrcoef(torch.stack(keep)) - torch.eye(4)
    assert correlation.abs().max() < 0.07  # 4 standard errors


@pytest.mark.parametrize("granularity", ["batch", "sample", "token"])
@torch.no_grad()
def test_mean_over_many_draws_is_the_output_without_drop(granularity):
    module = Block(4, 6)
    attached = RAttached(module, RAdapterConfig(granularity=granularity, fold="never"), sites=[block_site(4)])
    disturb(attached, 0.5)
    x = torch.randn(3, 5, 4)
    module.eval()
    expected = module(x)
    module.train()
    draws = []
    for step in range(1000):
        attached.begin_step(step, torch.arange(3))
        draws.append(module(x))
    error = torch.stack(draws).std(0) / len(draws) ** 0.5
    assert ((torch.stack(draws).mean(0) - expected).abs() <= 4.5 * error + 1e-5).all()
    assert not torch.equal(draws[0], draws[1]) or not torch.equal(draws[0], draws[2])
    module.eval()
    assert torch.equal(module(x), expected)


def test_sample_drop_reaches_whole_rows_and_scales_what_is_kept():
    module = Block(4, 6)
    attached = RAttached(module, RAdapterConfig(drop=0.2, fold="never"), sites=[block_site(4)])
    disturb(attached, 0.5)
    with torch.no_grad():
        x = torch.randn(200, 5, 4)
        module.eval()
        base = x + torch.nn.functional.linear(torch.tanh(module.fc1(x)), module.fc2.weight, module.fc2.bias)
        branch = module(x) - base
        module.train()
        attached.begin_step(0, torch.arange(200))
        ratio = (module(x) - base).norm(dim=(1, 2)) / branch.norm(dim=(1, 2))
    assert torch.logical_or(ratio < 1e-4, (ratio - 1.25).abs() < 1e-4).all()
    assert 0.7 < (ratio > 1).float().mean() < 0.9


def test_ranks_per_tower_and_per_adapter():
    model = open_clip_model()
    attached = attach(model, RAdapterConfig(rank={"image": 0, "text": 2}))
    assert {site.tower for site in attached.sites} == {"text"}
    assert all("visual" not in name for name in attached.named_parameters())
    attached.detach()
    path = "visual.transformer.resblocks.0.mlp.c_proj"
    attached = attach(model, RAdapterConfig(rank={"image": 3, path: 5, "text": 99}))
    shapes = {name: tuple(p.shape) for name, p in attached.named_parameters().items()}
    assert shapes[f"{path}.r_adapter.down"] == (5, 16)
    assert shapes["visual.transformer.resblocks.1.mlp.c_proj.r_adapter.down"] == (3, 16)
    assert shapes["transformer.resblocks.1.mlp.c_proj.r_adapter.weight"] == (24, 24)
    attached.detach()
    with pytest.raises(TetherError, match="did you mean 'image'"):
        attach(model, RAdapterConfig(rank={"imge": 3}))
    with pytest.raises(TetherError, match="No adapter is left"):
        attach(model, RAdapterConfig(rank=0))
    attach(model, RAdapterConfig())  # a refused attach leaves nothing behind


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (block_site(4, linear=None), "to merge into, and the output of fc2"),
        (block_site(4, tokens="BCHW"), "not an nn.Conv2d"),
        (block_site(4, path="grouped", tokens="BCHW"), "in 2 groups of channels"),
        (block_site(4, path="own"), "forward of its own"),
        (block_site(4, path="fc2", fused=True), "not an nn.MultiheadAttention"),
    ],
)
def test_sites_that_cannot_be_merged_are_refused(site: Site, message):
    class Own(nn.Linear):
        def forward(self, x):
            return super().forward(x).relu()

    module = Block(4, 6)
    module.own = Own(4, 4)
    module.grouped = nn.Conv2d(4, 4, 1, groups=2)
    with pytest.raises(TetherError, match=message):
        RAttached(module, RAdapterConfig(), sites=[site])


def test_a_shared_linear_is_refused():
    module = Block(4, 6)
    module.again = module.fc2
    with pytest.raises(TetherError, match="several sites"):
        RAttached(module, RAdapterConfig(), sites=[block_site(4), block_site(4, path="again")])


@pytest.mark.parametrize("fold", ["never", "always"])
@pytest.mark.parametrize("granularity", ["batch", "sample", "token"])
def test_a_block_compiles_to_one_graph(fold, granularity, unchecked):
    module = Block(8, 16)
    twin = copy.deepcopy(module)
    config = RAdapterConfig(fold=fold, granularity=granularity, drop=0.5)
    handles = [RAttached(m, config, sites=[block_site(8)], seed=3) for m in (module, twin)]
    for handle in handles:
        disturb(handle)
        handle.train_mode()
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    for step in range(3):
        x = torch.randn(6, 4, 8)
        results = []
        for handle, call in zip(handles, (compiled, twin), strict=True):
            handle.begin_step(step, torch.arange(6) + 10 * step)
            y = call(x)
            for parameter in handle.named_parameters().values():
                parameter.grad = None
            y.square().sum().backward()
            results.append([y.detach(), *(p.grad for p in handle.named_parameters().values())])
        for one, other in zip(*results, strict=True):
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)
    module.eval(), twin.eval()
    with torch.no_grad():
        assert torch.allclose(compiled(x), twin(x), atol=1e-6)
    torch._dynamo.reset()


@pytest.mark.parametrize("fold", ["never", "always"])
def test_training_under_bf16_autocast_follows_fp32(fold):
    results = []
    for enabled in (False, True):
        model = open_clip_model().train()
        attached = attach(model, RAdapterConfig(fold=fold, drop=0.4))
        disturb(attached)
        attached.begin_step(0, KEYS, KEYS)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value = loss(model, KEYS)
        value.backward()
        results.append(torch.cat([p.grad.flatten() for p in attached.named_parameters().values()]))
    assert results[1].dtype == torch.float32
    assert torch.cosine_similarity(*results, dim=0) > 0.995


def test_training_with_a_plain_loop_learns_and_repeats_bit_for_bit():
    runs = []
    for _ in range(2):
        model = open_clip_model().train()
        attached = attach(model, RAdapterConfig(), seed=5)
        optimizer = torch.optim.AdamW(attached.named_parameters().values(), lr=1e-2, weight_decay=0)
        losses = []
        for step in range(12):
            attached.begin_step(step, KEYS, KEYS)
            image, text = (torch.nn.functional.normalize(f, dim=-1) for f in features(model))
            value = torch.nn.functional.cross_entropy(10 * image @ text.T, KEYS)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            losses.append(float(value.detach()))
        runs.append((losses, snapshot(model)))
    assert runs[0][0][-1] < 0.8 * runs[0][0][0]
    assert runs[0][0] == runs[1][0]
    assert_same(runs[0][1], runs[1][1])


def test_encoding_other_rows_in_the_middle_of_a_step_is_an_error():
    model = open_clip_model().train()
    attached = attach(model, RAdapterConfig(drop=0.5))
    attached.begin_step(0, KEYS, KEYS)
    with pytest.raises(TetherError, match="call eval"):
        model.encode_text(tokens(3))
    model.eval()
    assert model.encode_text(tokens(3)).shape == (3, 12)
    assert tokens(3).shape[1] == CONTEXT
    assert all(type(adapter) is RAdapter for adapter in attached._adapters.values())
