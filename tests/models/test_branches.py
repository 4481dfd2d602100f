"""What sites around a branch read and add to, checked against what the model itself computes."""

from collections.abc import Callable, Mapping
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from tether.errors import TetherError
from tether.models import Select, load, sites
from tether.models.site import Port, Site

from .image_models import IMAGE_MODELS, TIMM_VIT

BOTH = Select(kinds=("attention", "mlp"))
PREFIX = {
    "timm ViT": 1,
    "timm EVA": 1,
    "timm hybrid": 1,
    "timm DeiT distilled": 2,
    "timm DINOv2 with registers": 5,
    "transformers ViT": 1,
    "transformers DINOv2": 1,
    "transformers DINOv2 with SwiGLU": 1,
    "transformers DeiT": 2,
    "transformers DINOv2 with registers": 5,
    "transformers DINOv3": 5,
    "torchvision ViT": 1,
}
MOVED = ("timm EVA", "transformers DINOv3")  # with a rotary position embedding
POST_NORM = ("timm Swin 2", "timm ViT post-norm", "torchvision Swin 2", "transformers Swin 2")
ANY_SIZE = ("transformers DINOv2", "transformers DINOv3", "transformers Swin", "torchvision Swin")


@cache
def model(name: str) -> nn.Module:
    """The model, random but for no zero and no tiny tensor, without chance."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = IMAGE_MODELS[name][0]().eval().requires_grad_(False)
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module


def run(
    module: nn.Module,
    call: Callable[[], object],
    ports: list[Port],
    added: Mapping[Port, Tensor | Callable] = {},
) -> dict[Port, Tensor]:
    """What passes the ports, after what is added to some of them (a tensor, or what a function makes of the old)."""
    seen: dict[Port, Tensor] = {}

    def change(port: Port, value: Tensor) -> Tensor:
        if port in added:
            more = added[port]
            value = more(value) if callable(more) else value + more.reshape(value.shape)
        seen[port] = value
        return value

    def watch(port: Port) -> object:
        part = module.get_submodule(port.path)
        if port.side == "input":
            return part.register_forward_pre_hook(lambda part, given: (change(port, given[0]), *given[1:]))

        def after(part: nn.Module, given: object, result: object) -> object:
            if isinstance(result, tuple):
                return (change(port, result[0]), *result[1:])
            return change(port, result)

        return part.register_forward_hook(after)

    handles = [watch(port) for port in dict.fromkeys([*ports, *added])]
    call()
    for handle in handles:
        handle.remove()
    return seen


def flat(value: Tensor, port: Port) -> Tensor:
    """As batch, tokens, channels."""
    if port.tokens == "NBC":
        return value.transpose(0, 1)
    return value.movedim(port.tokens.index("C"), -1).flatten(1, -2)


def by_block(module: nn.Module, position: str) -> dict[tuple[str, int, str], Site]:
    found = sites(module, Select(kinds=("attention", "mlp")), position)
    return {(site.tower, site.depth, site.kind): site for site in found}


def check_scaled(difference: Tensor, branch: Tensor) -> None:
    """The difference is the branch times one number per channel, as LayerScale has it."""
    scale = (difference * branch).sum((0, 1)) / branch.square().sum((0, 1))
    torch.testing.assert_close(difference, scale * branch, atol=2e-4, rtol=1e-3)
    assert difference.abs().max() > 1e-3


def check_stream(module: nn.Module, call: Callable[[], object]) -> None:
    """The branch's result is the difference of the stream after and before it, also with something added there."""
    before, after, branch = (by_block(module, position) for position in ("before", "after", "branch"))
    assert before.keys() == after.keys() == branch.keys()
    assert before
    everything = [site.reads for group in (before, after, branch) for site in group.values()]
    values = run(module, call, everything)
    for key, site in branch.items():
        start, end = (flat(values[group[key].reads], group[key].reads) for group in (before, after))
        assert flat(values[site.reads], site.reads).shape[-1] == site.width
        check_scaled(end - start, flat(values[site.reads], site.reads))
    for key, site in after.items():
        delta = torch.randn_like(values[site.reads])
        now = run(module, call, everything, dict.fromkeys(site.writes, delta))
        changed = flat(now[site.reads], site.reads)
        torch.testing.assert_close(
            changed, flat(values[site.reads] + delta, site.reads), atol=1e-4, rtol=1e-4
        )
        following = (*key[:2], "mlp")  # what is added after the attention reaches the MLP, and passes it
        if key[2] == "attention" and following in after:
            last, middle = after[following].reads, branch[following].reads
            check_scaled(flat(now[last], last) - changed, flat(now[middle], middle))


