"""The pictures of a folder, found by a text: with any model, and embedded once.

An index is a folder of its own in the cache, named after the pictures' folder and the model's fingerprint:
`features.safetensors` holds a feature and a stamp (size, times of change) of every picture, `index.json`, written last,
their names and the SHA-256 of the former. What is missing, cut short or of another form is made again. A picture is
embedded again when its stamp changes.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tether._files import read_json, read_tensors, sha256_file, write_json, write_tensors
from tether.data.reading import list_pictures, read_image
from tether.data.records import ImageRef
from tether.data.transforms import test_transform
from tether.errors import TetherError
from tether.evaluation.classifier import evaluating
from tether.evaluation.retrieval import top_k
from tether.evaluation.scoring import Progress
from tether.models.model import Model

_FORMAT = "tether-picture-index 1"


@dataclass(frozen=True)
class Match:
    """A picture that was found, and its cosine similarity to the text."""

    image: ImageRef
    score: float


@dataclass(frozen=True, eq=False)
class PictureIndex:
    """Features of the pictures of a folder.

    Args:
        folder: absolute.
        names: of the pictures, as paths inside the folder with forward slashes.
        features: of length 1, on the CPU.
        stamps: size in bytes, and times of the last change of content and of status in nanoseconds, as they were
            before the picture was read.
    """

    folder: str
    names: tuple[str, ...]
    features: Float[Tensor, "pictures dim"]
    stamps: Int[Tensor, "pictures 3"]

    def nearest(self, text: Float[Tensor, " dim"], k: int) -> tuple[Match, ...]:
        """The k pictures most similar to a text's feature, or all if there are fewer, best first.

        Raises:
            TetherError: k is below 1.
        """
        values, rows = top_k(text[None].cpu(), self.features, k if k < 1 else min(k, len(self.names)))
        return tuple(
            Match(ImageRef(self.folder, self.names[row]), value)
            for row, value in zip(rows[0].tolist(), values[0].tolist(), strict=True)
        )


def search(
    model: Model,
    folder: str | Path,
    text: str,
    k: int = 5,
    *,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> tuple[Match, ...]:
    """The k pictures of a folder that fit a text best, best first.

        search(tether.load("builtin"), "holiday", "a red apple")

    Args:
        model: with whatever is attached to it or merged into it.
        folder, cache, progress: as `index_pictures`.

    Raises:
        TetherError: as `index_pictures`; the text is empty, or k is below 1.
    """
    if not text.strip():
        raise TetherError("There is nothing to search for: the text is empty.")
    if k < 1:
        raise TetherError(f"k is the number of pictures to find, at least 1; found {k}.")
    index = index_pictures(model, folder, cache, progress=progress)
    with evaluating(model):
        (feature,) = model.encode_text(model.tokenize([text]))
    return index.nearest(feature, k)


def index_pictures(
    model: Model,
    folder: str | Path,
    cache: str | Path | None = None,
    *,
    batch_size: int = 64,
    threads: int = 4,
    progress: Progress | None = None,
) -> PictureIndex:
    """The index of all pictures in a folder and the folders in it; only new and changed ones are embedded.

    What was embedded is kept when it is stopped. Pictures that cannot be read are left out with a warning.

    Args:
        cache: where indexes are kept; by default `tether/pictures` in the user's folder for caches.
        threads: that read pictures.
        progress: called with what is done, how many new pictures are, and how many there are.

    Raises:
        TetherError: there is no such folder or no picture in it that can be read, or the cache cannot be written.
    """
    root, fingerprint = os.path.realpath(folder), model.fingerprint()
    home = Path(cache or default_cache()) / _key(root, fingerprint, model.dtype)
    stamps = {name: stamp for name in list_pictures(root) if (stamp := _stamp(root, name))}
    cached = _read(home, root)
    features = {} if cached is None else _unchanged(cached, stamps)
    new = [name for name in stamps if name not in features]
    if new:
        _require_writable(home)
    unreadable: dict[str, str] = {}
    index = None
    try:
        _embed(model, root, new, features, unreadable, batch_size, threads, progress)
    finally:  # also what there is when it is stopped
        names = tuple(name for name in stamps if name in features)
        if names:
            rows = torch.stack([features[name] for name in names])
            index = PictureIndex(root, names, rows, torch.tensor([stamps[name] for name in names]))
            if cached is None or names != cached.names or not torch.equal(index.stamps, cached.stamps):
                _write(home, index, model.source, fingerprint)
    if unreadable:
        first = " ".join(list(unreadable.values())[:5])
        warnings.warn(
            f"{len(unreadable)} of {len(stamps)} pictures in {root} cannot be read and are not searched. {first}",
            stacklevel=2,
        )
    if index is None:
        raise TetherError(f"There is no picture in {root} that can be read.")
    return index


def default_cache() -> Path:
    """Where indexes are kept if nothing else is said."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tether" / "pictures"


