import copy
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tether.adapters import RAdapterConfig
from tether.adapters import attach as attach_adapters
from tether.models import Model, load, sites
from tether.models.last_block import fast_last_block

CONFIGURATIONS = {
    "fused attention": {},
    "layer scale": {"vision_cfg": {"ls_init_value": 0.5}, "text_cfg": {"ls_init_value": 0.5}},
    "pooled before the last norm": {"vision_cfg": {"final_ln_after_pool": True}},
    "CustomTextCLIP": {"custom_text": True},
    "pooled at eos": {"custom_text": True, "text_cfg": {"pool_type": "eos", "eos_id": 713}},
    "own attention class": {"vision_cfg": {"qk_norm": True, "scale_attn": True}},
}
TEXTS = ["a cat", "", "a photo of a dog"]


class Adapter(nn.Module):
    """A linear adapter around whatever produces a site: a linear, or a fused attention that gives a tuple."""

    def __init__(self, inner: nn.Module, width: int) -> None:
        super().__init__()
        self.inner = inner
        self.weight = nn.Parameter(0.3 * torch.randn(width, width, dtype=torch.float64))

    def forward(self, *given, **options):
        result = self.inner(*given, **options)
        if isinstance(result, tuple):
            return (result[0] + result[0] @ self.weight.T, *result[1:])
        return result + result @ self.weight.T


def attach(module: nn.Module) -> list[Adapter]:
    adapters = []
    for site in sites(module):
        parent, _, name = site.path.rpartition(".")
        inner = module.get_submodule(site.path)
        adapters.append(Adapter(inner, site.width))
        setattr(module.get_submodule(parent), name, adapters[-1])
    return adapters


def features_and_gradients(model: Model, adapters: list[Adapter]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(3, 3, 32, 32, generator=generator, dtype=torch.float64)
    image = model.image_features(model.module, pixels)
    text = model.text_features(model.module, model.tokenize(TEXTS), 1)
    loss = (image * torch.randn(image.shape, generator=generator, dtype=torch.float64)).sum()
    loss = loss + (text * torch.randn(text.shape, generator=generator, dtype=torch.float64)).sum()
    parameters = [a.weight for a in adapters] or list(model.module.parameters())
    return [
        image,
        text,
        *torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True),
    ]


def same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for mine, yours in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, yours, atol=1e-10, rtol=1e-9)


@pytest.fixture
def models(save_open_clip, save_transformers) -> Callable[[str], Model]:
    def make(name: str) -> Model:
        if name == "transformers CLIP":
            return load(save_transformers("clip")[0], dtype=torch.float64)
        return load(save_open_clip(**CONFIGURATIONS[name])[0], dtype=torch.float64)

    return make


NAMES = [*CONFIGURATIONS, "transformers CLIP"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("adapted", ["not adapted", "adapted before", "adapted after"])
def test_features_and_gradients_are_the_same(name: str, adapted: str, models) -> None:
    torch.manual_seed(0)
    model = models(name)
    adapters = attach(model.module) if adapted == "adapted before" else []
    with fast_last_block(model) as fast:
        assert fast.towers == (("image",) if name == "transformers CLIP" else ("image", "text"))
        if adapted == "adapted after":
            adapters = attach(model.module)
        ours = features_and_gradients(model, adapters)
    same(ours, features_and_gradients(model, adapters))
    assert all(gradient.abs().sum() > 0 for gradient in ours[2:] if adapters)


@pytest.mark.parametrize("name", ["fused attention", "transformers CLIP"])
def test_with_checkpointing(name: str, models) -> None:
    model = models(name).train()
    plain = features_and_gradients(model, [])
    if name == "transformers CLIP":
        model.module.activation_checkpointing_enable({"use_reentrant": False})
    else:
        model.module.set_grad_checkpointing(True)
    with fast_last_block(model):
        same(features_and_gradients(model, []), plain)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_less_work_and_sites_see_one_token(name: str, models) -> None:
    model = models(name)
    last = next(site for site in reversed(sites(model.module)) if site.tower == "image")
    seen = []
    model.module.get_submodule(last.path).register_forward_hook(
        lambda part, given, result: seen.append(result.shape[1])
    )

    def work() -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.image_features(model.module, torch.zeros(1, 3, 32, 32, dtype=torch.float64))
        return counter.get_total_flops()

    whole = work()
    with fast_last_block(model):
        assert work() < whole
    assert work() == whole
    assert seen == [17, 1, 17]


def test_nothing_is_left_behind(models) -> None:
    model = models("fused attention")
    kinds = [type(part) for part in model.module.modules()]
    names = list(model.module.state_dict())
    print_of_weights = model.fingerprint()
    fast = fast_last_block(model)
    assert list(model.module.state_dict()) == names
    assert model.fingerprint() == print_of_weights
    fast.detach()
    fast.detach()
    assert [type(part) for part in model.module.modules()] == kinds
    with pytest.raises(RuntimeError, match="stop"), fast_last_block(model):
        raise RuntimeError("stop")
    assert [type(part) for part in model.module.modules()] == kinds


def test_a_copy_stays_fast(models) -> None:
    model = models("fused attention")
    with fast_last_block(model):
        twin = copy.deepcopy(model.module)
    pixels = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(twin.encode_image(pixels), model.module.encode_image(pixels))
    assert type(twin.visual.transformer.resblocks[-1]) is not type(
        model.module.visual.transformer.resblocks[-1]
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"vision_cfg": {"pool_type": "avg"}},
        {"vision_cfg": {"attentional_pool": True, "attn_pooler_heads": 4}},
    ],
)
def test_towers_that_read_all_tokens_are_left_alone(changes: dict, save_open_clip) -> None:
    text = {"no_causal_mask": True, "pool_type": "last"}
    model = load(save_open_clip(custom_text=True, text_cfg=text, **changes)[0], dtype=torch.float64)
    plain = features_and_gradients(model, [])
    with fast_last_block(model) as fast:
        assert fast.towers == ()
        same(features_and_gradients(model, []), plain)


def test_siglip_is_left_alone(save_transformers) -> None:
    with fast_last_block(load(save_transformers("siglip")[0])) as fast:
        assert fast.towers == ()


@pytest.mark.parametrize("fold", ["always", "never"])
@pytest.mark.parametrize("granularity", ["batch", "sample"])
@pytest.mark.parametrize("name", ["fused attention", "transformers CLIP"])
def test_with_r_adapters_in_training(name: str, granularity: str, fold: str, models) -> None:
    """Folded or not, with the same drop masks, and attached before."""
    model = models(name).train()
    config = RAdapterConfig(rank=4, drop=0.3, granularity=granularity, fold=fold)
    attached = attach_adapters(model, config, seed=0)
    parameters = attached.named_parameters()
    generator = torch.Generator().manual_seed(2)
    for parameter in parameters.values():
        parameter.data = parameter.data.double() + 0.1 * torch.randn(
            parameter.shape, generator=generator, dtype=torch.float64
        )
    results = []
    for fast in (False, True):
        attached.begin_step(3, torch.arange(3), torch.arange(3))
        with fast_last_block(model) if fast else nullcontext():
            pixels = torch.linspace(-1, 1, 3 * 3 * 32 * 32, dtype=torch.float64).reshape(3, 3, 32, 32)
            image = model.image_features(model.module, pixels)
            text = model.text_features(model.module, model.tokenize(TEXTS), 1)
            gradients = torch.autograd.grad((image * text).sum(), list(parameters.values()))
            results.append([image, text, *gradients])
    torch.testing.assert_close(results[1], results[0], atol=1e-8, rtol=1e-6)
