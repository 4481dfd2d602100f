import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tether.errors import TetherError
from tether.objectives.star_ft import StarFTConfig, star_ft


def test_entries_of_the_same_class_do_not_count():
    logits, before = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels, prompts = torch.tensor([0, 1, 7]), torch.tensor([0, 1, 1, 2, 2])
    total = 0.0
    for i in range(3):
        others = [j for j in range(5) if prompts[j] != labels[i]]
        p, q = before[i, others].softmax(0), logits[i, others].softmax(0)
        total += float((p * (p / q).log()).sum()) / 3
    assert float(star_ft(logits, before, labels[:, None] == prompts)) == pytest.approx(total, abs=1e-12)


def test_a_picture_without_other_classes_contributes_nothing_and_stays_finite():
    logits = torch.randn(2, 3).requires_grad_()
    before = torch.randn(2, 3)
    loss = star_ft(logits, before, torch.ones(2, 3, dtype=torch.bool))
    loss.backward()
    assert loss == 0 and torch.equal(logits.grad, torch.zeros(2, 3))


def test_half_precision_does_not_overflow_at_the_mask():
    logits = torch.randn(2, 3, dtype=torch.float16).requires_grad_()
    loss = star_ft(logits, torch.randn(2, 3, dtype=torch.float16), torch.eye(2, 3, dtype=torch.bool))
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()


@settings(deadline=None)
@given(order=st.permutations(range(5)))
def test_order_of_prompts_does_not_matter(order):
    logits, before = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    same = torch.eye(3, 5, dtype=torch.bool)
    torch.testing.assert_close(
        star_ft(logits[:, order], before[:, order], same[:, order]), star_ft(logits, before, same)
    )


def test_weight_shrinks_to_0_in_the_last_epoch():
    config = StarFTConfig()
    assert [config.weight * config.fading(epoch, 10) for epoch in (0, 4, 9)] == pytest.approx([0.45, 0.25, 0])
    assert StarFTConfig(fade=False).fading(9, 10) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weight": -1.0}, r"weight must be 0 or more; it is -1\.0"),
        ({"backgrounds": ()}, "needs at least one background"),
        ({"backgrounds": ("snow",)}, r"background 'snow' must hold \{\} exactly once"),
    ],
)
def test_config_is_checked(wrong, message):
    with pytest.raises(TetherError, match=message):
        StarFTConfig(**wrong)
