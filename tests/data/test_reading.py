import io
import os
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from tether.data import ImageRef, read_image, reading
from tether.errors import TetherError


def save(folder, name, image, **options):
    image.save(folder / name, **options)
    return ImageRef(str(folder), name)


def pixels(image):
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "tiff", "ppm"])
def test_lossless_formats_come_back_as_they_are(tmp_path, noise, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    ref = save(tmp_path, f"a.{suffix}", noise(), **options)
    assert (pixels(read_image(ref)) == pixels(noise())).all()


def test_a_name_in_a_folder_and_in_an_archive(tmp_path, noise):
    (tmp_path / "x").mkdir()
    save(tmp_path / "x", "a.png", noise())
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(tmp_path / "x/a.png", "x/a.png")
    folder, archive = ImageRef(str(tmp_path), "x/a.png"), ImageRef(str(tmp_path / "all.zip"), "x/a.png")
    assert (pixels(read_image(folder)) == pixels(read_image(archive))).all()
    with pytest.raises(TetherError, match=r"all\.zip!x/b\.png: the archive has no member"):
        read_image(ImageRef(archive.root, "x/b.png"))


def test_a_forked_process_opens_its_own_archive(tmp_path, noise):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for number in range(20):
            data = io.BytesIO()
            noise(number).save(data, "png")
            archive.writestr(f"{number}.png", data.getvalue())
    refs = [ImageRef(str(tmp_path / "all.zip"), f"{number}.png") for number in range(20)]
    read_image(refs[0])
    mine = reading._open_archive(refs[0].root, os.getpid())
    assert reading._open_archive(refs[0].root, os.getpid()) is mine
    assert reading._open_archive(refs[0].root, os.getpid() + 1) is not mine
    loader = reading_loader(refs)
    for number, batch in enumerate(loader):
        assert (batch == pixels(noise(number))).all()
        assert (pixels(read_image(refs[-1 - number])) == pixels(noise(19 - number))).all()


def reading_loader(refs):
    import torch

    class Pictures(torch.utils.data.Dataset):
        def __len__(self):
            return len(refs)

        def __getitem__(self, index):
            return pixels(read_image(refs[index])).copy()

    context = "fork" if hasattr(os, "fork") else "spawn"
    return torch.utils.data.DataLoader(
        Pictures(),
        batch_size=None,
        num_workers=2,
        multiprocessing_context=context,
        collate_fn=lambda item: item,
    )


def test_exif_rotation_is_undone(tmp_path, noise):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    ref = save(tmp_path, "a.png", noise(), exif=exif)
    assert (pixels(read_image(ref)) == np.rot90(pixels(noise()), k=-1)).all()


def test_a_broken_exif_header_does_not_spoil_the_picture(tmp_path, noise):
    ref = save(tmp_path, "a.png", noise(), exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert (pixels(read_image(ref)) == pixels(noise())).all()


def test_cmyk(tmp_path):
    ref = save(tmp_path, "a.jpg", Image.new("CMYK", (16, 16), (0, 255, 255, 0)), quality=95)
    red = pixels(read_image(ref)).reshape(-1, 3).mean(0)
    assert red[0] > 240 and red[1] < 15 and red[2] < 15


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, suffix):
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    ref = save(tmp_path, f"a.{suffix}", Image.fromarray(values))
    found = pixels(read_image(ref))
    assert np.abs(found[..., 0] - values / 257.0).max() <= 0.5
    assert (found[..., 0] == found[..., 2]).all()


def test_floating_point_values_are_refused(tmp_path):
    ref = save(tmp_path, "a.tiff", Image.fromarray(np.ones((4, 4), np.float32)))
    with pytest.raises(TetherError, match="floating-point"):
        read_image(ref)


def test_grey_and_black_and_white(tmp_path):
    assert read_image(save(tmp_path, "a.png", Image.new("L", (3, 3), 77))).getpixel((1, 1)) == (77, 77, 77)
    assert read_image(save(tmp_path, "b.png", Image.new("1", (3, 3), 1))).getpixel((1, 1)) == (255, 255, 255)


def test_transparency_lies_on_white(tmp_path):
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    half.putpixel((0, 0), (0, 0, 0, 0))
    found = read_image(save(tmp_path, "a.png", half))
    assert found.getpixel((0, 0)) == (255, 255, 255)
    assert np.abs(np.subtract(found.getpixel((2, 2)), (255, 127, 127))).max() <= 1


def test_a_transparent_palette_entry_lies_on_white(tmp_path):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([9, 9, 9, 200, 0, 0])
    image.putpixel((1, 1), 1)
    found = read_image(save(tmp_path, "a.png", image, transparency=0))
    assert found.getpixel((0, 0)) == (255, 255, 255)
    assert found.getpixel((1, 1)) == (200, 0, 0)


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_the_first_frame_of_an_animation(tmp_path, suffix):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "green")]
    options = {"lossless": True} if suffix == "webp" else {}
    ref = save(tmp_path, f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:], **options)
    assert read_image(ref).getpixel((8, 8)) == (255, 0, 0)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "tiff"])
