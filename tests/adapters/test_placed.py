"""What all methods have that put a module at every site, whatever the module is."""

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from tether.adapters import BottleneckConfig, MonaConfig, Placed, PlacedConfig, attach
from tether.adapters.placed_module import KeptRows
from tether.adapters.taps import Tapped, rows_first
from tether.config import method
from tether.ensembles import Accumulation
from tether.errors import TetherError
from tether.models import sites
from tether.models.last_block import fast_last_block
from tether.models.site import Port, Select, Site

from ..models.image_models import IMAGE_MODELS
from .matrix import backbone
from .models import TEXTS, features, open_clip_model, pixels, timm_model
from .r_adapter.test_method import assert_same, disturb, snapshot

KEYS = torch.arange(TEXTS)
BOTH = {"mona": MonaConfig(hidden=4), "houlsby": BottleneckConfig(hidden=4)}
EVERY = pytest.mark.parametrize("config", BOTH.values(), ids=BOTH.keys())


class Bent(Placed):
    """f(x) = c tanh(x), which has no norm of its own and is seen by whatever comes after it."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.c = nn.Parameter(torch.full((site.width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return self.c * torch.tanh(x)


def bent(position: str) -> PlacedConfig:
    """A method of this test alone, at any position."""

    @method("bent")
    @dataclass(frozen=True, kw_only=True)
    class BentConfig(PlacedConfig):
        @property
        def position(self) -> str:
            return position

        def module(self, site: Site, generator: torch.Generator) -> Placed:
            return Bent(site)

    return BentConfig()


def by_hooks(module: nn.Module, found: list[Site], call: Callable[[], Tensor]) -> Tensor:
    """What the model gives if f(x) is added at every site, told with PyTorch's hooks and one dictionary."""
    kept: dict[Site, Tensor] = {}

    def act(port: Port, value: Tensor) -> Tensor:
        for site in found:
            if port == site.reads:
                kept[site] = 0.1 * torch.tanh(rows_first(value, port.tokens))
            if port in site.writes:
                like = rows_first(value, port.tokens)
                delta = kept[site].reshape(like.shape)
                value = value + {"NBC": delta.transpose(0, 1), "BCHW": delta.movedim(-1, 1)}.get(
                    port.tokens, delta
                )
        return value

    handles = []
    for port in dict.fromkeys(port for site in found for port in (site.reads, *site.writes)):
        part = module.get_submodule(port.path)
        if port.side == "input":
            hook = lambda part, given, port=port: (act(port, given[0]), *given[1:])  # noqa: E731
            handles.append(part.register_forward_pre_hook(hook))
        else:

            def after(part: nn.Module, given: tuple, result: object, port: Port = port) -> object:
                if isinstance(result, tuple):
                    return (act(port, result[0]), *result[1:])
                return act(port, result)

            handles.append(part.register_forward_hook(after))
    result = call()
    for handle in handles:
        handle.remove()
    return result


NAMES = (
    "timm ViT",
    "timm Swin",
    "timm Swin 2",
    "timm ConvNeXt of convolutions",
    "torchvision ViT",
    "transformers Swin",
    "transformers DINOv2",
)


@pytest.mark.usefixtures("own_methods")
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_what_is_read_and_added_is_what_the_site_says(name):
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    def call() -> Tensor:
        answer = module(x)
        return answer if isinstance(answer, Tensor) else answer[0]

    module = IMAGE_MODELS[name][0]().eval()
    for parameter in module.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    base = call()
    for position in ("before", "after", "branch", "parallel", "parallel_normalized", "output"):
        try:
            found = sites(module, position=position)
        except TetherError:
            assert position == "parallel_normalized" and name == "timm Swin 2"
            continue
        expected = by_hooks(module, found, call)
        attached = attach(module, bent(position))
        assert attached.sites == found
        torch.testing.assert_close(call(), expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(expected, base, atol=1e-3)
        assert all(placed._delta is None for placed in attached._placed.values())
        attached.detach()
        assert torch.equal(call(), base)
        assert not any(isinstance(part, Tapped) for part in module.modules())


@pytest.mark.usefixtures("own_methods")
@torch.no_grad()
def test_tokens_first_is_the_same_model():
    expected, found = ([], [])
    for batch_first, outputs in ((True, expected), (False, found)):
        model = open_clip_model(batch_first=batch_first)
        for position in ("after", "branch", "parallel"):
            attached = attach(model, bent(position))
            outputs.extend(features(model))
            attached.detach()
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other)


