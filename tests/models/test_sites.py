from collections.abc import Callable

import pytest
import timm
import torch
from open_clip.transformer import Transformer
from torch import Tensor, nn

from tether.errors import TetherError
from tether.models import Select, Site, load, sites
from tether.models.site import KINDS

from .image_models import IMAGE_MODELS, TIMM_VIT

EVERY_KIND = Select(kinds=KINDS)


@pytest.fixture
def contrastive(save_open_clip, save_transformers) -> Callable[[str], tuple[nn.Module, Callable[[], object]]]:
    """A contrastive model by name, and a call that runs both towers on two pictures and two texts."""

    def make(name: str) -> tuple[nn.Module, Callable[[], object]]:
        if name in ("clip", "siglip", "siglip2"):
            model = load(save_transformers(name)[0])
        else:
            vision = {"qk_norm": True} if name == "own attention class" else {}
            text = {"scale_fc": True} if name == "own attention class" else {}
            options = {"custom_text": name == "CustomTextCLIP", "vision_cfg": vision, "text_cfg": text}
            model = load(save_open_clip(**options)[0])
        if name == "sequence first":
            own = model.module.visual.transformer
            model.module.visual.transformer = Transformer(32, 3, 4, batch_first=False)
            model.module.visual.transformer.load_state_dict(own.state_dict())
        tokens = model.tokenize(["a cat", "a photo"])
        pixels = torch.randn(2, 3, 32, 32)
        return model.module, lambda: (model.encode_image(pixels), model.encode_text(tokens))

    return make


CONTRASTIVE = (
    "fused",
    "own attention class",
    "CustomTextCLIP",
    "sequence first",
    "clip",
    "siglip",
    "siglip2",
)


def record(module: nn.Module, run: Callable[[], object], found: list[Site]) -> dict[str, Tensor]:
    """What each site's module gives: its tensor, or the first item of its tuple."""
    outputs: dict[str, Tensor] = {}

    def watch(path: str):
        def hook(part: nn.Module, given: object, result: object) -> None:
            outputs[path] = result[0] if isinstance(result, tuple) else result

        return hook

    handles = [module.get_submodule(site.path).register_forward_hook(watch(site.path)) for site in found]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return outputs


def check(module: nn.Module, run: Callable[[], object]) -> None:
    """Every site's module is called and gives what the site says; a linear map is merged into its linear."""
    found = sites(module, EVERY_KIND)
    assert len({(site.path, site.kind) for site in found}) == len(found)
    outputs = record(module, run, found)
    for site in found:
        check_layout(site, outputs[site.path])
    for site in sites(module):
        check_merge(site, module, run, outputs[site.path])


def check_layout(site: Site, output: Tensor) -> None:
    assert output.ndim == len(site.tokens), site
    assert output.shape[site.tokens.index("C")] == site.width, site
    if site.windows:
        assert output.shape[0] % 2 == 0, site
        return
    assert output.shape[site.tokens.index("B")] == 2, site
    if "N" in site.tokens and site.tower == "image":
        count = output.shape[site.tokens.index("N")]
        assert site.grid_of(count)[0] ** 2 == count - site.prefix_tokens, site