def test_a_file_that_is_cut_short_names_itself(tmp_path, noise, suffix):
    ref = save(tmp_path, f"a.{suffix}", noise(size=(64, 64)))
    data = (tmp_path / ref.name).read_bytes()
    for length in (0, 3, 20, len(data) // 2):
        (tmp_path / ref.name).write_bytes(data[:length])
        with pytest.raises(TetherError, match=rf"a\.{suffix}: .*(empty|damaged)"):
            read_image(ref)


@pytest.mark.parametrize(
    "data", [b"no picture at all" * 9, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_what_is_no_picture(tmp_path, data):
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(TetherError, match="no picture"):
        read_image(ImageRef(str(tmp_path), "a.png"))


def test_missing_files_folders_and_pipes(tmp_path):
    with pytest.raises(TetherError, match=r"b\.png: No such file"):
        read_image(ImageRef(str(tmp_path), "b.png"))
    with pytest.raises(TetherError, match="No such file"):
        read_image(ImageRef(str(tmp_path / "none.zip"), "b.png"))
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(TetherError, match=r"directory|regular"):
        read_image(ImageRef(str(tmp_path), "folder.png"))
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(TetherError, match="not a regular file"):
        read_image(ImageRef(str(tmp_path), "pipe.png"))


def bomb(side: int) -> bytes:
    """A PNG of a few kilobytes that says it has side × side pixels."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(9999)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "side", [9_000, 12_000, 40_000]
)  # above our limit, above Pillow's first and its second
def test_gigantic_pictures_are_refused_before_decoding(tmp_path, side):
    (tmp_path / "a.png").write_bytes(bomb(side))
    with pytest.raises(TetherError, match=r"a\.png: .*limit of 80,000,000"):
        read_image(ImageRef(str(tmp_path), "a.png"))


def test_the_pixel_limit_can_be_lowered(tmp_path, noise):
    ref = save(tmp_path, "a.png", noise(size=(20, 10)))
    read_image(ref, max_pixels=200)
    with pytest.raises(TetherError, match="20 × 10"):
        read_image(ref, max_pixels=199)


def test_gigantic_files_are_refused_before_reading(tmp_path, noise, monkeypatch):
    ref = save(tmp_path, "a.png", noise())
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(10_000))
    monkeypatch.setattr(reading, "MAX_BYTES", 1000)
    for place in (ref, ImageRef(str(tmp_path / "all.zip"), "a.png")):
        with pytest.raises(TetherError, match="more than the limit of 1,000"):
            read_image(place)


def test_a_damaged_archive(tmp_path, noise):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("a.png", bytes(500))
    data = bytearray((tmp_path / "all.zip").read_bytes())
    data[100:200] = b"\1" * 100
    (tmp_path / "all.zip").write_bytes(data)
    with pytest.raises(TetherError, match="CRC"):
        read_image(ImageRef(str(tmp_path / "all.zip"), "a.png"))
    (tmp_path / "cut.zip").write_bytes(data[:300])
    with pytest.raises(TetherError, match="not a zip"):
        read_image(ImageRef(str(tmp_path / "cut.zip"), "a.png"))


def test_listing_pictures(tmp_path, noise):
    for name in ("b/2.JPEG", "b/1.png", "a/x/3.webp", ".hidden/4.png", "a/.5.png", "a/readme.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a/loop").symlink_to(tmp_path)
    (tmp_path / "a/7.HEIC").touch()
    (tmp_path / "a/8.heic").touch()
    with pytest.warns(
        UserWarning, match=r"kinds that cannot be read here, which are passed over: 2 \.heic\."
    ):
        assert reading.list_pictures(tmp_path) == ["a/x/3.webp", "b/1.png", "b/2.JPEG"]
    with pytest.raises(TetherError, match="no folder"):
        reading.list_pictures(tmp_path / "none")