@EVERY
@torch.no_grad()
def test_copies_and_pickles_compute_with_their_own_tensors(config):
    model = timm_model()
    attached = attach(model, config)
    disturb(attached)
    expected = model(pixels())
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)]
    names = list(model.state_dict())
    for parameter in attached.named_parameters().values():
        parameter.zero_()
    assert not torch.equal(model(pixels()), expected)
    for twin in copies:
        assert torch.equal(twin(pixels()), expected)
        assert list(twin.state_dict()) == names
        assert isinstance(twin.blocks[0], type(timm_model().blocks[0]))


@EVERY
def test_a_block_compiles_to_one_graph_and_notices_what_is_taken_out(config, unchecked):
    """With no compiler behind the tracing, which is what may fail."""
    torch._dynamo.reset()
    block = timm_model()
    attached = attach(block, config)
    disturb(attached)
    block = block.blocks[0]
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    expected = block(x)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    attached.take_out()
    base = block(x)
    assert torch.equal(compiled(x), base) and not torch.equal(base, expected)
    attached.put_in()
    torch.testing.assert_close(compiled(x), expected)
    attached.scale({"image": 0.5, "text": 0.5})
    torch.testing.assert_close(compiled(x), block(x))


@EVERY
@pytest.mark.parametrize("reentrant", [None, True, False])
def test_checkpointing_changes_no_gradient(config, reentrant):
    """timm's own (None), and that of transformers of both kinds."""
    model = timm_model() if reentrant is None else copy.deepcopy(backbone("transformers DINOv2"))
    attached = attach(model, config)
    disturb(attached)
    x = torch.randn(2, 3, *((16, 16) if reentrant is None else (32, 32))).requires_grad_()

    def gradients() -> list[Tensor]:
        model.train()
        for placed in attached._placed.values():
            placed.dropout = 0.0
        for parameter in attached.named_parameters().values():
            parameter.grad = None
        answer = model(x)
        answer = answer if isinstance(answer, Tensor) else answer.last_hidden_state
        answer.square().sum().backward()
        return [parameter.grad.clone() for parameter in attached.named_parameters().values()]

    plain = gradients()
    if reentrant is None:
        model.set_grad_checkpointing(True)
    else:
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
    for one, other in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        copy.deepcopy(model)  # a checkpoint that ended early leaves nothing that cannot be copied


