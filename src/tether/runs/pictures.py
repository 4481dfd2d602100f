"""Which pictures a run is made from: what its directory says of them, and whether they are still the same.

splits.json           for every split: how many pictures, a hash of names and labels, a hash of the files
splits.safetensors    a hash of each file, by which a picture that was replaced can be named
broken.json           pictures that an error of this run named as broken; they alone may be replaced by whole ones, once
"""

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from tether._files import read_json, read_tensors, write_json
from tether.data.checking import unreadable
from tether.data.reading import file_digests, files_digest
from tether.data.records import PictureBenchmark, PictureSplit
from tether.errors import TetherError
from tether.training.run_directory import differences

SPLITS, FILES, BROKEN = "splits.json", "splits.safetensors", "broken.json"


class Pictures:
    """The pictures of a benchmark as they are now, read when they are first asked for.

    Raises:
        TetherError: a picture is missing (when it is read).
    """

    def __init__(self, benchmark: PictureBenchmark) -> None:
        self.benchmark = benchmark

    @cached_property
    def splits(self) -> dict[str, PictureSplit]:
        """By name, the tests told apart from the other two: a domain may be called "train"."""
        tests = {f"test {name}": split for name, split in self.benchmark.tests.items()}
        return {"train": self.benchmark.train, "validation": self.benchmark.validation, **tests}

    @cached_property
    def files(self) -> dict[str, UInt8[Tensor, "pictures 16"]]:
        """By split a hash of each picture's file."""
        return {name: torch.from_numpy(file_digests(split)) for name, split in self.splits.items()}

    @cached_property
    def digests(self) -> dict[str, dict[str, Any]]:
        """Number of pictures and hashes of every split, as they stand in a run's `splits.json`."""
        return {
            name: {"pictures": len(split), "sha256": split.digest, "contents": _sha256(self.files[name])}
            for name, split in self.splits.items()
        }

    def changes(self, run: Path) -> dict[str, str]:
        """What is not as `splits.json` of a run says: by split, in words.

        Raises:
            TetherError: that file is missing, or not whole.
        """
        recorded = self._recorded(run)
        texts = {}
        for name in dict.fromkeys((*recorded, *self.digests)):
            before, now = recorded.get(name), self.digests.get(name)
            if before is None or now is None:
                texts[name] = f"{name} was {'not there' if before is None else 'there'} then"
            elif _without_contents(before) != _without_contents(now):
                texts[name] = (
                    f"{name} has other pictures, labels or rules ({before.get('pictures')} pictures then, "
                    f"{now['pictures']} now)"
                )
            elif before != now:
                names = self._replaced(run, name)
                of = "some" if names is None else ", ".join(names[:5]) + (" and more" if names[5:] else "")
                texts[name] = f"{name} has other files under the names of then ({of})"
        return texts

    def accept(self, run: Path) -> list[str]:
        """See that a run can go on with these pictures; gives the entries of its `splits.json` that are to be renewed.

        Whole pictures in the place of those that an error of the run named as broken are taken.

        Raises:
            TetherError: other pictures have changed; the message names the splits, and pictures where it can.
        """
        broken = read_json(run / BROKEN, dict[str, list[str]]) if (run / BROKEN).is_file() else {}
        refused = [
            text
            for name, text in self.changes(run).items()
            if not set(self._replaced(run, name) or [""]) <= set(broken.get(name, []))
        ]
        if refused:
            raise TetherError(
                f"The pictures are others than those that {run} began with: {'; '.join(refused)}. Put those back to "
                f"go on, or start a new run. Only what an error of this run named as broken may be replaced."
            )
        return list(differences(read_json(run / SPLITS, dict), self.digests))

    def note_broken(self, run: Path, message: str) -> bool:
        """Keep in `broken.json` which pictures an error names, if they are broken indeed; gives whether any."""
        named = {
            name: [
                example.image.name
                for example in split.examples
                if f"the picture {example.image}: " in message and unreadable(example.image)
            ]
            for name, split in self.splits.items()
        }
        named = {name: names for name, names in named.items() if names}
        if named:
            path = run / BROKEN
            before = read_json(path, dict[str, list[str]]) if path.is_file() else {}
            both = (*before, *named)
            write_json(path, {n: sorted({*before.get(n, []), *named.get(n, [])}) for n in both})
        return bool(named)

    def forget_mended(self, run: Path) -> None:
        """Take out of `broken.json` what can be read by now: once its files are kept, it may not be another again."""
        if not (path := run / BROKEN).is_file():
            return
        images = {
            (part, e.image.name): e.image for part, split in self.splits.items() for e in split.examples
        }
        broken = {
            part: [name for name in names if (image := images.get((part, name))) and unreadable(image)]
            for part, names in read_json(path, dict[str, list[str]]).items()
        }
        write_json(path, {part: names for part, names in broken.items() if names})

    def _recorded(self, run: Path) -> dict[str, dict[str, Any]]:
        """`splits.json` in the form of today, of whatever version it is."""
        recorded = read_json(run / SPLITS, dict[str, dict[str, Any]])
        tests = self.benchmark.tests
        if recorded.keys() == {"train", "validation", *tests}:  # before tests were told apart by their names
            parts = {"train", "validation"} - tests.keys()
            recorded = {name if name in parts else f"test {name}": entry for name, entry in recorded.items()}
        for name, entry in recorded.items():
            if "files" in entry and name in self.splits:  # before the ends of files were looked at
                same = entry["files"] == files_digest(self.splits[name])
                contents = self.digests[name]["contents"] if same else "others"
                known = {"pictures": entry.get("pictures"), "sha256": entry.get("sha256")}
                recorded[name] = {**known, "contents": contents}
        return recorded

    def _replaced(self, run: Path, name: str) -> list[str] | None:
        """Pictures of a split whose files differ from those that a run began with; None where that is not known."""
        entry = self._recorded(run).get(name)
        if entry is None or name not in self.splits or not (run / FILES).is_file():
            return None
        before, now = read_tensors(run / FILES).get(name), self.files[name]
        known = before is not None and before.shape == now.shape and _sha256(before) == entry.get("contents")
        if not known or entry.get("sha256") != self.digests[name]["sha256"]:
            return None
        examples = self.splits[name].examples
        return [examples[index].image.name for index in (before != now).any(1).nonzero().flatten().tolist()]


def require_records(run: Path, names: tuple[str, ...]) -> None:
    """Refuse to go on with a run that does not say any more what it was made from.

    Raises:
        TetherError: one of the JSON files is missing.
    """
    for name in names:
        if not (path := run / f"{name}.json").is_file():
            raise TetherError(
                f"{path} is missing, so nobody can tell whether this would be the same run. Put the file back from a "
                f"copy, or start a new run."
            )


def _without_contents(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != "contents"}


def _sha256(files: UInt8[Tensor, "pictures 16"]) -> str:
    return hashlib.sha256(np.ascontiguousarray(files.numpy()).tobytes()).hexdigest()
