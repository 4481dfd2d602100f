"""Cross-entropy against a loop over classes."""

import math

import pytest
import torch
import torch.nn.functional as F

from tether.objectives import cross_entropy


def slow_cross_entropy(image, classes, labels, scale, smoothing):
    total = 0.0
    for feature, label in zip(image, labels, strict=True):
        logits = [scale * float(feature @ row) for row in classes]
        partition = max(logits) + math.log(sum(math.exp(x - max(logits)) for x in logits))
        for number, logit in enumerate(logits):
            target = smoothing / len(classes) + (1 - smoothing) * (number == label)
            total -= target * (logit - partition)
    return total / len(image)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_equals_the_slow_formula(scale, smoothing):
    generator = torch.Generator().manual_seed(0)
    image = F.normalize(torch.randn(6, 5, generator=generator, dtype=torch.float64), dim=1)
    classes = F.normalize(torch.randn(4, 5, generator=generator, dtype=torch.float64), dim=1)
    labels = torch.tensor([0, 3, 1, 1, 2, 0])
    loss = cross_entropy(image, classes, labels, scale, smoothing=smoothing)
    expected = slow_cross_entropy(image, classes, labels.tolist(), scale, smoothing)
    assert float(loss) == pytest.approx(expected, rel=1e-12)


def test_learned_scale_and_int32_labels():
    image, classes, labels = torch.eye(3), torch.eye(3), torch.tensor([0, 1, 2], dtype=torch.int32)
    scale = torch.tensor(2.0, requires_grad=True)
    cross_entropy(image, classes, labels, scale).backward()
    assert scale.grad < 0  # all right already: a sharper softmax lowers the loss
