"""Files that are written whole or not at all, and that others may read as any other file."""

from threading import Barrier, Thread

import pytest
import torch

from tether._files import new_folder, read_json, read_tensors, write_atomically, write_tensors
from tether.errors import TetherError


def test_tensors_come_back_whatever_memory_they_shared_and_however_it_lay(tmp_path):
    whole = torch.arange(6.0).view(2, 3)
    given = {"whole": whole, "part": whole[0], "turned": whole.T}
    write_tensors(tmp_path / "a.safetensors", given)
    read = read_tensors(tmp_path / "a.safetensors")
    assert read.keys() == given.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in given.items())


def test_tensors_may_be_read_by_whoever_may_read_any_new_file(tmp_path):
    write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(1)})
    (tmp_path / "b").touch()
    modes = [(tmp_path / name).stat().st_mode for name in ("a.safetensors", "b")]
    assert modes[0] == modes[1]


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.ones(1)})

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tether._files.save_file", full)
    with pytest.raises(TetherError, match="No space left"):
        write_tensors(path, {"a": torch.zeros(1)})
    assert torch.equal(read_tensors(path)["a"], torch.ones(1))
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("write", [write_atomically, lambda path, fill: new_folder(path).__enter__()])
def test_a_parent_that_is_no_folder_is_named(tmp_path, write):
    (tmp_path / "file").touch()
    with pytest.raises(TetherError, match=r"Could not write .*file/a: (Not a directory|File exists)"):
        write(tmp_path / "file" / "a", lambda path: path.touch())


def test_two_writers_of_a_file_do_not_meet(tmp_path):
    """As two threads, or two machines with equal process numbers on a shared folder."""
    both, used, errors = Barrier(2, timeout=20), [], []

    def fill(path):
        used.append(path)
        path.write_text("whole")
        both.wait()

    def write():
        try:
            write_atomically(tmp_path / "a", fill)
        except TetherError as error:
            errors.append(error)

    threads = [Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and used[0] != used[1]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"[" * 100_000, "nested too deep|not valid JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deep"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b"9" * 5000, "not valid JSON"),
        (b"[1]", r"found \[1\]"),
    ],
)
def test_json_that_is_not_what_it_should_be_is_refused_with_its_file(tmp_path, content, told):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(TetherError, match=rf"a\.json .*({told})"):
        read_json(tmp_path / "a.json", dict)
