"""Detectors of torchvision and transformers with Mona in their trunk, on two pictures of the built-in scenes."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import timm
import torch
from transformers import (
    AutoConfig,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
    SwinConfig,
)
from transformers.image_transforms import center_to_corners_format

import tether
from tether import _distributed
from tether.adapters.mona import MonaConfig
from tether.config import build, methods_of
from tether.data import DenseDataset, ScenesConfig, collate_dense, dense_test_transform, load_benchmark
from tether.errors import TetherError
from tether.evaluation.detection import average_precision
from tether.heads import detection_transformers
from tether.heads.cascade import CascadeMaskRCNNConfig
from tether.heads.detection import DetectorConfig, Levels, at_picture
from tether.heads.detection_torchvision import MaskRCNNConfig, RetinaNetConfig
from tether.heads.detection_transformers import (
    Mask2FormerHeadConfig,
    RTDetrV2,
    RTDetrV2HeadConfig,
    load_detector,
    shares_of,
)
from tether.models.backbone import Backbone, ImageSpec
from tether.models.load_timm import maps_of

SIZE = 64
CLASSES = ("book", "globe", "heart")
RCNN = {"channels": 32, "anchor_scale": 4.0, "box_width": 64, "mask_width": 16, "proposals": 60}
CONFIGS = {  # config, learning rate, steps
    "RetinaNet": (RetinaNetConfig(channels=32, anchor_scale=2.0), 2e-3, 40),
    "Faster R-CNN": (MaskRCNNConfig(masks=False, **RCNN), 2e-3, 25),
    "Mask R-CNN": (MaskRCNNConfig(**RCNN), 2e-3, 25),
    "Cascade Mask R-CNN": (CascadeMaskRCNNConfig(**RCNN), 2e-3, 25),
    "RT-DETRv2": (
        RTDetrV2HeadConfig(width=32, hidden=64, heads=4, decoder_layers=2, queries=20, denoising=10),
        4e-3,
        50,
    ),
    "Mask2Former": (
        Mask2FormerHeadConfig(
            width=32, hidden=64, heads=4, encoder_layers=1, decoder_layers=3, queries=8, points=196
        ),
        3e-3,
        30,
    ),
}


def make_backbone(name: str = "swin_tiny_patch4_window7_224", **options) -> Backbone:
    """A tiny random model of timm."""
    swin = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 4), "window_size": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = timm.create_model(name, img_size=SIZE, num_classes=0, **(options or swin)).eval()
    maps, strides = maps_of(module)
    image = ImageSpec(size=SIZE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    return Backbone(
        module=module,
        source=name,
        family="timm",
        image=image,
        dim=module.num_features,
        activation="gelu",
        image_features=lambda module, pixels: module(pixels),
        image_maps=maps,
        strides=strides,
    )


@pytest.fixture(scope="module")
def dataset():
    config = ScenesConfig(
        size=SIZE, classes=CLASSES, train_pictures=2, validation_pictures=0, test_pictures=1, shifted=()
    )
    spec = ImageSpec(size=SIZE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    return DenseDataset(load_benchmark(config).train, dense_test_transform(spec))


@pytest.fixture(scope="module")
def batch(dataset):
    return collate_dense([dataset[0], dataset[1]])


def ap50(detector, dataset, batch):
    detector.eval()
    found = detector.predict(batch["pixels"], batch["size"], batch["content"])
    objects = [dataset.pair(i)[1].objects for i in batch["index"].tolist()]
    masks = detector.finds_masks
    scores = average_precision(zip(found, objects, strict=True), CLASSES, dataset.split, masks=masks)
    return scores.values()["mask_ap50" if masks else "box_ap50"]


SLOW = ("Faster R-CNN", "Mask R-CNN")
"""Left to `make test-slow`: their parts are in the cascade."""


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in CONFIGS],
)
def trained(request, dataset, batch):
    """A detector that has learnt two pictures, and what it was before."""
    config, lr, steps = CONFIGS[request.param]
    backbone = make_backbone()
    detector = config.build(backbone, len(CLASSES))
    base = copy.deepcopy(backbone.module.state_dict())
    attached = tether.attach(detector.trunk, MonaConfig(hidden=8))
    parameters = [*attached.named_parameters().values(), *detector.head_parameters().values()]
    begun = copy.deepcopy(detector)
    at_start = ap50(detector, dataset, batch)
    optimizer = torch.optim.AdamW(parameters, lr=lr)
    losses = []
    detector.train()
    for step in range(steps):
        loss, scalars = detector.loss(batch["pixels"], batch["objects"], seed=step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 2.0)
        optimizer.step()
        losses.append(loss.item())
    return SimpleNamespace(
        config=config,
        backbone=backbone,
        base=base,
        detector=detector,
        attached=attached,
        begun=begun,
        at_start=at_start,
        losses=losses,
        scalars=scalars,
    )


def test_the_loss_falls(trained):
    assert all(loss == loss and loss < float("inf") for loss in trained.losses)
    assert sum(trained.losses[-5:]) / 5 < 0.8 * trained.losses[0]
    assert sum(trained.scalars.values()).item() == pytest.approx(trained.losses[-1], rel=1e-5)


def test_what_was_learned_is_found(trained, dataset, batch):
    assert ap50(trained.detector, dataset, batch) > max(0.05, trained.at_start)


def test_the_adapter_and_the_head_move_and_nothing_else(trained):
    before = dict(trained.begun.named_parameters())
    moved = {name for name, one in trained.detector.named_parameters() if not torch.equal(one, before[name])}
    adapter = {id(one) for one in trained.attached.named_parameters().values()}
    of_adapter = {name for name, one in trained.detector.named_parameters() if id(one) in adapter}
    head = trained.detector.head_parameters().keys()
    assert of_adapter <= moved <= of_adapter | head
    assert len(moved & head) > 0.7 * len(head)
    now = trained.detector.trunk.state_dict()
    assert all(torch.equal(now[name], tensor) for name, tensor in trained.base.items())


def test_a_copy_is_a_detector_of_its_own(trained, batch):
    detector = trained.detector.eval()
    twin = copy.deepcopy(detector)
    arguments = (batch["pixels"], batch["objects"])
    before = detector.loss(*arguments, seed=0)[0]
    assert torch.equal(twin.loss(*arguments, seed=0)[0], before)
    with torch.no_grad():
        for parameter in twin.trunk.parameters():
            parameter.mul_(1.5)
    assert not torch.equal(twin.loss(*arguments, seed=0)[0], before)
    assert torch.equal(detector.loss(*arguments, seed=0)[0], before)


def test_head_and_adapter_come_back_from_their_states(trained, batch):
    fresh = trained.config.build(make_backbone(), len(CLASSES), seed=1)
    attached = tether.attach(fresh.trunk, MonaConfig(hidden=8), seed=1)
    attached.load_state_dict(trained.attached.state_dict())
    state = {name: tensor.clone() for name, tensor in trained.detector.head_state_dict().items()}
    fresh.load_head_state_dict(state)
    pictures = (batch["pixels"], batch["size"], batch["content"])
    pairs = zip(fresh.eval().predict(*pictures), trained.detector.eval().predict(*pictures), strict=True)
    for one, other in pairs:
        assert torch.equal(one.boxes, other.boxes) and torch.equal(one.scores, other.scores)
        assert one.masks is None or torch.equal(one.masks, other.masks)
    whole = fresh.state_dict()
    fresh.load_state_dict(whole)
    first = next(iter(state))
    with pytest.raises(TetherError, match="no state of this head"):
        fresh.load_head_state_dict({name: one for name, one in state.items() if name != first})
    with pytest.raises(TetherError, match="in the state and"):
        fresh.load_head_state_dict({**state, first: torch.zeros(1, 2, 3)})


def test_the_same_seed_gives_the_same_loss(trained, batch):
    detector = trained.detector.train()
    stream = torch.get_rng_state()
    losses = [detector.loss(batch["pixels"], batch["objects"], seed=seed)[0].item() for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(torch.get_rng_state(), stream)


def test_only_what_is_to_be_found_is_learned(trained, batch):
    """Crowds, difficult objects and boxes without area change nothing, and a picture may have no object at all."""
    detector = trained.detector.eval()
    first, second = batch["objects"]
    more = {}
    for name, tensor in second.items():
        more[name] = torch.cat([tensor, tensor[:1], tensor[:1], tensor[:1]])
    n = len(second["labels"])
    more["crowd"][n], more["difficult"][n + 1], more["boxes"][n + 2, 2] = True, True, more["boxes"][n + 2, 0]
    plain = detector.loss(batch["pixels"], [first, second], seed=0)[0]
    assert torch.equal(detector.loss(batch["pixels"], [first, more], seed=0)[0], plain)
    nothing = {name: tensor[:0] for name, tensor in second.items()}
    for objects in ([first, nothing], [nothing, nothing]):
        loss = detector.train().loss(batch["pixels"], objects, seed=0)[0]
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad.isfinite().all() for p in detector.parameters() if p.grad is not None)
        detector.zero_grad()


def test_wrong_targets_are_refused(trained, batch):
    detector, pixels, objects = trained.detector.eval(), batch["pixels"], batch["objects"]
    with pytest.raises(TetherError, match="2 pictures, but targets for 1"):
        detector.loss(pixels, objects[:1])
    with pytest.raises(TetherError, match="label 3, but the detector knows classes 0 to 2"):
        detector.loss(pixels, [objects[0], objects[1] | {"labels": objects[1]["labels"] * 0 + 3}])
    with pytest.raises(TetherError, match="2 pictures, but 1 sizes"):
        detector.predict(pixels, batch["size"][:1])
    with pytest.raises(TetherError, match="training mode"):
        detector.train().predict(pixels, batch["size"])
    if detector.finds_masks:
        without = [{name: one for name, one in each.items() if name != "masks"} for each in objects]
        with pytest.raises(TetherError, match="learns masks, and these objects have boxes alone"):
            detector.loss(pixels, without)


def test_answers_are_for_the_picture_as_it_was(trained, batch):
    """Twice as wide a picture has boxes twice as wide, whatever was padded."""
    detector = trained.detector.eval()
    whole = detector.predict(batch["pixels"], [(SIZE, SIZE)] * 2)
    wide = detector.predict(batch["pixels"], [(SIZE, 2 * SIZE)] * 2)
    upper = detector.predict(batch["pixels"], [(SIZE, 2 * SIZE)] * 2, [(SIZE // 2, SIZE)] * 2)
    for one, other, part in zip(whole, wide, upper, strict=True):
        assert (part.boxes <= torch.tensor([2 * SIZE, SIZE, 2 * SIZE, SIZE])).all()
        if one.masks is None:
            assert torch.allclose(other.boxes, one.boxes * torch.tensor([2, 1, 2, 1]), atol=1e-3)
        else:
            assert other.masks.shape[1:] == part.masks.shape[1:] == (SIZE, 2 * SIZE)


def test_detaching_restores_the_trunk(trained, batch):
    """Last of those on the trained detector: afterwards its trunk is the ordinary one."""
    trained.attached.detach()
    now = trained.detector.trunk.state_dict()
    assert now.keys() == trained.base.keys()
    assert all(torch.equal(now[name], tensor) for name, tensor in trained.base.items())
    plain = trained.config.build(make_backbone(), len(CLASSES))
    plain.load_head_state_dict(trained.detector.head_state_dict())
    losses = [
        one.eval().loss(batch["pixels"], batch["objects"], seed=0)[0] for one in (plain, trained.detector)
    ]
    assert torch.equal(*losses)


def test_a_plain_vit_givesmaps_of_all_sizes():
    backbone = make_backbone("vit_tiny_patch16_224", embed_dim=32, depth=1, num_heads=2)
    levels = Levels(backbone, (4, 8, 16, 32))
    assert [tuple(one.shape) for one in levels(torch.zeros(1, 3, SIZE, SIZE))] == [
        (1, 32, SIZE // stride, SIZE // stride) for stride in (4, 8, 16, 32)
    ]
    with pytest.raises(TetherError, match="stride 12 cannot be made of the one map of stride 16"):
        Levels(backbone, (12,))


def test_strides_that_the_trunk_lacks_are_refused():
    with pytest.raises(TetherError, match="maps of strides 4, 8, 16, 32, and this head takes 8, 64"):
        RetinaNetConfig(strides=(8, 64)).build(make_backbone(), 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RetinaNetConfig(channels=0), "channels is 0"),
        (lambda: RetinaNetConfig(overlap=1.5), "overlap is 1.5"),
        (lambda: MaskRCNNConfig(strides=(0, 8)), "strides is"),
        (lambda: CascadeMaskRCNNConfig(ious=(0.6, 0.5)), "thresholds between 0 and 1 that rise"),
        (lambda: RTDetrV2HeadConfig(decoder_layers=1), "two layers or more"),
        (lambda: Mask2FormerHeadConfig(width=48), "multiple of 32"),
        (lambda: RetinaNetConfig().build(make_backbone(), 0), "a class or more"),
    ],
)
def test_contradictions_are_refused_at_once(make, message):
    with pytest.raises(TetherError, match=message):
        make()


def test_boxes_go_to_shares_of_the_input_and_back():
    boxes = torch.tensor([[0.0, 0.0, 40.0, 30.0], [10.0, 5.0, 20.0, 25.0]])
    shares = shares_of(boxes, (30, 40))
    assert torch.equal(shares[0], torch.tensor([0.5, 0.5, 1.0, 1.0]))
    assert torch.allclose(center_to_corners_format(shares) * torch.tensor([40, 30, 40, 30]), boxes)


def test_boxes_of_a_padded_input_go_to_the_picture():
    boxes = torch.tensor([[8.0, 4.0, 16.0, 8.0], [30.0, 2.0, 60.0, 40.0], [0.0, 40.0, 5.0, 50.0]])
    moved, there = at_picture(boxes, size=(64, 128), content=(32, 64))
    assert torch.equal(moved[0], torch.tensor([16.0, 8.0, 32.0, 16.0]))
    assert torch.equal(moved[1], torch.tensor([60.0, 4.0, 120.0, 64.0]))
    assert there.tolist() == [True, True, False]


def test_masks_come_out_of_mask2former_where_they_went_in():
    truth = torch.zeros(3, SIZE, SIZE, dtype=torch.bool)
    truth[0, 8:24, 16:40], truth[1, 30:60, 2:12] = True, True  # the third stays empty
    logits = torch.where(truth, 20.0, -20.0)
    classes = torch.full((3, 4), -9.0)
    classes[0, 2], classes[1, 0], classes[2, 1] = 9.0, 7.0, 9.0
    found = detection_transformers._instances(logits, classes, (SIZE, SIZE))
    assert found.labels[:2].tolist() == [2, 0]
    assert (found.masks[:2] ^ truth[:2]).flatten(1).sum(1).max() <= 40  # half a pixel around the edge
    expected = torch.tensor([[16.0, 8.0, 40.0, 24.0], [2.0, 30.0, 12.0, 60.0]])
    assert (found.boxes[:2] - expected).abs().max() <= 1
    none = detection_transformers._instances(-logits.abs(), classes, (SIZE, 2 * SIZE))
    assert len(none) == 0 and none.masks.shape == (0, SIZE, 2 * SIZE)


def test_normalisers_are_those_of_all_processes(batch, monkeypatch):
    """RT-DETR: the mean of the losses of two shares is the loss of all; Mask2Former: terms per mask are scaled."""
    detector = CONFIGS["RT-DETRv2"][0].build(make_backbone(), len(CLASSES)).eval()
    pixels, (first, second) = batch["pixels"], batch["objects"]
    second = {name: tensor[:1] for name, tensor in second.items()}
    whole = detector.loss(pixels, [first, second])[0].item()
    mean = (len(first["labels"]) + 1) / 2
    assert mean > 1
    monkeypatch.setattr(_distributed, "average", lambda values: values * 0 + mean)
    shares = [detector.loss(pixels[i : i + 1], [one])[0].item() for i, one in enumerate((first, second))]
    assert sum(shares) / 2 == pytest.approx(whole, rel=1e-4)

    detector = CONFIGS["Mask2Former"][0].build(make_backbone(), len(CLASSES)).eval()
    terms = []
    for factor in (1.0, 2.0):
        monkeypatch.setattr(_distributed, "average", lambda values, factor=factor: values * factor)
        terms.append(detector.loss(pixels, [first, second], seed=0)[1])
    for name, term in terms[0].items():
        scale = 1.0 if "cross_entropy" in name else 0.5
        assert terms[1][name].item() == pytest.approx(scale * term.item(), rel=1e-5)


def test_a_renamed_class_is_refused():
    """transformers would choose another loss for it, by its name."""
    host = CONFIGS["RT-DETRv2"][0].build(make_backbone(), 2).host

    class Renamed(RTDetrV2ForObjectDetection):
        pass

    host.__class__ = Renamed
    with pytest.raises(TetherError, match="is a Renamed, and RTDetrV2ForObjectDetection is expected itself"):
        RTDetrV2(host)


def test_an_old_transformers_is_refused(monkeypatch):
    monkeypatch.setattr(detection_transformers, "version", lambda name: "5.17.1")
    with pytest.raises(
        TetherError, match=r"5\.17\.1 computes RT-DETR's main loss .* Install transformers 5\.18"
    ):
        CONFIGS["RT-DETRv2"][0].build(make_backbone(), 2)


def swin_of_transformers():
    return SwinConfig(
        image_size=SIZE,
        embed_dim=16,
        depths=[1, 1, 2, 1],
        num_heads=[1, 2, 2, 4],
        window_size=4,
        drop_path_rate=0.1,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def saved(folder, kind):
    """A detector with transformers' own Swin, saved by transformers."""
    torch.manual_seed(0)
    if kind == "mask2former":
        small = {"hidden_dim": 32, "feature_size": 32, "mask_feature_size": 32, "num_attention_heads": 4}
        small |= {"encoder_layers": 1, "decoder_layers": 2, "num_queries": 6, "train_num_points": 49}
        small |= {"dim_feedforward": 32, "encoder_feedforward_dim": 32}
        config = Mask2FormerConfig(backbone_config=swin_of_transformers(), num_labels=3, **small)
        host = Mask2FormerForUniversalSegmentation(config)
    else:
        backbone = swin_of_transformers()
        backbone.out_features = ["stage2", "stage3", "stage4"]
        small = {"d_model": 32, "encoder_hidden_dim": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
        small |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "decoder_layers": 2}
        small |= {"num_queries": 6, "num_denoising": 4, "decoder_in_channels": [32] * 3}
        config = RTDetrV2Config(
            backbone_config=backbone, encoder_in_channels=[32, 64, 128], num_labels=3, **small
        )
        host = RTDetrV2ForObjectDetection(config)
    host.eval().save_pretrained(folder)
    return host


