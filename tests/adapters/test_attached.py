"""What every method's handle promises, checked for each of them."""

import copy

import pytest
import torch
from torch import nn

from tether.adapters import (
    AdaptFormerConfig,
    BiasOnlyConfig,
    BottleneckConfig,
    ConvpassConfig,
    FullConfig,
    LastBlocksConfig,
    LoRandConfig,
    MonaConfig,
    NormOnlyConfig,
    RAdapterConfig,
    RepAdapterConfig,
    SCTConfig,
    SSFConfig,
    VPTConfig,
    attach,
)
from tether.errors import TetherError
from tether.models.fingerprint import fingerprint
from tether.models.site import Select
from tether.models.weight_path import WeightPath

from .models import TEXTS, features, open_clip_model, pixels, timm_model
from .r_adapter.test_method import assert_same, snapshot

MERGEABLE = {
    "r_adapter": RAdapterConfig(),
    "r_adapter rank 3": RAdapterConfig(rank=3, scale=None),
    "full": FullConfig(),
    "bias_only": BiasOnlyConfig(),
    "norm_only": NormOnlyConfig(),
    "last_blocks": LastBlocksConfig(blocks=1),
    "rep_adapter": RepAdapterConfig(hidden=4),
    "ssf": SSFConfig(select=Select()),
}
OTHERS = {
    "mona": MonaConfig(hidden=4, drop=0.2),
    "houlsby": BottleneckConfig(hidden=4),
    "adapter_plus": BottleneckConfig(variant="adapter_plus", hidden=4),
    "adaptformer": AdaptFormerConfig(hidden=4),
    "convpass": ConvpassConfig(hidden=4),
    "lorand": LoRandConfig(branches=2, rank=2),
    "sct": SCTConfig(channels=4, selection="seed"),
    "vpt": VPTConfig(tokens=2),
    "vpt shallow": VPTConfig(tokens=2, variant="shallow"),
}
CONFIGS = MERGEABLE | OTHERS
EVERY_METHOD = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
EVERY_MERGEABLE = pytest.mark.parametrize("config", MERGEABLE.values(), ids=MERGEABLE.keys())
EVERY_OTHER = pytest.mark.parametrize("config", OTHERS.values(), ids=OTHERS.keys())
KEYS = torch.arange(TEXTS)