@EVERY
def test_lower_precision_keeps_its_type_on_the_stream(config):
    """bf16 weights with fp32 adapters, and autocast over fp32 weights."""
    for autocast in (False, True):
        model = timm_model() if autocast else timm_model().bfloat16()
        attached = attach(model, config)
        disturb(attached)
        x = pixels() if autocast else pixels().bfloat16()
        seen = []
        handle = model.blocks[1].register_forward_hook(
            lambda part, given, out, seen=seen: seen.append(out.dtype)
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = model(x)
        out.float().square().sum().backward()
        handle.remove()
        assert seen == [torch.float32 if autocast else torch.bfloat16]
        for parameter in attached.named_parameters().values():
            assert parameter.dtype == torch.float32 and parameter.grad.dtype == torch.float32


def test_dropping_is_of_whole_rows_by_their_keys():
    config = BottleneckConfig(hidden=4, drop=0.5)
    model = timm_model()
    attached = attach(model, config, seed=3)
    disturb(attached)
    with torch.no_grad():
        full = model(pixels())
        attached.train_mode()
        attached.begin_step(0, KEYS)
        masks = torch.stack([placed.share.factor for placed in attached._placed.values()])
        assert set(masks.unique().tolist()) == {0.0, 2.0}
        first = model(pixels())
        order = torch.tensor([4, 2, 0, 1, 3])
        attached.begin_step(0, KEYS[order])
        torch.testing.assert_close(model(pixels()[order]), first[order])  # whatever the order
        attached.begin_step(1, KEYS)
        assert not torch.equal(model(pixels()), first)
        with pytest.raises(TetherError, match="keys for 5 rows, but the tower now got 2"):
            model(pixels(2))
        attached.eval_mode()
        assert torch.equal(model(pixels()), full)
    attached.train_mode()
    with pytest.warns(UserWarning, match=r"begin_step has drawn nothing.*nothing is dropped"):
        model(pixels())
    with pytest.raises(TetherError, match="drop is a probability"):
        BottleneckConfig(drop=1.0)


def test_the_share_of_dropped_rows_is_the_probability():
    attached = attach(timm_model(), BottleneckConfig(hidden=4, drop=0.3))
    attached.train_mode()
    attached.begin_step(0, torch.arange(20_000))
    for placed in attached._placed.values():
        assert isinstance(placed.share, KeptRows)
        assert float((placed.share.factor == 0).float().mean()) == pytest.approx(0.3, abs=0.02)


def test_seeds_make_the_first_values_and_nothing_else_does():
    before = torch.random.get_rng_state()
    states = [attach(timm_model(), MonaConfig(hidden=4), seed=seed).state_dict() for seed in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert_same(states[0], states[1])
    assert not torch.equal(states[0]["blocks.0.mona.up.weight"], states[2]["blocks.0.mona.up.weight"])
    assert not torch.equal(states[0]["blocks.0.mona.up.weight"], states[0]["blocks.1.mona.up.weight"])


def test_an_average_of_the_state_is_a_state():
    attached = attach(timm_model(), MonaConfig(hidden=4))
    average = Accumulation(attached.named_parameters(), momentum=0.5)
    disturb(attached)
    average.update()
    with attached.path(average.average()) as path:
        path.set(1.0)
        assert_same(attached.state_dict(), attached.complete(average.average()))


@torch.no_grad()
def test_a_shortened_last_block_stays_long_where_every_token_is_needed():
    model = open_clip_model()
    for config, towers in (
        (MonaConfig(hidden=4), ("text",)),
        (BottleneckConfig(hidden=4), ("image", "text")),
    ):
        attached = attach(model, config)
        disturb(attached)
        expected = features(model)
        with fast_last_block(model) as fast:
            assert fast.towers == towers
            for one, other in zip(features(model), expected, strict=True):
                torch.testing.assert_close(one, other)
        attached.detach()
    with fast_last_block(model), pytest.raises(TetherError, match="Attach first and shorten then"):
        attach(model, MonaConfig(hidden=4))
    attach(model, MonaConfig(hidden=4))


def test_a_forward_that_somebody_replaced_is_not_taken():
    model = timm_model()
    before = snapshot(model)
    model.blocks[1].forward = model.blocks[1].forward
    with pytest.raises(TetherError, match=r"forward of blocks\.1 .* was replaced by another library"):
        attach(model, MonaConfig(hidden=4))
    del model.blocks[1].forward
    attach(model, MonaConfig(hidden=4)).detach()
    assert_same(snapshot(model), before)


def test_a_sequence_of_modules_does_not_call_what_stands_at_it():
    model = IMAGE_MODELS["torchvision ViT"][0]()
    attached = attach(model, BottleneckConfig(hidden=4))
    assert "encoder.layers.encoder_layer_0.bottleneck_mlp.down.weight" in attached.state_dict()
    assert [len(block.mlp) for block in model.encoder.layers] == [5, 5]


def test_a_name_that_is_taken_is_refused():
    model = timm_model()
    model.blocks[1].mona = nn.Identity()
    with pytest.raises(TetherError, match=r"blocks\.1 has something named mona already"):
        attach(model, MonaConfig(hidden=4, select=Select(kinds=("mlp",))))
