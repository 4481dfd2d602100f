"""Data sets from packages: archives that are always the same, and one command line for all."""

import random
import zipfile

import pytest

from makers._building import command, write_zip
from tether._files import sha256_file
from tether.data.emoji_shift import FOLDER
from tether.errors import TetherError


def test_the_same_files_give_the_same_archive_in_any_order(tmp_path):
    committed = FOLDER / "twemoji.zip"  # has names of which one begins another
    with zipfile.ZipFile(committed) as archive:
        names = archive.namelist()
        random.Random(0).shuffle(names)
        files = {name: archive.read(name) for name in names}
    write_zip(tmp_path / "again.zip", files)
    assert sha256_file(tmp_path / "again.zip") == sha256_file(committed)


def test_a_command_takes_two_folders_and_ends_with_the_error(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("sys.argv", ["build", str(tmp_path / "in"), str(tmp_path / "out")])
    command(lambda packages, out: seen.append((packages, out)), "Make it.", "what is needed")
    assert seen == [(tmp_path / "in", tmp_path / "out")]

    def fail(packages, out):
        raise TetherError("there is nothing in it.")

    with pytest.raises(SystemExit, match="there is nothing in it"):
        command(fail, "Make it.", "what is needed")
    monkeypatch.setattr("sys.argv", ["build", str(tmp_path)])
    with pytest.raises(SystemExit):
        command(fail, "Make it.", "what is needed")