class Wrapped:
    """What attach needs of a `tether.Model`."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def fingerprint(self, *, without=()) -> str:
        return fingerprint(self.module, "quick_gelu", without=without)


def train(attached, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW(attached.named_parameters().values(), lr=1e-2)
    attached.train_mode()
    for step in range(steps):
        attached.begin_step(step, KEYS, KEYS)
        image, text = features(attached.module)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(image @ text.T, KEYS).backward()
        optimizer.step()
    attached.eval_mode()


@EVERY_METHOD
def test_trains_only_what_it_names_and_comes_off_bit_for_bit(config):
    model = open_clip_model()
    base, outputs = snapshot(model), [f.detach() for f in features(model)]
    attached = attach(model, config)
    named = dict(model.named_parameters())
    trained = {name for name, parameter in named.items() if parameter.requires_grad}
    assert trained == attached.named_parameters().keys()
    assert "logit_scale" not in trained
    before = snapshot(model)
    train(attached)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name not in trained), name
    assert attached.detach() is model
    assert_same(snapshot(model), base)
    assert all(torch.equal(a, b) for a, b in zip(features(model), outputs, strict=True))
    assert attached.detach() is model  # again, harmlessly
    attach(model, config)


@EVERY_METHOD
def test_state_survives_detaching_and_makes_the_same_model_again(config):
    model = open_clip_model()
    attached = attach(model, config)
    train(attached)
    with torch.no_grad():
        adapted = features(model)
    delta = attached.delta() if attached.mergeable else {}
    attached.detach()
    if attached.mergeable:
        assert_same(attached.delta(), delta)
    again = attach(model, config)
    again.load_state_dict(attached.state_dict())
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(features(model), adapted, strict=True))
    if attached.mergeable:
        assert_same(again.delta(), delta)


@EVERY_MERGEABLE
@torch.no_grad()
def test_merge_is_linear_in_alpha_and_unmerges_bit_for_bit(config):
    model = open_clip_model()
    base = snapshot(model)
    attached = attach(model, config)
    with torch.enable_grad():
        train(attached)
    before, delta = snapshot(model), attached.delta()
    for alpha in (0.0, 0.5, 1.0):
        attached.merge(alpha)
        merged = snapshot(model)
        assert merged.keys() == base.keys()
        for name, tensor in base.items():
            expected = tensor + alpha * delta[name] if name in delta else tensor
            assert torch.allclose(merged[name], expected, atol=1e-7), name
        if alpha == 0:
            assert_same(merged, base)
        assert_same(attached.delta(), delta)
        attached.unmerge()
        assert_same(snapshot(model), before)


@EVERY_MERGEABLE
@torch.no_grad()
def test_weight_path_over_the_delta_is_merging(config):
    model = open_clip_model()
    attached = attach(model, config)
    with torch.enable_grad():
        train(attached)
    adapted = features(model)
    expected = {}
    for alpha in (0.3, 1.0):
        attached.merge(alpha)
        expected[alpha] = features(model)
        attached.unmerge()
    with pytest.raises(TetherError, match="count twice"):
        WeightPath(model, attached.delta())
    with attached.ordinary() as module, WeightPath(module, attached.delta()) as path:
        for alpha, outputs in expected.items():
            path.set(alpha)
            assert all(torch.equal(a, b) for a, b in zip(features(module), outputs, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(features(model), adapted, strict=True))


@EVERY_METHOD
def test_fingerprint_is_the_bases_whatever_the_state(config):
    model = open_clip_model()
    expected = fingerprint(model)
    attached = attach(model, config)
    assert attached.fingerprint() == expected
    train(attached)
    assert attached.fingerprint() == expected
    if attached.mergeable:
        attached.merge(0.5)
        merged = snapshot(model)
        assert attached.fingerprint() == expected
        assert_same(snapshot(model), merged)
        attached.unmerge()
    attached.detach()
    assert attached.fingerprint() == expected


@EVERY_METHOD
def test_attaching_twice_is_refused(config):
    model = open_clip_model()
    attach(model, config)
    before = snapshot(model)
    for other in CONFIGS.values():
        with pytest.raises(TetherError, match="attached already"):
            attach(model, other)
    assert_same(snapshot(model), before)


@EVERY_MERGEABLE
def test_merging_twice_is_refused(config):
    model = open_clip_model()
    attached = attach(model, config)
    attached.merge(0.5)
    with pytest.raises(TetherError, match="attached already"):
        attach(model, config)
    with pytest.raises(TetherError, match="merged into it"):
        attached.merge(0.5)
    with pytest.raises(TetherError, match="merged into it"), attached.ordinary():
        pass
    attached.unmerge()
    with pytest.raises(TetherError, match="Nothing is merged"):
        attached.unmerge()
    attached.detach()
    with pytest.raises(TetherError, match="detached from it"):
        attached.merge(0.5)


@EVERY_METHOD
def test_states_load_strictly_and_all_or_nothing(config):
    attached = attach(open_clip_model(), config)
    train(attached)
    state = {name: tensor.clone() for name, tensor in attached.state_dict().items()}
    name = next(iter(state))
    zeros = {key: torch.zeros_like(tensor) for key, tensor in state.items()}
    for wrong, message in (
        ({key: tensor for key, tensor in zeros.items() if key != name}, f"missing: {name}"),
        ({**zeros, "extra": torch.zeros(1)}, "unexpected: extra"),
        ({**zeros, name: torch.zeros(2, 3, 5)}, r"is \[2, 3, 5\] instead of"),
    ):
        with pytest.raises(TetherError, match=message):
            attached.load_state_dict(wrong)
        assert_same(attached.state_dict(), state)


@EVERY_METHOD
@torch.no_grad()
def test_a_model_is_attached_through_its_module(config):
    model = Wrapped(open_clip_model())
    attached = attach(model, config)
    assert attached.module is model.module
    assert (
        attached.fingerprint() == Wrapped(open_clip_model()).fingerprint() != fingerprint(open_clip_model())
    )


@EVERY_METHOD
@torch.no_grad()
def test_a_deep_copy_computes_the_same_and_shares_nothing(config):
    model = open_clip_model()
    attached = attach(model, config)
    with torch.enable_grad():
        train(attached)
    twin = copy.deepcopy(model)
    expected = features(twin)
    assert all(torch.equal(a, b) for a, b in zip(features(model), expected, strict=True))
    for parameter in attached.named_parameters().values():
        parameter.mul_(2)
    assert all(torch.equal(a, b) for a, b in zip(features(twin), expected, strict=True))


@EVERY_OTHER
@torch.no_grad()
def test_a_path_scales_what_does_not_merge_and_leaves_it_as_it_was(config):
    """At 0 the base and at 1 the tuned model, bit for bit; in between neither, also where towers differ."""
    model = open_clip_model()
    base = features(model)
    attached = attach(model, config)
    with torch.enable_grad():
        train(attached)
    assert not attached.mergeable
    tuned = features(model)
    towers = [any(site.tower == tower for site in attached.sites) for tower in ("image", "text")]
    with attached.path() as path:
        for _ in range(2):
            assert all(torch.equal(a, b) for a, b in zip(features(model), base, strict=True))
            path.set(1.0)
            assert all(torch.equal(a, b) for a, b in zip(features(model), tuned, strict=True))
            if isinstance(config, VPTConfig):
                path.restore()  # it is there or not
                continue
            path.set(0.5)
            for half, one, other, moves in zip(features(model), base, tuned, towers, strict=True):
                assert torch.equal(half, one) != moves and (torch.equal(half, other) != moves)
            path.set({"image": 0.0, "text": 0.5})
            assert torch.equal(features(model)[0], base[0])
            path.set({"image": 0.5, "text": 0.0})
            assert torch.equal(features(model)[1], base[1])
            assert torch.equal(features(model)[0], base[0]) != towers[0]
            path.restore()
    assert all(torch.equal(a, b) for a, b in zip(features(model), tuned, strict=True))


@EVERY_METHOD
def test_the_module_says_whether_it_is_the_base_at_the_start(config):
    model = open_clip_model()
    with torch.no_grad():
        base = features(model)
        attached = attach(model, config)
        same = all(torch.equal(a, b) for a, b in zip(features(model), base, strict=True))
    assert same == attached.identity_at_start


def test_an_ordinary_block_that_fails_puts_the_adapters_back():
    model = open_clip_model()
    attached = attach(model, RAdapterConfig())
    train(attached)
    with torch.no_grad():
        expected = features(model)
    with pytest.raises(RuntimeError, match="mine"), attached.ordinary():
        raise RuntimeError("mine")
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(features(model), expected, strict=True))


def test_only_configs_of_methods_are_attached(unchecked):
    with pytest.raises(TetherError, match=r"FullConfig, .*RAdapterConfig"):
        attach(open_clip_model(), "r_adapter")


class Convolutional(nn.Module):
    """A stem with a batch norm before a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.BatchNorm2d(4))
        self.blocks = timm_model().blocks
        self.widen = nn.Linear(4, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks[0](self.widen(self.stem(x).flatten(2).transpose(1, 2)))


def test_frozen_batch_norms_keep_their_statistics_and_trained_ones_come_back():
    torch.manual_seed(0)
    for config, frozen in ((FullConfig(exclude=("stem",)), True), (FullConfig(), False)):
        model = Convolutional().train()
        base = snapshot(model)
        attached = attach(model, config)
        attached.train_mode()
        with torch.no_grad():
            model(pixels())
        same = torch.equal(model.stem[1].running_mean, base["stem.1.running_mean"])
        assert same == frozen and model.stem[1].training != frozen and model.blocks.training
        state = attached.state_dict()
        assert ("stem.1.running_mean" in state) != frozen
        assert ("stem.1.num_batches_tracked" in state) != frozen
        attached.merge(0.5)
        assert model.stem[1].num_batches_tracked == base["stem.1.num_batches_tracked"]
        attached.detach()
        assert_same(snapshot(model), base)
        model.train()
        assert model.stem[1].training


@EVERY_MERGEABLE
def test_weights_that_are_no_numbers_are_not_merged(config):
    model = open_clip_model()
    attached = attach(model, config)
    train(attached)
    state = {name: tensor.clone() for name, tensor in attached.state_dict().items()}
    name = next(name for name in state if name.rpartition(".")[2] in ("weight", "bias", "up", "shift"))
    state[name].view(-1)[0] = torch.inf
    before = snapshot(model)
    with pytest.raises(
        TetherError, match=r"NaN or infinity would be merged into .*; nothing was merged.*diverged"
    ):
        attached.merge(0.5, state=state)
    assert_same(snapshot(model), before)
    attached.merge(0.5)


@EVERY_MERGEABLE
@torch.no_grad()
def test_a_merged_model_that_answers_no_numbers_on_the_probe_is_undone(config):
    """Finite weights of 1e38 overflow only in the tower that has them; also where there are no outputs to compare."""
    model = open_clip_model()
    attached = attach(model, config)
    with torch.enable_grad():
        train(attached)
    state = {name: tensor.clone() for name, tensor in attached.state_dict().items()}
    for name, tensor in state.items():
        if name.startswith("transformer.") and not name.endswith("scale") and ".down" not in name:
            tensor.fill_(1e37)
    before = snapshot(model)
    with pytest.raises(
        TetherError, match=r"answers NaN or infinity on the probe.*change is .*e\+3\d in transformer\."
    ):
        attached.merge(1.0, state=state, probe=lambda: features(model))
    assert_same(snapshot(model), before)


@pytest.mark.parametrize("config", [FullConfig(), BiasOnlyConfig()], ids=["full", "bias_only"])
def test_float16_weights_are_not_trained(config):
    """AdamW's second moment of a small gradient is 0 in float16, and its ε too."""
    attached = attach(open_clip_model().half(), config)
    for begin in (attached.train_mode, lambda: attached.begin_step(0)):
        with pytest.raises(TetherError, match=r"is float16.*Load the model in float32.*torch\.autocast"):
            begin()
    attached.eval_mode()
    attached.merge(0.5)  # inference stays possible
    base = attach(open_clip_model().half(), RAdapterConfig())
    base.train_mode()  # its adapters are float32


def with_head(classes: int = 3, seed: int = 0) -> nn.Module:
    """A backbone of timm and a new head, random by the seed, as every program makes its own."""
    model = timm_model()
    model.reset_classifier(classes)
    with torch.no_grad():
        model.head.weight.normal_(generator=torch.Generator().manual_seed(seed))
    return model


def train_with_head(model: nn.Module, config):
    attached = attach(model, config)
    model.head.requires_grad_(True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    attached.train_mode()
    for step in range(3):
        attached.begin_step(step, KEYS)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(pixels()), KEYS % 3).backward()
        optimizer.step()
    attached.eval_mode()
    return attached


HEADED = pytest.mark.parametrize(
    "config",
    [RAdapterConfig(), RAdapterConfig(rank=3), LastBlocksConfig(), FullConfig(exclude=("head",))],
    ids=["r_adapter", "rank 3", "last_blocks", "full"],
)


@HEADED
def test_what_is_unfrozen_is_no_part_of_the_base(config):
    frozen = attach(with_head(), config)
    assert frozen.unfrozen() == {}
    attached = train_with_head(with_head(), config)
    model = attached.module
    names = {"head.weight", "head.bias"}
    assert attached.unfrozen().keys() == names
    expected = fingerprint(with_head(), without=names)
    assert attached.fingerprint() == expected != fingerprint(with_head())
    head = model.head.weight.detach().clone()
    attached.merge(0.5)
    assert torch.equal(model.head.weight, head)
    assert attached.fingerprint() == expected
    attached.detach()
    assert torch.equal(attached.unfrozen()["head.weight"], head)
    assert attached.fingerprint() == expected


def test_a_tied_parameter_that_is_trained_is_unfrozen_under_no_other_name():
    model = with_head()
    model.twin = model.head
    attached = attach(model, FullConfig())
    assert attached.unfrozen() == {}
    model.requires_grad_(True)
    assert attached.unfrozen() == {}
    attached.detach()
    attached = attach(model, RAdapterConfig())
    model.head.requires_grad_(True)
    assert {"head.weight", "twin.weight"} <= attached.unfrozen().keys()


@HEADED
def test_unfreezing_takes_values_in_and_detaching_takes_them_out(config):
    model = with_head()
    base = snapshot(model)
    attached = attach(model, config)
    values = {"head.weight": torch.ones_like(model.head.weight)}
    for wrong, message in (
        (
            {"heads.weight": values["head.weight"]},
            r"no parameter of that name.*same head.*did you mean 'head\.weight'",
        ),
        ({"head.weight": torch.ones(5, 16)}, r"with shape \[5, 16\], and this module has \[3, 16\]"),
        ({next(iter(attached.named_parameters())): torch.ones(1)}, "no parameter of that name"),
    ):
        with pytest.raises(TetherError, match=message):
            attached.unfreeze({**values, **wrong})
        assert attached.unfrozen() == {}
        assert torch.equal(model.head.weight, base["head.weight"])
    attached.unfreeze(values)
    attached.unfreeze({"head.weight": 2 * values["head.weight"]})
    assert model.head.weight.requires_grad and (model.head.weight == 2).all()
    attached.merge(0.5)
    attached.detach()
    assert_same(snapshot(model), base)