@pytest.mark.parametrize(
    ("kind", "inside"),
    [("mask2former", "model.pixel_level_module.encoder."), ("rt_detr_v2", "model.backbone.model.")],
)
def test_a_folder_of_transformers_becomes_a_detector(kind, inside, batch, tmp_path):
    host = saved(tmp_path / "saved", kind)
    detector = load_detector(tmp_path / "saved").eval()
    assert detector.classes == 3
    state = detector.host.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in host.state_dict().items())

    sites = tether.sites(detector.host, position="after")  # found by structure, wherever they lie
    assert len(sites) == 10 and all(site.path.startswith(f"{inside}swin.encoder.layers.") for site in sites)
    attached = tether.attach(detector.trunk, MonaConfig(hidden=4))
    assert len(attached.sites) == 10
    detector.train().loss(batch["pixels"], batch["objects"], seed=0)[0].backward()
    assert all(one.grad is not None for one in attached.named_parameters().values())
    assert not any(name.startswith(f"host.{inside}") for name in detector.head_parameters())

    detector.eval()  # a small picture changes no window for good
    before = detector.predict(batch["pixels"], batch["size"])[0]
    detector.predict(batch["pixels"][..., :32, :32], [(32, 32)] * 2)
    assert torch.equal(detector.predict(batch["pixels"], batch["size"])[0].scores, before.scores)

    assert load_detector(tmp_path / "saved", classes=5).classes == 5
    (tmp_path / "saved" / "model.safetensors").unlink()
    with pytest.raises(TetherError, match=r"has no model\.safetensors"):
        load_detector(tmp_path / "saved")


