import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from tether.errors import TetherError
from tether.objectives.geodesic import l_mix, m2_mix, v_mix, vl_mix
from tether.objectives.info_nce import info_nce
from tether.objectives.mixup import GeodesicMixup, GeodesicMixupConfig, draw_share


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_m3_mix_is_the_sum_of_its_parts():
    image, text = unit(5, 4, seed=1), unit(5, 4, seed=2)
    config = GeodesicMixupConfig(fade=True)
    draws = generator()
    m2, v, l, vl = (draw_share(beta, draws) for beta in (0.2, 0.5, 0.5, 0.5))  # noqa: E741
    parts = 0.01 * m2_mix(image, text, m2, 0.07) + 0.1 * vl_mix(image, text, vl)
    parts = parts + 0.05 * v_mix(image, text, v) + 0.05 * l_mix(image, text, l)
    plain = info_nce(image, text, 100.0)
    torch.testing.assert_close(GeodesicMixup(config)(image, text, generator(), epoch=2), plain + parts / 3)
    unfaded = GeodesicMixup(GeodesicMixupConfig())(image, text, generator(), epoch=2)
    torch.testing.assert_close(unfaded, plain + parts)


def test_without_coefficients_it_is_the_contrastive_loss():
    image, text = unit(5, 4, seed=1), unit(5, 4, seed=2)
    plain = GeodesicMixup(GeodesicMixupConfig(m2=0.0, v=0.0, l=0.0, vl=0.0))(image, text, generator())
    assert plain == info_nce(image, text, 100.0)


def test_the_generator_alone_decides():
    image, text = unit(5, 4, seed=1), unit(5, 4, seed=2)
    objective = GeodesicMixup(GeodesicMixupConfig())
    torch.manual_seed(1)
    first = objective(image, text, generator())
    torch.manual_seed(2)
    assert objective(image, text, generator()) == first
    assert objective(image, text, generator(5)) != first


def test_distinct_texts_with_an_index():
    image, texts, index = unit(5, 4, seed=1), unit(3, 4, seed=2), torch.tensor([0, 2, 1, 2, 0])
    objective = GeodesicMixup(GeodesicMixupConfig())
    indexed = objective(image, texts, generator(), index=index)
    assert indexed == objective(image, texts[index], generator())


def test_shares_follow_beta():
    draws = generator()
    shares = torch.tensor([draw_share(0.5, draws) for _ in range(4000)])
    assert shares.min() >= 0 and shares.max() <= 1
    assert abs(shares.mean() - 0.5) < 0.025
    assert abs(shares.var() - 1 / 8) < 0.01  # of Beta(½, ½)


@pytest.mark.parametrize(
    "wrong", [{"temperature": 0.0}, {"m2_beta": -1.0}, {"vl": -0.1}, {"m2": float("nan")}]
)
def test_impossible_settings_are_refused_when_made(wrong):
    with pytest.raises(TetherError, match=next(iter(wrong))):
        GeodesicMixupConfig(**wrong)


def _one_rank(rank, port, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    image, text = unit(6, 4, seed=1), unit(6, 4, seed=2)
    local = image[3 * rank : 3 * rank + 3].clone().requires_grad_()
    loss = GeodesicMixup(GeodesicMixupConfig())(local, text[3 * rank : 3 * rank + 3], generator())
    loss.backward()
    save_file({"loss": loss.detach(), "gradient": local.grad}, f"{folder}/{rank}.safetensors")
    dist.destroy_process_group()


def test_two_processes_see_the_global_batch(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_one_rank, (port, str(tmp_path)), nprocs=2)
    image = unit(6, 4, seed=1).requires_grad_()
    loss = GeodesicMixup(GeodesicMixupConfig())(image, unit(6, 4, seed=2), generator())
    loss.backward()
    ranks = [load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1)]
    for part in ranks:
        torch.testing.assert_close(part["loss"], loss.detach())
    # Gradients are averaged over the processes afterwards, hence the factor of two here.
    torch.testing.assert_close(torch.cat([part["gradient"] for part in ranks]) / 2, image.grad)
