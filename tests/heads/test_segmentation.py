"""UPerNet on maps of any backbone: the library's own numbers, every parameter trained, pictures kept apart."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import SwinConfig, UperNetConfig, UperNetForSemanticSegmentation

from tether.data.targets import IGNORE
from tether.heads.segmentation import (
    SegmentationHead,
    _group_normalised,
    classes_of_pixels,
    pixel_cross_entropy,
)

STAGED, PLAIN = {"channels": (12, 24), "strides": (4, 8)}, {"channels": (24,), "strides": (8,)}


def head(classes=3, hidden=16, **options):
    torch.manual_seed(0)
    return SegmentationHead(classes=classes, hidden=hidden, pool_scales=(1, 2), auxiliary_hidden=8, **options)


def maps_for(channels, strides, pictures=2, side=32):
    return [torch.randn(pictures, c, side // s, side // s) for c, s in zip(channels, strides, strict=True)]


def truth_for(pictures=2, side=32, classes=3):
    truth = torch.randint(0, classes, (pictures, side, side))
    truth[:, :3] = IGNORE
    return truth


@pytest.mark.parametrize("backbone, finest", [(STAGED, 8), (PLAIN, 16)], ids=["stages", "plain ViT"])
def test_logits_are_at_the_finest_map_and_everything_learns(backbone, finest):
    made = head(**backbone)
    loss, logits = made.loss(maps_for(**backbone), truth_for())
    assert logits.shape == (2, 3, finest, finest)
    loss.backward()
    assert [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert list(made.buffers()) == []  # nothing that an average of parameters would leave behind


def test_one_picture_of_one_cell_can_be_trained_on():
    made = head(**PLAIN)
    loss, _ = made.loss([torch.randn(1, 24, 1, 1)], truth_for(1, 8))
    assert loss.isfinite()


def test_a_picture_is_answered_alike_alone_and_among_others():
    made, maps = head(**STAGED), maps_for(**STAGED, pictures=3)
    alone = made([one[1:2] for one in maps])
    assert torch.allclose(made(maps)[1:2], alone, atol=1e-5)


def test_numbers_and_loss_are_those_of_the_librarys_own_model():
    """Its UPerNet on a Swin, with our norms in it, against our head on its backbone's maps."""
    torch.manual_seed(0)
    swin = SwinConfig(
        image_size=32, patch_size=2, embed_dim=12, depths=[1, 1], num_heads=[2, 2], window_size=4,
        out_features=["stage1", "stage2"],
    )  # fmt: skip
    config = UperNetConfig(
        backbone_config=swin, hidden_size=16, pool_scales=[1, 2], num_labels=3, auxiliary_in_channels=12,
        auxiliary_channels=8, loss_ignore_index=IGNORE,
    )  # fmt: skip
    model = UperNetForSemanticSegmentation(config)
    model.auxiliary_head.in_index = 0
    _group_normalised(model)
    ours = head(channels=(12, 24), strides=(2, 4))
    ours.decoder.load_state_dict(model.decode_head.state_dict())
    ours.auxiliary.load_state_dict(model.auxiliary_head.state_dict())
    ours.pyramid.norms = nn.ModuleList([nn.Identity(), nn.Identity()])
    pixels, truth = torch.randn(2, 3, 32, 32), truth_for()
    given = model(pixel_values=pixels, labels=truth)
    loss, logits = ours.loss(model.backbone(pixels).feature_maps, truth)
    large = F.interpolate(logits, size=(32, 32), mode="bilinear", align_corners=False)
    assert torch.allclose(large, given.logits, atol=1e-5)
    assert loss.item() == pytest.approx(given.loss.item(), rel=1e-5)


def test_no_auxiliary_head_where_its_weight_is_0():
    made = head(auxiliary=0.0, **STAGED)
    maps, truth = maps_for(**STAGED), truth_for()
    loss, logits = made.loss(maps, truth)
    assert made.auxiliary is None and loss.item() == pixel_cross_entropy(logits, truth).item()


def test_the_loss_is_a_mean_over_the_pixels_that_have_a_class():
    logits, truth = torch.randn(2, 3, 32, 32), truth_for()
    log = logits.log_softmax(1)
    picked = [-log[b, truth[b, y, x], y, x] for b, y, x in (truth != IGNORE).nonzero().tolist()]
    assert pixel_cross_entropy(logits, truth).item() == pytest.approx(
        torch.stack(picked).mean().item(), rel=1e-5
    )
    assert pixel_cross_entropy(logits, torch.full_like(truth, IGNORE)).item() == 0


def test_answers_go_back_to_the_picture_without_what_was_padded():
    """A picture twice as wide as high, in a square input: its left half is of class 0, its right half of class 1."""
    logits = torch.full((3, 8, 8), -1.0)
    logits[0, :4, :4] = logits[1, :4, 4:] = 1.0
    logits[2, 4:] = 9.0  # in the padding: of no consequence but at its border
    labels = classes_of_pixels(logits, (32, 32), (14, 32), (28, 64))
    assert labels.shape == (28, 64)
    assert (labels[:, :30] == 0).all() and (labels[:, 34:] == 1).all()