def test_a_folder_of_another_kind_is_refused(tmp_path):
    AutoConfig.for_model("swin").save_pretrained(tmp_path)
    with pytest.raises(TetherError, match="type 'swin'; known are rt_detr_v2 and mask2former"):
        load_detector(tmp_path)


def test_drop_path_of_transformers_swin_is_on_the_attention_branch_alone():
    """What the documentation says of it; a version in which this fails is one to look at."""
    detector = Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(
            backbone_config=swin_of_transformers(), num_labels=2, encoder_layers=1, decoder_layers=2
        )
    )
    trunk = detector.model.pixel_level_module.encoder
    blocks = [block for stage in trunk.swin.encoder.layers for block in stage.blocks]
    calls = []
    for block in blocks:
        block.drop_path.register_forward_hook(lambda *_: calls.append(1))
    trunk(torch.zeros(1, 3, SIZE, SIZE))
    assert len(calls) == len(blocks)


def test_the_backbone_says_when_a_picture_has_the_wrong_size(batch):
    detector = RetinaNetConfig(channels=32).build(make_backbone(), 3).eval()
    with pytest.raises(TetherError, match="takes pictures of 64 × 64 pixels, but these have 32 × 32"):
        detector.predict(batch["pixels"][..., :32, :32], [(32, 32)] * 2)


