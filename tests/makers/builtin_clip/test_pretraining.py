"""Pre-training: targets and loss against slow twins, a whole tiny run, and how its command ends."""

import pytest
import timm
import torch
from safetensors.torch import save_file

import tether
from makers.builtin_clip.pretraining import (
    Pretraining,
    PretrainingConfig,
    main,
    multi_positive_loss,
    multi_positive_targets,
    pretrain,
)
from makers.builtin_clip.stem import load_stem
from makers.builtin_clip.towers import ArchitectureConfig, create
from tether.optimizers.schedule import ScheduleConfig
from tether.training import FitConfig, read_metrics


@pytest.fixture(scope="module")
def stem(tmp_path_factory):
    path = tmp_path_factory.mktemp("stem") / "stem.safetensors"
    save_file(timm.create_model("efficientnet_lite0", pretrained=False).state_dict(), path)
    return path


def test_targets_are_equal_names_and_general_captions_that_fit():
    names = torch.tensor([0, 1, 0, 2, 2])
    generals = torch.tensor([7, 7, 7, 9, -1])
    captions = torch.tensor([-1, 7, -1, 9, -1])
    found = multi_positive_targets(names, generals, captions)
    slow = torch.zeros(5, 5, dtype=torch.bool)
    for i in range(5):
        for j in range(5):
            slow[i, j] = names[i] == names[j] or (captions[j] >= 0 and generals[i] == captions[j])
    assert found.equal(slow)
    assert found.diagonal().all()


def test_loss_is_clips_where_every_pair_is_its_own_only_positive():
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    target = torch.arange(5)
    clip = (
        torch.nn.functional.cross_entropy(logits, target)
        + torch.nn.functional.cross_entropy(logits.T, target)
    ) / 2
    assert torch.allclose(multi_positive_loss(logits, torch.eye(5, dtype=torch.bool)), clip)


def test_loss_is_least_where_positives_share_the_mass():
    positive = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    even = multi_positive_loss(torch.where(positive, 10.0, -10.0), positive)
    uneven = multi_positive_loss(
        torch.where(positive, 10.0, -10.0) + torch.tensor([[5.0, 0, 0], [0, 0, 0], [0, 0, 0]]), positive
    )
    assert even < uneven


def test_a_whole_tiny_run_gives_a_model_that_loads(folder, stem, tmp_path):
    config = PretrainingConfig(
        architecture=ArchitectureConfig(text_depth=1, vocabulary=280),
        emoji_views=2,
        repeats=1,
        training=FitConfig(steps=2, batch_size=8),
        schedule=ScheduleConfig(warmup=1),
    )
    model = tether.load(str(pretrain(config, folder, stem, tmp_path / "runs")))
    features = model.encode_text(model.tokenize(["cat", "A CAT"]))
    assert torch.allclose(features[0], model.encode_text(model.tokenize(["cat"]))[0], atol=1e-6)
    assert model.encode_image(torch.zeros(1, 3, 112, 112)).shape == (1, 256)


def test_the_upper_stem_learns_from_its_step_on(stem):
    torch.manual_seed(0)
    config = ArchitectureConfig(image_depth=1, text_depth=1, vocabulary=280)
    task = Pretraining(create(config, load_stem(stem)), stem_from=1)
    batch = {
        "pixels": torch.randn(2, 40, 14, 14),
        "tokens": torch.tensor([[278, 5, 279], [278, 6, 279]]),
        "name": torch.arange(2),
        "general": torch.full((2,), -1),
        "caption": torch.full((2,), -1),
    }
    upper = next(p for name, p in task.named_parameters().items() if ".backbone.upper." in name)
    for step, learns in ((0, False), (1, True)):
        task.begin_step(step, batch)
        task.loss(batch, step)[0].backward()
        assert (upper.grad is not None) == learns


TINY = (
    "architecture.text_depth=1 architecture.image_depth=1 architecture.vocabulary=280 emoji_views=1 "
    "repeats=1 schedule.warmup=1 training.batch_size=4 training.precision=fp32 training.workers=0 "
    "training.checkpoint_every=1 training.log_every=1"
).split()


def test_the_command_trains_goes_on_where_it_was_stopped_and_shows_how_far_it_is(
    folder, stem, tmp_path, capsys, monkeypatch
):
    from makers.builtin_clip import pretraining

    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    words = [str(folder), "--stem", str(stem), *TINY, "training.steps=3", "--runs", str(tmp_path)]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(pretraining, "save_model", stopped)  # after training
        main(words)
    said = capsys.readouterr().err
    assert stop.value.code == 130 and "3/3" in said and said.endswith("Stopped by Ctrl-C.\n")
    run = tmp_path / "pretrain-001"
    assert [row["step"] for row in read_metrics(run) if row["kind"] == "train"] == [1, 2, 3]
    main([*words, "--resume", str(run)])
    assert capsys.readouterr().out == f"The model is in {run / 'model'}.\n"
    tether.load(str(run / "model"))
    assert not (run / "features").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["pretrain-001"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["no_such=1"], "There is no option 'no_such'"),
        (["training.batch_size=0"], "batch_size"),
        (["--resume", "nowhere"], "There is no run at nowhere"),
    ],
)
def test_an_error_is_one_line(folder, stem, tmp_path, words, told):
    with pytest.raises(SystemExit) as stop:
        main([str(folder), "--stem", str(stem), "--runs", str(tmp_path / "runs"), *words])
    assert told in stop.value.code and "\n" not in stop.value.code
    assert not (tmp_path / "runs").exists()


def test_missing_files_are_one_line(folder, tmp_path):
    for pictures in (folder, tmp_path):
        with pytest.raises(SystemExit) as stop:
            main([str(pictures), "--stem", str(tmp_path / "none"), "--runs", str(tmp_path), *TINY])
        told = "none" if pictures is folder else "make pictures"
        assert told in stop.value.code and "\n" not in stop.value.code
