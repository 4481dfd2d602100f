"""Every part of a sealed folder is what was written, or is told to be damaged."""

import pytest
import torch

from tether._sealed import part_of, read_part, write_part
from tether.errors import TetherError


@pytest.mark.parametrize("name", ["a.safetensors", "a.json"])
def test_a_part_comes_back(tmp_path, name):
    content = {"a": torch.arange(3.0)} if name.endswith("safetensors") else {"a": [1, None]}
    digest = write_part(tmp_path / name, content)
    read = read_part(tmp_path / name, digest)
    assert torch.equal(read["a"], content["a"]) if name.endswith("safetensors") else read == content


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda path: path.unlink(), "is damaged: it is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is damaged: it was cut short or changed"),
        (
            lambda path: path.write_bytes(b"\0" + path.read_bytes()[1:]),
            "is damaged: it was cut short or changed",
        ),
        (lambda path: write_part(path, {"a": torch.zeros(3)}), "is damaged: it was cut short or changed"),
    ],
)
def test_damage_is_told_with_the_file_and_what_to_do(tmp_path, harm, told):
    path = tmp_path / "a.safetensors"
    digest = write_part(path, {"a": torch.ones(3)})
    harm(path)
    with pytest.raises(TetherError, match=rf"a\.safetensors {told}.* Copy the whole folder {tmp_path} again"):
        read_part(path, digest)


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "/a", "b/a"])
def test_no_part_lies_outside(tmp_path, name):
    with pytest.raises(TetherError, match="outside of itself"):
        part_of(tmp_path, name)
    assert part_of(tmp_path, "a") == tmp_path / "a"
