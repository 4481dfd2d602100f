"""MPM-NCE against the formula written as loops, and its algebra."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tether.errors import TetherError
from tether.objectives import MPMNCE, MPMNCEConfig, info_nce, mpm_nce, soft_labels


def slow_mpm_nce(image, text, labels, scale, margin, smoothing, margin_of_positives=0.0):
    count = len(labels)

    def one_direction(anchors, others):
        total = 0.0
        for i in range(count):
            positives = sum(labels[i] == labels[j] for j in range(count))
            logits = []
            for j in range(count):
                shift = margin_of_positives if labels[i] == labels[j] else margin
                logits.append(scale * (float(anchors[i] @ others[j]) + shift))
            partition = max(logits) + math.log(sum(math.exp(x - max(logits)) for x in logits))
            for j in range(count):
                if positives == count:
                    target = 1 / count
                elif labels[i] == labels[j]:
                    target = (1 - smoothing) / positives
                else:
                    target = smoothing / (count - positives)
                total -= target * (logits[j] - partition)
        return total / count

    return (one_direction(image, text) + one_direction(text, image)) / 2


@st.composite
def batches(draw):
    labels = draw(st.lists(st.integers(0, 4), min_size=1, max_size=8))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    image, text = torch.randn(2, len(labels), 5, generator=generator, dtype=torch.float64)
    return F.normalize(image, dim=1), F.normalize(text, dim=1), torch.tensor(labels)


margins = st.floats(0, 0.5)
smoothings = st.floats(0, 0.5)
scales = st.floats(1, 100)


@settings(deadline=None)
@given(batches(), scales, margins, smoothings)
def test_equals_the_slow_formula(batch, scale, margin, smoothing):
    image, text, labels = batch
    loss = mpm_nce(image, text, labels, scale, margin=margin, smoothing=smoothing)
    expected = slow_mpm_nce(image, text, labels.tolist(), scale, margin, smoothing)
    assert float(loss) == pytest.approx(expected, rel=1e-6, abs=1e-6)  # the targets are fp32


@settings(deadline=None)
@given(batches(), scales, margins, smoothings, st.randoms(use_true_random=False))
def test_the_order_of_the_batch_does_not_matter(batch, scale, margin, smoothing, random):
    image, text, labels = batch
    order = torch.tensor(random.sample(range(len(labels)), len(labels)))
    loss = mpm_nce(image, text, labels, scale, margin=margin, smoothing=smoothing)
    permuted = mpm_nce(image[order], text[order], labels[order], scale, margin=margin, smoothing=smoothing)
    torch.testing.assert_close(permuted, loss, rtol=1e-6, atol=1e-6)


@settings(deadline=None)
@given(batches(), scales)
def test_is_the_clip_loss_when_all_labels_differ_without_margin_and_smoothing(batch, scale):
    image, text, labels = batch
    loss = mpm_nce(image, text, torch.arange(len(labels)), scale, margin=0.0, smoothing=0.0)
    torch.testing.assert_close(loss, info_nce(image, text, scale), rtol=1e-9, atol=1e-9)


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), smoothings)
def test_every_target_row_sums_to_one(labels, smoothing):
    rows = soft_labels(torch.tensor(labels), smoothing).sum(1)
    torch.testing.assert_close(rows, torch.ones(len(labels)))


@settings(deadline=None)
@given(batches(), scales, margins, smoothings)
def test_a_margin_on_negatives_is_minus_that_margin_on_positives(batch, scale, margin, smoothing):
    image, text, labels = batch
    loss = mpm_nce(image, text, labels, scale, margin=margin, smoothing=smoothing)
    other = slow_mpm_nce(image, text, labels.tolist(), scale, 0.0, smoothing, margin_of_positives=-margin)
    assert float(loss) == pytest.approx(other, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.02])
@pytest.mark.parametrize("count", [1, 4])
def test_one_single_label_gives_a_finite_loss_and_gradient(count, smoothing):
    image = torch.randn(count, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    text = torch.randn(count, 5, generator=torch.Generator().manual_seed(1))
    loss = mpm_nce(image, text, torch.zeros(count, dtype=torch.long), 100.0, smoothing=smoothing)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(image.grad).all()


def test_smoothing_is_spread_by_anchor_not_by_column():
    # Labels a a b: the anchors a have one negative, the anchor b has two.
    expected = torch.tensor([[0.45, 0.45, 0.1], [0.45, 0.45, 0.1], [0.05, 0.05, 0.9]])
    torch.testing.assert_close(soft_labels(torch.tensor([7, 7, 3]), 0.1), expected)


def test_stays_finite_at_a_large_scale_in_half_precision_features():
    image = F.normalize(torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    labels = torch.arange(16) // 2
    loss = mpm_nce(image.bfloat16(), -image.bfloat16(), labels, 1000.0)
    assert loss.dtype == torch.float32 and torch.isfinite(loss)


def test_the_module_takes_its_temperature_from_the_config_or_the_model():
    image, text = F.normalize(torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)), dim=2)
    labels, index = torch.tensor([0, 0, 1, 2, 2, 3]), torch.tensor([0, 0, 1, 2, 2, 3])
    expected = mpm_nce(image, text[index], labels, 50.0, margin=0.1, smoothing=0.0)
    own = MPMNCE(MPMNCEConfig(margin=0.1, smoothing=0.0, temperature=0.02))
    given_scale = MPMNCE(MPMNCEConfig(margin=0.1, smoothing=0.0))
    torch.testing.assert_close(own(image, text, labels, 7.0, index=index), expected)
    assert torch.equal(given_scale(image, text, labels, 50.0, index=index), expected)


def test_the_defaults_are_the_papers():
    config = MPMNCEConfig()
    assert (config.margin, config.smoothing, config.temperature) == (0.05, 0.02, None)
    image, text = F.normalize(torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0)), dim=2)
    labels = torch.tensor([0, 0, 1, 2])
    assert torch.equal(MPMNCE()(image, text, labels, 100.0), mpm_nce(image, text, labels, 100.0))


@pytest.mark.parametrize(
    "options",
    [{"smoothing": 1.0}, {"smoothing": -0.1}, {"margin": -1.0}, {"margin": math.nan}, {"temperature": 0.0}],
)
def test_refuses_options_that_make_no_sense(options):
    with pytest.raises(TetherError, match=next(iter(options))):
        MPMNCEConfig(**options)


def test_float64_features_give_a_float64_loss():
    """The target too: a smoothing of 0.02 in float32 is off by 4e-10."""
    labels = torch.tensor([0, 1, 1, 2, 2, 2, 3])
    features = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    image, text = F.normalize(features, dim=-1)
    logits = [
        [
            100 * (sum(a * b for a, b in zip(x, y, strict=True)) + 0.05 * (one != other))
            for y, other in zip(text.tolist(), labels.tolist(), strict=True)
        ]
        for x, one in zip(image.tolist(), labels.tolist(), strict=True)
    ]
    alike = [[one == other for other in labels.tolist()] for one in labels.tolist()]
    total = 0.0
    for rows, same in ((logits, alike), ([list(column) for column in zip(*logits, strict=True)], alike)):
        for row, own in zip(rows, same, strict=True):
            norm = math.log(math.fsum(math.exp(value - max(row)) for value in row)) + max(row)
            target = [0.98 / sum(own) if positive else 0.02 / (7 - sum(own)) for positive in own]
            total -= math.fsum(share * (value - norm) for share, value in zip(target, row, strict=True)) / 14
    assert float(mpm_nce(image, text, labels, 100.0)) == pytest.approx(total, rel=1e-13)
