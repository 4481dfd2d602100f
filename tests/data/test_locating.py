import os
import zipfile

import pytest

from tether.data.locating import image_inside, require_there
from tether.data.records import ImageRef
from tether.errors import TetherError


def test_absolute_and_relative_paths_are_one_picture(tmp_path):
    root = str(tmp_path)
    expected = ImageRef(root, "a/b.png")
    for name in ("a/b.png", "./a//b.png", "a/c/../b.png", os.path.join(root, "a", "b.png")):
        assert image_inside(root, name, "row 1") == expected


@pytest.mark.parametrize("name", ["../x.png", "/elsewhere/x.png", "a/../../x.png", ".."])
def test_what_lies_outside_is_refused(tmp_path, name):
    with pytest.raises(TetherError, match=r"row 7: .* lies outside .*; set `root`"):
        image_inside(str(tmp_path / "root"), name, "row 7")


def test_missing_pictures_are_listed(tmp_path):
    (tmp_path / "a.png").touch()
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.writestr("a.png", b"")
    for root in (str(tmp_path), str(tmp_path / "some.zip")):
        images = [ImageRef(root, name) for name in ("a.png", *(f"{n}.png" for n in range(12)))]
        require_there(root, images[:1])
        with pytest.raises(
            TetherError, match=r"12 of 13 pictures are not in .*:\n  0.png\n  1.png"
        ) as refused:
            require_there(root, images)
        assert "9.png" in str(refused.value) and "10.png" not in str(refused.value)
