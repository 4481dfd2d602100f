import numpy as np
import pytest
import torch
from PIL import Image

from tether.data import normalize, test_transform, train_transform
from tether.data.transforms import fit_shortest
from tether.errors import TetherError
from tether.models.model import ImageSpec


def spec(**changes):
    return ImageSpec(**{"size": 16, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), **changes})


@pytest.mark.parametrize(
    ("name", "filter"), [("bicubic", "BICUBIC"), ("bilinear", "BILINEAR"), ("nearest", "NEAREST")]
)
def test_shortest_is_pillows_resizing_and_the_centre(noise, name, filter):
    picture = noise(size=(48, 32))
    expected = picture.resize((24, 16), Image.Resampling[filter]).crop((4, 0, 20, 16))
    found = test_transform(spec(interpolation=name), normalized=False)(picture)
    assert found.dtype == torch.uint8
    assert (found.permute(1, 2, 0).numpy() == np.asarray(expected)).all()


def test_squash_keeps_everything(noise):
    picture = noise(size=(48, 32))
    expected = np.asarray(picture.resize((16, 16), Image.Resampling.BICUBIC))
    found = test_transform(spec(resize="squash"), normalized=False)(picture)
    assert (found.permute(1, 2, 0).numpy() == expected).all()


def test_normalizing_here_or_on_the_device_is_the_same(noise):
    for make in (
        test_transform,
        lambda *a, **k: train_transform(*a, scale=(1.0, 1.0), ratio=(1.0, 1.0), **k),
    ):
        floats = make(spec())(noise(size=(16, 16)))
        bytes_ = make(spec(), normalized=False)(noise(size=(16, 16)))
        assert floats.shape == (3, 16, 16) and floats.dtype == torch.float32
        torch.testing.assert_close(normalize(bytes_, spec()), floats)
        torch.testing.assert_close(normalize(torch.stack([bytes_] * 2), spec())[1], floats)
        by_hand = (np.asarray(noise(size=(16, 16))) / 255 - (0.5, 0.4, 0.3)) / (0.2, 0.3, 0.4)
        torch.testing.assert_close(
            floats.permute(1, 2, 0).double(), torch.from_numpy(by_hand), atol=1e-5, rtol=0
        )


def test_the_crop_takes_the_share_it_is_told():
    width = 64
    across = Image.fromarray(np.tile(np.arange(width, dtype=np.uint8), (width, 1))).convert("RGB")
    full = train_transform(spec(), scale=(0.9, 1.0), normalized=False)
    small = train_transform(spec(), scale=(0.05, 0.1), normalized=False)
    torch.manual_seed(0)
    for _ in range(20):
        for transform, low, high in ((full, 0.7, 1.0), (small, 0.1, 0.5)):
            row = transform(across)[0, 8].float()
            assert low <= (row.max() - row.min() + 4) / width <= high + 0.05


def test_flip_mirrors_half_of_the_pictures(noise):
    transform = train_transform(spec(), scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=True, normalized=False)
    picture = noise(size=(16, 16))
    plain = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)
    torch.manual_seed(0)
    flipped = [not torch.equal(transform(picture), plain) for _ in range(40)]
    assert 10 < sum(flipped) < 30


def test_stronger_augmentation_changes_pixels_and_keeps_the_form(noise):
    picture = noise(size=(16, 16))
    for options in ({"color_jitter": 0.4}, {"random_augment": 2}, {"random_erase": 1.0}):
        torch.manual_seed(1)
        transform = train_transform(spec(), scale=(1.0, 1.0), ratio=(1.0, 1.0), normalized=False, **options)
        plain = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)
        found = [transform(picture) for _ in range(5)]
        assert all(item.shape == (3, 16, 16) and item.dtype == torch.uint8 for item in found)
        assert any(not torch.equal(item, plain) for item in found), options


@pytest.mark.parametrize(
    "options",
    [
        {"scale": (0.0, 1.0)},
        {"scale": (0.9, 0.5)},
        {"scale": (0.5, 1.1)},
        {"ratio": (2.0, 1.0)},
        {"random_erase": 2.0},
    ],
)
def test_impossible_options(options):
    with pytest.raises(TetherError):
        train_transform(spec(), **options)


def test_unknown_modes_name_the_known_ones():
    crooked = spec()
    object.__setattr__(crooked, "resize", "shortes")
    with pytest.raises(TetherError, match="did you mean 'shortest'"):
        test_transform(crooked)
    object.__setattr__(crooked, "interpolation", "bicubik")
    with pytest.raises(TetherError, match="did you mean 'bicubic'"):
        train_transform(crooked)


def test_fit_shortest(noise):
    assert fit_shortest(noise(size=(30, 20)), 40).size == (60, 40)
    assert fit_shortest(noise(size=(20, 31)), 10).size == (10, 16)
    same = noise(size=(20, 30))
    assert fit_shortest(same, 20) is same


@pytest.mark.parametrize("resize", ["shortest", "squash"])
@pytest.mark.parametrize("picture_size", [(80, 50), (50, 80), (64, 32)])
def test_pictures_that_are_not_square_are_prepared_as_open_clip_does(
    resize: str, picture_size: tuple[int, int]
) -> None:
    from open_clip.transform import image_transform

    wide = spec(size=(32, 48), resize=resize)
    theirs = image_transform(
        (32, 48), is_train=False, mean=wide.mean, std=wide.std, resize_mode=resize, interpolation="bicubic"
    )
    picture = Image.effect_mandelbrot(picture_size, (-2, -1.5, 1, 1.5), 90).convert("RGB")
    ours = test_transform(wide)(picture)
    assert ours.shape == (3, 32, 48)
    torch.testing.assert_close(ours, theirs(picture))
    assert train_transform(wide)(picture).shape == (3, 32, 48)


@pytest.mark.parametrize("resize", ["shortest", "squash"])
def test_what_is_scaled_beyond_the_size_is_cropped(resize: str) -> None:
    from torchvision.transforms import v2

    picture = Image.effect_mandelbrot((80, 50), (-2, -1.5, 1, 1.5), 90).convert("RGB")
    cropped = spec(size=32, before_crop=36, resize=resize)
    scaled = v2.Resize(36 if resize == "shortest" else (36, 36), v2.InterpolationMode.BICUBIC)(picture)
    expected = v2.CenterCrop(32)(scaled)
    assert torch.equal(
        test_transform(cropped, normalized=False)(picture), v2.functional.pil_to_tensor(expected)
    )


def test_a_thin_picture_is_refused_before_it_is_resized():
    thin = Image.new("RGB", (1, 100_000))
    with pytest.raises(TetherError, match=r"1 × 100000 pixels.* at most 200 times the other.*Crop it"):
        test_transform(spec())(thin)
    with pytest.raises(TetherError, match="1 × 100000 pixels"):
        fit_shortest(thin, 224)
    assert fit_shortest(Image.new("RGB", (2, 400)), 4).size == (4, 800)  # at the limit
