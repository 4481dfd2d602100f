"""Pre-training: targets and loss against slow twins, the tokenizer's promises, caption pairs, a whole tiny run."""

import json
import zipfile

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import tether
from tether.data.pretraining import CaptionedPictures, PairDataset, augment, view_offsets
from tether.errors import TetherError
from tether.optimizers.schedule import ScheduleConfig
from tether.tasks.pretraining import PretrainingConfig, multi_positive_loss, multi_positive_targets, pretrain
from tether.tasks.towers import ArchitectureConfig, train_tokenizer
from tether.training import FitConfig

WORDS = tuple("cat dog bird fish tree house car boat sun moon star leaf rock hand foot eye".split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures")
    rows = []
    with zipfile.ZipFile(path / "pictures.zip", "w") as archive:
        for number, word in enumerate(WORDS):
            picture = Image.new("RGBA", (32, 32), (number * 15, 80, 200 - number * 10, 255))
            with archive.open(f"a/{word}.webp", "w") as file:
                picture.save(file, "webp", lossless=True)
            captions = [word, f"{word}, small thing {number}", "an animal" if number < 4 else word]
            kind = "emoji" if number < 8 else "icon"
            rows.append(
                {"file": f"a/{word}.webp", "name": word, "captions": captions, "kind": kind, "coloured": True}
            )
    (path / "pictures.json").write_text(json.dumps({"pictures": rows}))
    return path


def test_targets_are_equal_names_and_general_captions_that_fit():
    names = torch.tensor([0, 1, 0, 2])
    generals = torch.tensor([7, 7, 7, -1])
    captions = torch.tensor([-1, 7, -1, -1])
    found = multi_positive_targets(names, generals, captions)
    slow = torch.zeros(4, 4, dtype=torch.bool)
    for i in range(4):
        for j in range(4):
            slow[i, j] = generals[i] == captions[j] if captions[j] >= 0 else names[i] == names[j]
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


def test_tokenizer_pads_with_zero_and_ends_with_its_largest_id():
    tokenizer = train_tokenizer([f"{a} and {b}" for a in WORDS for b in WORDS], 300)
    ids = tokenizer(
        ["Cat", "unseen wörds"], padding="max_length", max_length=24, return_tensors="pt"
    ).input_ids
    assert ids.max() == 299 and (ids[0] == 299).sum() == 1 and ids[0, -1] == 0
    assert tokenizer.decode(ids[1], skip_special_tokens=True).strip() == "unseen wörds"


def test_a_vocabulary_that_the_captions_cannot_fill_is_refused():
    with pytest.raises(TetherError, match="lower the vocabulary"):
        train_tokenizer(["a b"], 4000)


def test_augmentation_is_a_function_of_its_random_stream():
    picture = Image.new("RGBA", (32, 32), (200, 0, 0, 255))
    first, again = (augment(picture, True, 48, np.random.default_rng(3)) for _ in range(2))
    other = augment(picture, True, 48, np.random.default_rng(4))
    assert first.size == (48, 48) and first.mode == "RGB"
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_pairs_depend_on_epoch_and_index_only_and_views_belong_to_their_picture(folder):
    pictures, views = CaptionedPictures(folder), {"emoji": 3, "icon": 1}
    offsets = view_offsets(pictures, views)
    features = np.repeat(np.arange(len(pictures.rows)), np.diff(offsets)).astype(np.float16)[
        :, None, None, None
    ]

    def tokenize(texts):
        return torch.tensor([[len(text), 1] for text in texts])

    pairs = PairDataset(pictures, features, views, tokenize, often="emoji", repeats=2, seed=5)
    assert len(pairs) == 8 * 2 + 8
    for index in range(len(pairs)):
        item, again = pairs[2, index], pairs[2, index]
        assert all(torch.equal(torch.as_tensor(item[key]), torch.as_tensor(again[key])) for key in item)
        row = pictures.rows[int(item["pixels"])]
        assert item["name"] == WORDS.index(row.name)
        assert (item["general"] >= 0) == (row.captions[-1] == "an animal")


def test_a_folder_without_pictures_is_told_what_to_run(tmp_path):
    with pytest.raises(TetherError, match="make pictures"):
        CaptionedPictures(tmp_path)


def test_a_whole_tiny_run_gives_a_model_that_loads(folder, tmp_path):
    stem = tmp_path / "stem.safetensors"
    save_file(timm.create_model("efficientnet_lite0", pretrained=False).state_dict(), stem)
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
