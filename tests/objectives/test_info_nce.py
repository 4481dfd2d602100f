"""InfoNCE against a loop over pairs."""

import math

import pytest
import torch
import torch.nn.functional as F

from tether.errors import TetherError
from tether.objectives import InfoNCE, info_nce


def slow_info_nce(image, text, scale):
    def cross_entropy_of_own(logits, own):
        return math.log(sum(math.exp(x - max(logits)) for x in logits)) + max(logits) - logits[own]

    total = 0.0
    for i in range(len(image)):
        total += cross_entropy_of_own([scale * float(image[i] @ t) for t in text], i)
        total += cross_entropy_of_own([scale * float(text[i] @ f) for f in image], i)
    return total / (2 * len(image))


def features(rows, seed, dim=6):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=generator, dtype=torch.float64), dim=1)


@pytest.mark.parametrize("scale", [1.0, 20.0, 100.0])
def test_equals_the_slow_formula(scale):
    image, text = features(7, 0), features(7, 1)
    assert float(info_nce(image, text, scale)) == pytest.approx(slow_info_nce(image, text, scale), rel=1e-12)


def test_distinct_texts_with_an_index_equal_repeated_texts():
    image, text = features(5, 0), features(3, 1)
    index = torch.tensor([2, 0, 0, 1, 2])
    assert torch.equal(info_nce(image, text, 9.0, index=index), info_nce(image, text[index], 9.0))


def test_the_module_is_the_function_with_one_process():
    image, text, index = features(5, 0), features(3, 1), torch.tensor([2, 0, 0, 1, 2])
    assert torch.equal(InfoNCE()(image, text, 9.0, index=index), info_nce(image, text[index], 9.0))


def test_refuses_texts_that_are_not_one_per_picture():
    with pytest.raises(TetherError, match="3 texts for 5 pictures"):
        info_nce(features(5, 0), features(3, 1), 1.0)


def test_logits_keep_full_precision_under_autocast():
    image, text = features(8, 0).float(), features(8, 1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = info_nce(image, text, 100.0)
    assert torch.equal(inside, info_nce(image, text, 100.0))


def test_the_scale_may_be_learned():
    scale = torch.tensor(10.0, requires_grad=True)
    info_nce(features(4, 0), features(4, 1), scale).backward()
    assert scale.grad is not None and scale.grad != 0
