import os
import socket
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from tether.errors import TetherError
from tether.objectives.geodesic import l_mix, m2_mix, v_mix, vl_mix
from tether.objectives.mixup import (
    GeodesicMixup,
    LMixConfig,
    M2MixConfig,
    M3MixConfig,
    VLMixConfig,
    VMixConfig,
    draw_share,
    mixup,
)


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_m3_mix_is_the_sum_of_its_parts():
    image, text = unit(5, 4, seed=1), unit(5, 4, seed=2)
    draws = generator()
    m2, v, l, vl = (draw_share(beta, draws) for beta in (0.2, 0.5, 0.5, 0.5))  # noqa: E741
    sides = (image, text)
    parts = 0.01 * m2_mix(*sides, m2, 0.07) + 0.05 * v_mix(*sides, v)
    parts = parts + 0.05 * l_mix(*sides, l) + 0.1 * vl_mix(*sides, vl)
    torch.testing.assert_close(mixup(M3MixConfig(), *sides, generator()), parts)
    assert mixup(M3MixConfig(), *sides, generator(), epoch=2) == mixup(M3MixConfig(), *sides, generator())


def test_a_weight_of_0_leaves_the_other_shares_as_they_were():
    image, text = unit(5, 4, seed=1), unit(5, 4, seed=2)
    none = {"v": VMixConfig(weight=0.0), "l": LMixConfig(weight=0.0), "vl": VLMixConfig(weight=0.0)}
    draws = generator()
    share = [draw_share(beta, draws) for beta in (0.2, 0.5)][1]
    only = M3MixConfig(**(none | {"v": VMixConfig()}), m2=M2MixConfig(beta=0.2, weight=0.0))
    expected = 0.05 * v_mix(image, text, share)
    torch.testing.assert_close(mixup(only, image, text, generator()), expected)
    assert mixup(M3MixConfig(**none, m2=M2MixConfig(weight=0.0)), image, text, generator()) == 0


@pytest.mark.parametrize(
    ("config", "loss"),
    [
        (M2MixConfig(), lambda i, t, s: m2_mix(i, t, s, 0.07)),
        (M2MixConfig(halve=True, negative_temperature=0.2), lambda i, t, s: m2_mix(i, t, s, 0.07, 0.2, True)),
        (VMixConfig(original_negatives=True), lambda i, t, s: v_mix(i, t, s, 0.01, True)),
        (LMixConfig(temperature=None), lambda i, t, s: l_mix(i, t, s, 1 / 20)),
        (VLMixConfig(normalise_target=True), lambda i, t, s: vl_mix(i, t, s, 0.01, False, True)),
    ],
)
def test_one_mix_with_its_options(config, loss):
    image, text = unit(5, 4, seed=1), unit(5, 4, seed=2)
    expected = loss(image, text, draw_share(0.5, generator()))
    torch.testing.assert_close(mixup(config, image, text, generator(), scale=20.0, epoch=2), expected)
    faded = mixup(replace(config, fade=True), image, text, generator(), scale=20.0, epoch=2)
    torch.testing.assert_close(faded, expected / 3)


def test_the_generator_alone_decides():
    image, text = unit(5, 4, seed=1), unit(5, 4, seed=2)
    objective = GeodesicMixup(M3MixConfig())
    torch.manual_seed(1)
    first = objective(image, text, generator())
    torch.manual_seed(2)
    assert objective(image, text, generator()) == first
    assert objective(image, text, generator(5)) != first


def test_distinct_texts_with_an_index():
    image, texts, index = unit(5, 4, seed=1), unit(3, 4, seed=2), torch.tensor([0, 2, 1, 2, 0])
    objective = GeodesicMixup(M3MixConfig())
    indexed = objective(image, texts, generator(), index=index)
    assert indexed == objective(image, texts[index], generator())


def test_shares_follow_beta():
    draws = generator()
    shares = torch.tensor([draw_share(0.5, draws) for _ in range(4000)])
    assert shares.min() >= 0 and shares.max() <= 1
    assert abs(shares.mean() - 0.5) < 0.025
    assert abs(shares.var() - 1 / 8) < 0.01  # of Beta(½, ½)


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        (VMixConfig, {"temperature": 0.0}),
        (LMixConfig, {"beta": -1.0}),
        (VLMixConfig, {"weight": -0.1}),
        (M2MixConfig, {"weight": float("nan")}),
        (M2MixConfig, {"negative_temperature": 0.0}),
        (M3MixConfig, {"weight": -1.0}),
    ],
)
def test_impossible_settings_are_refused_when_made(config, wrong):
    with pytest.raises(TetherError, match=next(iter(wrong))):
        config(**wrong)


def _one_rank(rank, port, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    image, text = unit(6, 4, seed=1), unit(6, 4, seed=2)
    local = image[3 * rank : 3 * rank + 3].clone().requires_grad_()
    loss = GeodesicMixup(M3MixConfig())(local, text[3 * rank : 3 * rank + 3], generator())
    loss.backward()
    save_file({"loss": loss.detach(), "gradient": local.grad}, f"{folder}/{rank}.safetensors")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_see_the_global_batch(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_one_rank, (port, str(tmp_path)), nprocs=2)
    image = unit(6, 4, seed=1).requires_grad_()
    loss = GeodesicMixup(M3MixConfig())(image, unit(6, 4, seed=2), generator())
    loss.backward()
    ranks = [load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1)]
    for part in ranks:
        torch.testing.assert_close(part["loss"], loss.detach())
    # Gradients are averaged over the processes afterwards, hence the factor of two here.
    torch.testing.assert_close(torch.cat([part["gradient"] for part in ranks]) / 2, image.grad)
