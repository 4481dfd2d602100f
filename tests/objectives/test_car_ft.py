import pytest
import torch
import torch.nn.functional as F

from tether.errors import TetherError
from tether.objectives.car_ft import CarFT, CarFTConfig, car_ft, contexts_of


def unit(*shape, seed):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double(), dim=-1)


def test_it_is_the_divergence_of_context_distributions():
    image, before, contexts = unit(4, 6, seed=1), unit(4, 6, seed=2), unit(3, 6, seed=3)
    p, q = ((100 * side @ contexts.T).softmax(-1) for side in (before, image))
    expected = (p * (p / q).log()).sum() / 4
    torch.testing.assert_close(CarFT(contexts, 100.0)(image, before), expected)
    logits = 100 * image @ contexts.T
    assert float(car_ft(logits, 100 * before @ contexts.T)) == pytest.approx(float(expected))


def test_only_the_model_in_training_gets_a_gradient_and_contexts_are_saved():
    image, before = unit(4, 6, seed=1).requires_grad_(), unit(4, 6, seed=2).requires_grad_()
    contexts = unit(3, 6, seed=3).requires_grad_()
    term = CarFT(contexts, 100.0)
    term(image, before).backward()
    assert image.grad.abs().sum() > 0 and before.grad is None and contexts.grad is None
    assert list(term.state_dict()) == ["contexts"]


def test_contexts_are_the_templates_without_the_class():
    assert contexts_of(["{}", "a photo of a {}.", "a {}, at night", "a photo of a {}"]) == (
        "a photo of a",
        "a , at night",
    )
    with pytest.raises(TetherError, match="contexts"):
        contexts_of(["a photo of a {}", "{}"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weight": -1.0}, r"weight must be 0 or more; it is -1\.0"),
        ({"contexts": ("a photo",)}, "needs at least two different contexts"),
    ],
)
def test_config_is_checked(wrong, message):
    with pytest.raises(TetherError, match=message):
        CarFTConfig(**wrong)
