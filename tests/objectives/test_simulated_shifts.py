import pytest
import torch

from tether.objectives.simulated_shifts import SHIFTS, cut_mix, jitter, mix_amplitude, mix_style

ALL = [*SHIFTS.values(), jitter]


def pictures(height=6, width=5):
    return torch.randn(4, 3, height, width, generator=torch.Generator().manual_seed(1))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("simulate", ALL)
def test_equal_generators_give_equal_pictures_and_others_do_not(simulate):
    pixels = pictures()
    kept = pixels.clone()
    first = simulate(pixels, generator())
    assert first.shape == pixels.shape and first.dtype == pixels.dtype and first.isfinite().all()
    assert torch.equal(first, simulate(pixels, generator()))
    assert not torch.equal(first, simulate(pixels, generator(7)))
    assert torch.equal(pixels, kept)


@pytest.mark.parametrize("simulate", ALL)
def test_half_precision_and_a_flat_picture(simulate):
    flat = torch.zeros(2, 3, 4, 4, dtype=torch.float16)
    assert simulate(flat, generator()).dtype == torch.float16
    assert simulate(flat, generator()).isfinite().all()


@pytest.mark.parametrize("simulate", SHIFTS.values())
def test_a_single_picture_has_nobody_to_borrow_from(simulate):
    alone = pictures()[:1]
    torch.testing.assert_close(simulate(alone, generator()), alone, rtol=1e-4, atol=1e-5)


def test_amplitude_changes_and_phase_stays():
    pixels = pictures().double()
    before, after = (torch.fft.rfft2(p.float()) for p in (pixels, mix_amplitude(pixels, generator())))
    turned = (after * before.conj()).angle()[..., 1:3]  # away from the self-conjugate columns
    assert turned.abs().max() < 1e-3
    assert (after.abs() - before.abs()).abs().max() > 0.1


def test_style_moves_means_and_spreads_and_keeps_the_standardised_picture():
    pixels = pictures() * torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None, None] + 1
    mixed = mix_style(pixels, generator())

    def standardised(p):
        return (p - p.mean((2, 3), keepdim=True)) / p.std((2, 3), keepdim=True)

    torch.testing.assert_close(standardised(mixed), standardised(pixels), rtol=1e-3, atol=1e-3)
    assert (mixed.std((2, 3)) - pixels.std((2, 3))).abs().max() > 0.1


def test_cut_mix_fills_one_box_from_another_picture():
    colours = torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 8)
    mixed = cut_mix(colours, generator(2))
    changed = (mixed != colours)[:, 0]
    rows, columns = changed.any(0).any(1).nonzero(), changed.any(0).any(0).nonzero()
    box = changed[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    moved = changed.flatten(1).any(1)
    assert len(rows) > 0 and moved.any()
    assert box[moved].all() and box[moved].sum() == changed.sum()