def test_one_class_is_enough(batch):
    objects = [one | {"labels": one["labels"] * 0} for one in batch["objects"]]
    for name in ("RetinaNet", "Cascade Mask R-CNN"):
        detector = CONFIGS[name][0].build(make_backbone(), 1).train()
        assert detector.loss(batch["pixels"], objects)[0].isfinite()
        few = replace(CONFIGS[name][0], score_threshold=0.0, detections=3).build(make_backbone(), 1).eval()
        found = few.predict(batch["pixels"], batch["size"])
        assert all(0 < len(one) <= 3 and one.labels.max() == 0 for one in found)


def test_every_head_has_a_name():
    assert list(methods_of(DetectorConfig)) == [
        "cascade_mask_rcnn",
        "mask2former",
        "mask_rcnn",
        "retinanet",
        "rt_detr_v2",
    ]
    config = build(DetectorConfig, {"method": "mask_rcnn", "masks": False, "strides": [8, 16]}, "head")
    assert config == MaskRCNNConfig(masks=False, strides=(8, 16)) and not config.finds_masks


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(detection_transformers, "find_spec", lambda name: None)
    with pytest.raises(TetherError, match=r"by scipy, which is not installed\. Install tether\[detection\]"):
        CONFIGS["Mask2Former"][0].build(make_backbone(), 2)


def test_the_heads_mode_is_set_without_the_trunks():
    backbone = make_backbone()
    detector = CONFIGS["RetinaNet"][0].build(backbone, len(CLASSES)).eval()
    detector.train_head()
    assert detector.training and detector.host.head.training and not backbone.module.training
    backbone.module.train()
    detector.train_head(False)
    assert not any(part.training for part in detector.host.head.modules()) and backbone.module.training
    assert not detector.training and all(part.training for part in backbone.module.modules())