def _key(root: str, fingerprint: str, dtype: torch.dtype) -> str:
    words = json.dumps([root, fingerprint, str(dtype)])
    return hashlib.sha256(words.encode()).hexdigest()[:32]


def _require_writable(home: Path) -> None:
    """Before any work is done."""
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TetherError(
            f"The index cannot be kept in {home}: {error.strerror}. Name another folder for it (on the command line: "
            f"--cache)."
        ) from error


def _unchanged(cached: PictureIndex, stamps: Mapping[str, list[int]]) -> dict[str, Tensor]:
    """The features of pictures that are as they were."""
    rows = zip(cached.names, cached.features, cached.stamps.tolist(), strict=True)
    return {name: feature for name, feature, stamp in rows if stamps.get(name) == stamp}


def _stamp(root: str, name: str) -> list[int] | None:
    """None for a picture that is gone already."""
    try:
        status = os.stat(os.path.join(root, name))
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _embed(
    model: Model,
    root: str,
    names: Sequence[str],
    features: dict[str, Tensor],
    unreadable: dict[str, str],
    batch_size: int,
    threads: int,
    progress: Progress | None,
) -> None:
    """Put the feature of every picture into `features`, or why there is none into `unreadable`."""
    transform = test_transform(model.image)
    with ThreadPoolExecutor(threads) as pool, evaluating(model):
        for start in range(0, len(names), batch_size):
            batch = names[start : start + batch_size]
            pixels = {}
            for name, result in zip(
                batch, pool.map(lambda n: _pixels(root, n, transform), batch), strict=True
            ):
                if isinstance(result, TetherError):
                    unreadable[name] = str(result)
                else:
                    pixels[name] = result
            if pixels:
                encoded = model.encode_image(torch.stack(list(pixels.values()))).cpu()
                features.update(zip(pixels, encoded, strict=True))
            if progress:
                progress("pictures", start + len(batch), len(names))


def _pixels(root: str, name: str, transform: Callable) -> Tensor | TetherError:
    try:
        name.encode()
        return transform(read_image(ImageRef(root, name)))
    except UnicodeEncodeError:
        return TetherError(f"The name of {root}/{name!a} is no UTF-8; rename the picture.")
    except TetherError as error:
        return error


def _read(home: Path, root: str) -> PictureIndex | None:
    """The index as it was written; None where there is none, or not a whole one."""
    try:
        description = read_json(home / "index.json")
        tensors = read_tensors(home / "features.safetensors")
        if description["format"] != _FORMAT or description["sha256"] != sha256_file(
            home / "features.safetensors"
        ):
            return None
        return PictureIndex(root, tuple(description["pictures"]), tensors["features"], tensors["stamps"])
    except (TetherError, OSError, KeyError, TypeError):
        return None


def _write(home: Path, index: PictureIndex, source: str, fingerprint: str) -> None:
    write_tensors(home / "features.safetensors", {"features": index.features, "stamps": index.stamps})
    description = {
        "format": _FORMAT,
        "folder": index.folder.encode(errors="replace").decode(),
        "model": source,
        "fingerprint": fingerprint,
        "sha256": sha256_file(home / "features.safetensors"),
        "pictures": list(index.names),
    }
    write_json(home / "index.json", description)