def check_merge(site: Site, module: nn.Module, run: Callable[[], object], before: Tensor) -> None:
    """W ← M W, b ← M b in the site's linear gives M times what the site gave before."""
    if site.linear is None:
        assert site.kind in ("block", "norm")
        return
    assert site.fused == (site.linear != site.path)
    linear = module.get_submodule(site.linear)
    mixing = torch.eye(site.width) + 0.1 * torch.randn(site.width, site.width)
    kept = {name: parameter.data for name, parameter in linear.named_parameters()}
    for parameter in linear.parameters():
        parameter.data = torch.einsum("ed,d...->e...", mixing, parameter.data)
    after = record(module, run, [site])[site.path]
    for name, parameter in linear.named_parameters():
        parameter.data = kept[name]
    channels = site.tokens.index("C")
    expected = (before.movedim(channels, -1) @ mixing.T).movedim(-1, channels)
    torch.testing.assert_close(after, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(after, before, atol=1e-3)


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_contrastive_models(name: str, contrastive) -> None:
    module, run = contrastive(name)
    found = sites(module)
    images = [site for site in found if site.tower == "image"]
    texts = [site for site in found if site.tower == "text"]
    assert found == images + texts
    blocks = 2 if name in ("siglip", "siglip2") else 3
    assert [(site.depth, site.kind) for site in images] == [
        (d, k) for d in range(blocks) for k in ("attention", "mlp")
    ]
    assert [(site.depth, site.kind) for site in texts] == [
        (d, k) for d in range(2) for k in ("attention", "mlp")
    ]
    assert all(site.prefix_tokens == (name not in ("siglip", "siglip2")) for site in images)
    assert not any(site.prefix_tokens for site in texts)
    check(module, run)


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_image_models(name: str) -> None:
    torch.manual_seed(0)
    make, blocks, each = IMAGE_MODELS[name]
    module = make().eval()
    for parameter in module.parameters():  # no zero biases, no tiny layer scales
        parameter.data += 0.1 * torch.randn_like(parameter)
    found = sites(module)
    assert len(found) == blocks * each
    assert [site.depth for site in found] == [depth for depth in range(blocks) for _ in range(each)]
    assert {site.tower for site in found} == {"image"}
    pixels = torch.randn(2, 3, 32, 32)
    check(module, lambda: module(pixels))


def test_a_timm_tower_inside_open_clip(save_open_clip) -> None:
    vision = {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "token"}
    model = load(save_open_clip({"size": 160}, custom_text=True, vision_cfg=vision)[0])
    found = sites(model.module)
    assert found[0].path == "visual.trunk.blocks.0.attn.proj"
    assert found[-1].path == "text.transformer.resblocks.1.mlp.c_proj"


def test_a_part_of_a_model(save_open_clip) -> None:
    module = load(save_open_clip()[0]).module
    assert [site.path for site in sites(module.visual)] == [
        site.path.removeprefix("visual.") for site in sites(module, Select(tower="image"))
    ]


def test_a_model_inside_another(save_open_clip) -> None:
    inside = nn.ModuleDict(
        {"backbone": timm.create_model("vit_tiny_patch16_224", **TIMM_VIT), "head": nn.Linear(32, 2)}
    )
    assert sites(inside)[0].path == "backbone.blocks.0.attn.proj"
    assert [site.path for site in sites(inside, Select(pattern="head", kinds=("linear",)))] == ["head"]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(4, 8), "fc2": nn.Linear(8, 4)})
        self.attention = nn.MultiheadAttention(4, 2)
        self.norm = nn.LayerNorm(4)


class TestUnknownModel:
    @pytest.fixture
    def model(self) -> nn.Module:
        return nn.ModuleDict({"blocks": nn.ModuleList([Block(), Block()]), "head": nn.Linear(4, 3)})

    def test_an_explicit_pattern_works(self, model: nn.Module) -> None:
        found = sites(model, Select(pattern="blocks.*.mlp.fc2", kinds=("linear",)))
        assert [(site.path, site.depth, site.width, site.linear) for site in found] == [
            ("blocks.0.mlp.fc2", 0, 4, "blocks.0.mlp.fc2"),
            ("blocks.1.mlp.fc2", 1, 4, "blocks.1.mlp.fc2"),
        ]
        assert [site.path for site in sites(model, Select(pattern="blocks.1.*", kinds=("norm",)))] == [
            "blocks.1.norm"
        ]

    def test_a_linear_that_is_never_called_is_no_site(self, model: nn.Module) -> None:
        found = sites(model, Select(pattern="blocks.*", kinds=("linear",)))
        assert not any("out_proj" in site.path for site in found)
        assert len(found) == 4

    def test_without_a_pattern_it_says_how(self, model: nn.Module) -> None:
        with pytest.raises(TetherError, match=r"not known.*pattern='blocks"):
            sites(model)

    def test_only_its_outputs_can_be_named(self, model: nn.Module) -> None:
        with pytest.raises(
            TetherError, match=r"not known\. At position 'after' it has none; outputs there are"
        ):
            sites(model, Select(pattern="blocks.*", kinds=("mlp",)), "after")

    def test_a_pattern_that_matches_nothing_names_near_misses(self, model: nn.Module) -> None:
        with pytest.raises(TetherError, match=r"did you mean 'blocks\.\*\.mlp\.fc2'"):
            sites(model, Select(pattern="block.*.mlp.fc2", kinds=("linear",)))


def test_half_a_contrastive_model_is_an_error(save_open_clip) -> None:
    """A ResNet tower has no such sites: training the text tower alone must be asked for."""
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}
    module = load(save_open_clip(vision_cfg=vision)[0]).module
    with pytest.raises(TetherError, match="image tower are not known"):
        sites(module)
    assert {site.tower for site in sites(module, Select(tower="text"))} == {"text"}
