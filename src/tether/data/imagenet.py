"""ImageNet and the test sets that ask what a model trained on it is worth elsewhere.

Each set is read from its usual layout, must be whole, and says by which convention it is scored:

    set              layout                         pictures            classes that compete
    ImageNet         train/<wnid>/*, val/<wnid>/*   1,281,167, 50,000   1,000
    ImageNet-V2      <class index>/*                10,000              1,000   Recht et al. 2019
    ImageNet-Sketch  <wnid>/*                       50,889              1,000   Wang et al. 2019
    ImageNet-R       <wnid>/*                       30,000              its 200   Hendrycks et al. 2021, ICCV
    ImageNet-A       <wnid>/*                       7,500               its 200   Hendrycks et al. 2021, CVPR
    ObjectNet        see `tether.data.objectnet`

V2 is its "matched frequency" form. In ImageNet-R and -A the other 800 classes do not compete ("masked"), as
in the authors' code and the published CLIP numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from tether.config import method
from tether.data.corrupted_tests import CorruptedTests, check_choice
from tether.data.folder import class_folders, completeness
from tether.data.objectnet import read_objectnet
from tether.data.prompts import templates
from tether.data.reading import list_pictures
from tether.data.records import Benchmark, Example, ImageRef, Split
from tether.data.splitting import split_by_identity
from tether.errors import TetherError
from tether.families import DataConfig

TRAIN_COUNT = 1_281_167


@method("imagenet")
@dataclass(frozen=True, kw_only=True)
class ImageNetConfig(DataConfig):
    """Roots of the sets that are there.

    Args:
        imagenet: holds `val`, the in-distribution test, and, to train, `train`.
        train: whether to read `train` too.
        validation_share: share of each class of `train` that is kept for choosing; `val` is never used for
            that.
        templates: prompts; by default the 80 of CLIP.
        allow_partial: take a set with pictures missing; its convention then says how many are there.
        corruptions: which tests of corrupted pictures to add, "none", "mixture" or "all"; see
            `tether.data.corrupted_tests`.
    """

    imagenet: str
    v2: str | None = None
    """Root of ImageNet-V2."""
    sketch: str | None = None
    """Root of ImageNet-Sketch."""
    r: str | None = None
    """Root of ImageNet-R."""
    a: str | None = None
    """Root of ImageNet-A."""
    objectnet: str | None = None
    """Root of ObjectNet."""
    train: bool = True
    validation_share: float = 0.01
    templates: str | Sequence[str] = "imagenet-80"
    allow_partial: bool = False
    seed: int = 0
    """Decides which pictures of `train` are kept for choosing."""
    corruptions: CorruptedTests = "none"

    def load(self) -> Benchmark:
        return load(self)

    def __post_init__(self):
        templates(self.templates)
        check_choice(self.corruptions)


@dataclass(frozen=True)
class Layout:
    """What a whole set looks like.

    Attributes:
        folders: class folder → ImageNet class.
        count: number of pictures in the folders.
        masked: whether only the classes of the folders compete.
    """

    name: str
    folders: dict[str, int]
    count: int
    masked: bool = False


@cache
def wnids(subset: str = "imagenet") -> tuple[str, ...]:
    """WordNet ids in class order, from timm; "imagenet_r" and "imagenet_a" are the 200 of those sets."""
    text = (files("timm.data") / "_info" / f"{subset}_synsets.txt").read_text(encoding="utf-8")
    return tuple(text.split())


@cache
def class_names() -> tuple[str, ...]:
    """The 1,000 class names that CLIP's authors wrote, two of them given twice; from open_clip."""
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    return tuple(IMAGENET_CLASSNAMES)


def layouts() -> dict[str, Layout]:
    """The sets with folders of ImageNet classes, by their name in `ImageNetConfig`."""
    label_of = {wnid: label for label, wnid in enumerate(wnids())}

    def only(subset: str) -> dict[str, int]:
        return {wnid: label_of[wnid] for wnid in wnids(subset)}

    return {
        "imagenet": Layout("ImageNet", label_of, 50_000),
        "v2": Layout("ImageNet-V2", {str(label): label for label in range(1000)}, 10_000),
        "sketch": Layout("ImageNet-Sketch", label_of, 50_889),
        "r": Layout("ImageNet-R", only("imagenet_r"), 30_000, masked=True),
        "a": Layout("ImageNet-A", only("imagenet_a"), 7_500, masked=True),
    }


def load(config: ImageNetConfig) -> Benchmark:
    """Read the listings; pictures are read when they are used.

    Raises:
        TetherError: a set is not there, not whole, or has folders that are no classes.
    """
    known = layouts()
    home = known["imagenet"].name
    tests = {
        home: read_set(Path(config.imagenet) / "val", known["imagenet"], allow_partial=config.allow_partial)
    }
    for key in ("v2", "sketch", "r", "a"):
        if root := getattr(config, key):
            tests[known[key].name] = read_set(Path(root), known[key], allow_partial=config.allow_partial)
    if config.objectnet:
        tests["ObjectNet"] = read_objectnet(Path(config.objectnet), allow_partial=config.allow_partial)

    train, validation = Split("train", home, ()), Split("validation", home, ())
    if config.train:
        whole = Layout("ImageNet train", known["imagenet"].folders, TRAIN_COUNT)
        given = read_set(Path(config.imagenet) / "train", whole, allow_partial=config.allow_partial)
        parts = split_by_identity(given.examples, (config.validation_share,), seed=config.seed)
        validation = Split("validation", home, parts[0], convention=given.convention)
        train = Split("train", home, parts[1], convention=given.convention)
    return Benchmark(
        name="ImageNet",
        class_names=class_names(),
        templates=templates(config.templates),
        train=train,
        validation=validation,
        tests=tests,
        in_distribution=home,
    )


def read_set(root: Path, layout: Layout, *, allow_partial: bool = False) -> Split:
    """One set as a split.

    Raises:
        TetherError: folders that are no classes of this set, or pictures missing or too many.
    """
    present = class_folders(str(root))
    if unknown := [folder for folder in present if folder not in layout.folders]:
        raise TetherError(
            f"{root} has {len(unknown)} folders that are no classes of {layout.name}, such as "
            f"{unknown[0]!r}; expected folders like {next(iter(layout.folders))!r}."
        )
    names = [name for name in list_pictures(root) if "/" in name]
    mask = tuple(sorted(set(layout.folders.values()))) if layout.masked else None
    competing = (
        f"masked: scored over its {len(mask)} classes"
        if mask
        else f"scored over all {len(wnids()):,} classes"
    )
    place = str(root.resolve())
    return Split(
        name=layout.name,
        domain=layout.name,
        # Splits may use equal file names for different pictures: the set's name makes them distinct.
        examples=tuple(
            Example(ImageRef(place, name), layout.folders[name.split("/")[0]], (), f"{layout.name}/{name}")
            for name in names
        ),
        class_mask=mask,
        convention=competing + completeness(layout.name, root, len(names), layout.count, allow_partial),
    )
