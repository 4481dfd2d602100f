import pytest
import torch
from torchvision.transforms import v2

from tether.data.caption_dataset import CaptionDataset, collate_captions
from tether.data.captions import CaptionedImage, CaptionSplit
from tether.data.records import ImageRef
from tether.errors import TetherError


@pytest.fixture
def split(tmp_path, noise):
    """Three pictures with 2, 1 and 3 captions."""
    examples = []
    for number, count in enumerate((2, 1, 3)):
        noise(number).save(tmp_path / f"{number}.png")
        captions = tuple(f"caption {i} of {number}" for i in range(count))
        examples.append(CaptionedImage(ImageRef(str(tmp_path), f"{number}.png"), captions))
    return CaptionSplit("train", tuple(examples))


TRANSFORM = v2.Compose([v2.RandomCrop(8), v2.PILToTensor()])


def test_an_item_is_a_caption_with_its_picture(split):
    data = CaptionDataset(split, v2.PILToTensor())
    item = data[4]
    assert (item["text"], item["picture"], item["index"], len(data)) == ("caption 1 of 2", 2, 4, 6)
    assert torch.equal(item["pixels"], data[3]["pixels"]) and not torch.equal(
        item["pixels"], data[2]["pixels"]
    )
    assert data.identity(4) == str(split.examples[2].image)


def test_a_view_depends_on_seed_epoch_and_picture_only(split):
    one, other = CaptionDataset(split, TRANSFORM, seed=5), CaptionDataset(split, TRANSFORM, seed=5)
    torch.manual_seed(0)
    forward = [one[0, index]["pixels"] for index in range(6)]
    torch.manual_seed(1)
    backward = [other[0, index]["pixels"] for index in reversed(range(6))][::-1]
    assert all(map(torch.equal, forward, backward))
    assert torch.equal(forward[0], forward[1])
    assert not torch.equal(one[1, 0]["pixels"], forward[0])
    assert not torch.equal(CaptionDataset(split, TRANSFORM, seed=6)[0, 0]["pixels"], forward[0])


def test_the_random_stream_of_the_run_is_not_touched(split):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    CaptionDataset(split, TRANSFORM)[0, 0]
    assert torch.equal(torch.rand(1), expected)


def test_captions_that_follow_each_other_read_their_picture_once(split, monkeypatch):
    from tether.data import caption_dataset

    read = []

    def counting(ref, real=caption_dataset.read_image):
        read.append(ref.name)
        return real(ref)

    monkeypatch.setattr(caption_dataset, "read_image", counting)
    data = CaptionDataset(split, TRANSFORM)
    for index in (0, 1, 3, 5, 4, 2):
        data[0, index]
    data[1, 2]  # another epoch is another view
    assert read == ["0.png", "2.png", "1.png", "1.png"]


def test_a_batch_holds_every_picture_once(split):
    data = CaptionDataset(split, TRANSFORM)
    batch = collate_captions([data[0, index] for index in (3, 5, 0, 1, 2)])
    assert batch["pixels"].shape == (3, 3, 8, 8)
    assert batch["row"].tolist() == [0, 0, 1, 1, 2]
    assert batch["pictures"].tolist() == [2, 0, 1] and batch["label"].tolist() == [2, 2, 0, 0, 1]
    assert batch["index"].tolist() == [3, 5, 0, 1, 2]
    assert batch["text"][1] == "caption 2 of 2"
    for row, index in zip(batch["row"], batch["index"], strict=True):
        assert torch.equal(batch["pixels"][row], data[0, int(index)]["pixels"])


def test_a_picture_that_cannot_be_read_is_named(split):
    with open(split.examples[1].image.path, "wb"):
        pass
    with pytest.raises(TetherError, match=r"Cannot read the picture .*1\.png: the file is empty"):
        CaptionDataset(split, TRANSFORM)[2]
