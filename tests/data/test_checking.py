"""Pictures that cannot be read are found before somebody waits for them, all at once and by name."""

import os
import zipfile
from dataclasses import replace

import pytest
from PIL import Image

from tether.data import Benchmark, Example, ImageRef, Split, check, drop_unreadable, reading, require_readable
from tether.data.reading import file_digests, files_digest
from tether.errors import TetherError


def save(folder, name, image, **options):
    image.save(folder / name, **options)
    return ImageRef(str(folder), name)


def split_of(*refs):
    return Split("test", "photo", tuple(Example(ref, 0) for ref in refs))


def test_check_lists_every_bad_picture(tmp_path, noise):
    refs = [save(tmp_path, f"{number}.png", noise(number)) for number in range(6)]
    (tmp_path / "2.png").write_bytes(b"")
    (tmp_path / "4.png").unlink()
    calls = []
    found = check(split_of(*refs), threads=2, progress=lambda done, total: calls.append((done, total)))
    assert [item.image.name for item in found] == ["2.png", "4.png"]
    assert "empty" in found[0].reason and "No such file" in found[1].reason
    assert calls == [(done, 6) for done in range(1, 7)]


BROKEN = {
    "empty": lambda data: b"",
    "no picture": lambda data: b"<html>404</html>",
    "cut short": lambda data: data[: len(data) * 2 // 3],
}


def benchmark_of(*refs):
    test = split_of(*refs)
    return Benchmark(
        "pets",
        ("cat",),
        ("{}",),
        replace(test, examples=()),
        replace(test, examples=()),
        {"photo": test},
        "photo",
    )


@pytest.mark.parametrize("archived", (False, True))
@pytest.mark.parametrize("suffix", ("jpg", "png", "webp", "gif"))
@pytest.mark.parametrize("kind", BROKEN)
def test_broken_pictures_are_refused_together_and_by_name(tmp_path, noise, kind, suffix, archived):
    for number in range(3):
        save(tmp_path, f"{number}.{suffix}", noise(number, (64, 64)))
    for number in (0, 2):
        file = tmp_path / f"{number}.{suffix}"
        file.write_bytes(BROKEN[kind](file.read_bytes()))
    root = tmp_path
    if archived:
        root = tmp_path / "all.zip"
        with zipfile.ZipFile(root, "w") as archive:
            for number in range(3):
                archive.write(tmp_path / f"{number}.{suffix}", f"{number}.{suffix}")
    benchmark = benchmark_of(*(ImageRef(str(root), f"{number}.{suffix}") for number in range(3)))
    with pytest.raises(TetherError, match=rf"2 of 3 pictures of pets(?s:.)*0\.{suffix}(?s:.)*2\.{suffix}"):
        require_readable(benchmark)


@pytest.mark.parametrize("suffix", ("jpg", "png", "webp", "gif", "bmp", "tiff", "ppm"))
def test_of_a_whole_picture_only_header_and_end_are_read(tmp_path, noise, suffix, monkeypatch):
    benchmark = benchmark_of(*(save(tmp_path, f"{n}.{suffix}", noise(n)) for n in range(3)))
    monkeypatch.setattr(reading, "decode_image", None)
    require_readable(benchmark)


def test_a_picture_that_only_looks_odd_is_read_and_let_pass(tmp_path, noise):
    ref = save(tmp_path, "a.jpg", noise())
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes() + b"a camera's own notes")
    require_readable(benchmark_of(ref))


def test_missing_pictures_pipes_and_floating_point_are_no_readable_pictures(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    floats = save(tmp_path, "float.tiff", Image.new("F", (4, 4)))
    refs = [ImageRef(str(tmp_path), name) for name in ("gone.png", "pipe.png")]
    with pytest.raises(TetherError, match="3 of 3 pictures"):
        require_readable(benchmark_of(*refs, floats))


def test_dropping_is_counted_and_limited(tmp_path, noise):
    refs = [save(tmp_path, f"{number}.png", noise(number)) for number in range(6)]
    (tmp_path / "2.png").write_bytes(b"")
    split = split_of(*refs)
    found = check(split)
    kept = drop_unreadable(split, found, max_rate=0.2)
    assert len(kept) == 5 and kept.digest != split.digest
    assert kept.convention.endswith("1 unreadable pictures left out")
    with pytest.raises(TetherError, match=r"1 of 6 pictures(.|\n)*2\.png"):
        drop_unreadable(split, found, max_rate=0.1)
    assert drop_unreadable(split, ()) is split


def test_the_digest_of_files_sees_what_was_replaced_under_a_name(tmp_path, noise):
    """By its size in a folder; in an archive, where the size is equal, by its checksum."""
    refs = [save(tmp_path, f"{number}.bmp", noise(number)) for number in range(2)]
    whole = files_digest(split_of(*refs))
    assert files_digest(split_of(*refs)) == whole != files_digest(split_of(refs[0]))
    with open(tmp_path / "1.bmp", "ab") as file:
        file.write(b"more")
    assert files_digest(split_of(*refs)) != whole
    found = []
    for number, name in enumerate(("one.zip", "two.zip")):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            save(tmp_path, "x.bmp", noise(number))
            archive.write(tmp_path / "x.bmp", "x.bmp")
        found.append(files_digest(split_of(ImageRef(str(tmp_path / name), "x.bmp"))))
    assert found[0] != found[1]
    for root in (tmp_path, tmp_path / "one.zip"):
        with pytest.raises(TetherError, match="There is no picture"):
            files_digest(split_of(ImageRef(str(root), "gone.bmp")))


def test_a_thin_picture_is_refused_by_name_and_size(tmp_path, noise):
    """274 bytes, of which a resize by the shorter side would make gigabytes."""
    refs = [save(tmp_path, "0.png", noise()), save(tmp_path, "thin.png", Image.new("1", (1, 100_000)))]
    for refuse in (lambda: require_readable(benchmark_of(*refs)), lambda: reading.read_image(refs[1])):
        with pytest.raises(TetherError, match=r"thin\.png: it has 1 × 100000 pixels"):
            refuse()


def test_the_hash_of_a_file_sees_its_ends_and_its_size(tmp_path):
    refs = []
    content = bytes(range(256)) * 64  # 16 KiB
    for number, own in enumerate(
        (
            content,
            b"x" + content[1:],
            content[:-1] + b"x",
            content[:8000] + b"x" + content[8001:],
            content + b"x",
        )
    ):
        (tmp_path / f"{number}.bmp").write_bytes(own)
        refs.append(ImageRef(str(tmp_path), f"{number}.bmp"))
    digests = [own.tobytes() for own in file_digests(split_of(*refs))]
    assert digests[0] not in (digests[1], digests[2], digests[4])
    assert digests[3] == digests[0]  # the middle is not read
    assert file_digests(split_of()).shape == (0, 16)
    with pytest.raises(TetherError, match="There is no picture"):
        file_digests(split_of(ImageRef(str(tmp_path), "gone.bmp")))