def check_parallel(module: nn.Module, call: Callable[[], object]) -> None:
    """What is added beside a branch appears behind it, and the branch itself does not see it."""
    before, after, branch = (by_block(module, position) for position in ("before", "after", "branch"))
    for key, site in by_block(module, "parallel").items():
        assert site.reads == before[key].reads
        ports = [site.reads, after[key].reads, branch[key].reads]
        values = run(module, call, ports)
        delta = torch.randn_like(values[site.reads])
        now = run(module, call, ports, dict.fromkeys(site.writes, delta))
        torch.testing.assert_close(now[branch[key].reads], values[branch[key].reads])
        end = after[key].reads
        expected = flat(values[end], end) + flat(delta, site.reads)
        torch.testing.assert_close(flat(now[end], end), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_the_stream_of_image_models(name: str) -> None:
    module = model(name)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    check_stream(module, lambda: module(pixels))
    check_parallel(module, lambda: module(pixels))


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_what_a_branch_reads_behind_its_norm(name: str) -> None:
    module = model(name)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    if name in POST_NORM:
        with pytest.raises(
            TetherError, match=r"no site at position 'parallel_normalized'; it has sites at output"
        ):
            sites(module, position="parallel_normalized")
        return
    branch = by_block(module, "branch")
    for key, site in by_block(module, "parallel_normalized").items():
        assert site.writes == branch[key].writes
        values = run(module, lambda: module(pixels), [site.reads, *site.writes])
        read = values[site.reads]
        norm = module.get_submodule(site.path)
        channels = -1 if site.tokens != "BCHW" else 1
        standard = ((read - _as(norm.bias, read, channels)) / _as(norm.weight, read, channels)).mean(channels)
        assert standard.abs().max() < 1e-3  # the norm's own output, and of the layout of what it is added to
        assert read.shape == values[site.writes[0]].shape


def _as(vector: Tensor | None, like: Tensor, channels: int) -> Tensor:
    if vector is None:
        return torch.zeros(())
    return vector if channels == -1 else vector.view(-1, 1, 1)


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_prefix_tokens_and_grid(name: str) -> None:
    module = model(name)
    pixels = torch.randn(2, 3, 32, 32)
    found = sites(module, BOTH, "after")
    assert {site.prefix_tokens for site in found} == {PREFIX.get(name, 0)}
    values = run(module, lambda: module(pixels), [site.reads for site in found])
    for site in found:
        read = values[site.reads]
        if site.tokens == "BNC":
            rows, columns = site.grid_of(read.shape[1])
            assert rows * columns == read.shape[1] - site.prefix_tokens
        elif site.grid is not None:
            assert site.grid == tuple(read.shape[site.tokens.index("H") :][:2])
    if name.startswith(ANY_SIZE):
        assert all(site.grid is None for site in found)
    if name in (
        "timm ViT",
        "torchvision ViT",
        "transformers ViT",
        "transformers DeiT",
        "timm DINOv2 with registers",
    ):
        assert {site.grid for site in found} == {(4, 4)}
    if name == "timm Swin":
        assert [site.grid for site in found] == [(16, 16)] * 2 + [(8, 8)] * 4


@pytest.mark.parametrize("name", PREFIX)
def test_tokens_can_be_put_into_a_sequence(name: str) -> None:
    """Three tokens behind the prefix of every block, and out again: the patches stay what and where they were."""
    module = model(name)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    if name in MOVED:
        with pytest.raises(TetherError, match="no site at position 'prompt'"):
            sites(module, Select(kinds=("block",)), "prompt")
        return
    found = sites(module, Select(kinds=("block",)), "prompt")
    assert len(found) == IMAGE_MODELS[name][1]
    first = found[0]
    cut, prompt = first.prefix_tokens, torch.randn(2, 3, first.width)

    def put(x: Tensor) -> Tensor:
        return torch.cat((x[:, :cut], prompt, x[:, cut:]), dim=1)

    def take(x: Tensor) -> Tensor:
        return torch.cat((x[:, :cut], x[:, cut + 3 :]), dim=1)

    end = found[-1].writes[0]
    plain = run(module, lambda: module(pixels), [end])[end]
    changes = {site.reads: put for site in found} | {site.writes[0]: take for site in found}
    with_prompts = run(module, lambda: module(pixels), [end], changes)[end]
    assert with_prompts.shape == plain.shape
    assert not torch.allclose(with_prompts, plain, atol=1e-3)
    # the order of the prompts does not matter, that of the patches is as before
    prompt = prompt.flip(1)
    torch.testing.assert_close(
        run(module, lambda: module(pixels), [end], changes)[end], with_prompts, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("kind", ["own", "own attention class", "clip", "siglip", "siglip2"])
def test_the_stream_of_both_towers(kind: str, save_open_clip, save_transformers) -> None:
    if kind.startswith("own"):
        vision = {"qk_norm": True} if kind == "own attention class" else {}
        loaded = load(save_open_clip(custom_text=True, vision_cfg=vision)[0])
    else:
        loaded = load(save_transformers(kind)[0])
    module = loaded.module.requires_grad_(False)
    tokens, pixels = loaded.tokenize(["a cat", "a photo"]), torch.randn(2, 3, 32, 32)

    def call() -> object:
        return loaded.encode_image(pixels), loaded.encode_text(tokens)

    check_stream(module, call)
    check_parallel(module, call)
    assert {site.tower for site in sites(module, BOTH, "after")} == {"image", "text"}
    prompts = Select(kinds=("block",), tower="image")
    if kind == "siglip2":  # its mask is made for the patches alone
        with pytest.raises(TetherError, match="no site at position 'prompt'"):
            sites(module, prompts, "prompt")
    else:
        assert len(sites(module, prompts, "prompt")) == len(sites(module, prompts))
        with pytest.raises(TetherError, match=r"text tower has no site at position 'prompt'.*tower='image'"):
            sites(module, Select(kinds=("block",)), "prompt")


def test_a_sequence_that_is_not_the_grid_is_refused() -> None:
    (site, *_) = sites(model("timm ViT"), BOTH, "after")
    assert site.grid_of(17) == (4, 4)
    with pytest.raises(TetherError, match=r"20 tokens, where 1 in front of 4 × 4 patches were expected"):
        site.grid_of(20)
    (site, *_) = sites(model("transformers DINOv2"), BOTH, "after")
    assert site.grid_of(1 + 36) == (6, 6)
    with pytest.raises(TetherError, match="1 in front of a square of patches"):
        site.grid_of(1 + 35)


def test_a_model_for_pictures_of_any_size_has_no_fixed_grid() -> None:
    import timm

    module = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True, **TIMM_VIT)
    assert {site.grid for site in sites(module, BOTH, "after")} == {None}


def test_a_position_nobody_knows(unchecked: None) -> None:
    with pytest.raises(TetherError, match="Unknown position 'paralel'; did you mean 'parallel'"):
        sites(model("timm ViT"), position="paralel")
