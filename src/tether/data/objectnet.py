"""ObjectNet (Barbu et al. 2019): photographs of household things in unusual places, as a test for ImageNet
models.

The usual layout is `images/<folder>/*.png` with `mappings/` beside it. Of its 313 classes 113 overlap with
ImageNet; only their 18,574 of 50,273 pictures are scored. A class may stand for several ImageNet classes,
each of which is then right. Every picture loses a border of 2 pixels, which the authors painted red against
training on them.
"""

from collections import Counter
from pathlib import Path

from tether._files import read_json
from tether.data.folder import completeness
from tether.data.reading import list_pictures
from tether.data.records import Example, ImageRef, Split
from tether.errors import TetherError

COUNT = 50_273
_BORDER = 2


def read_objectnet(root: Path, *, allow_partial: bool = False, count: int = COUNT) -> Split:
    """ObjectNet's pictures of classes that overlap with ImageNet, by the mapping files that come with it.

    Raises:
        TetherError: mapping files are missing or do not fit, or pictures are missing.
    """
    ids_of = objectnet_classes(root / "mappings")
    images = root / "images"
    names = [name for name in list_pictures(images) if "/" in name]
    folders = {name.split("/")[0] for name in names}
    if absent := sorted(set(ids_of) - folders):
        raise TetherError(
            f"{images} lacks {len(absent)} of the {len(ids_of)} overlapping classes, such as {absent[0]!r}."
        )
    missing = completeness("ObjectNet", images, len(names), count, allow_partial)
    place = str(images.resolve())
    scored = [name for name in names if name.split("/")[0] in ids_of]
    examples = tuple(
        Example(ImageRef(place, name), ids_of[name.split("/")[0]][0], (), f"ObjectNet/{name}")
        for name in scored
    )
    mask = tuple(sorted(label for ids in ids_of.values() for label in ids))
    return Split(
        name="ObjectNet",
        domain="ObjectNet",
        examples=examples,
        class_mask=mask,
        groups=tuple(ids for ids in ids_of.values() if len(ids) > 1),
        convention=(
            f"masked: {len(scored):,} of {len(names):,} pictures, of the {len(ids_of)} of {len(folders)} "
            f"classes that overlap with ImageNet; scored over their {len(mask)} ImageNet classes, any of a "
            f"class's own is right; borders of {_BORDER} pixels cut{missing}"
        ),
        alteration=f"crop_border:{_BORDER}",
    )


def objectnet_classes(mappings: Path) -> dict[str, tuple[int, ...]]:
    """ObjectNet folder → the ImageNet classes it stands for, ascending, for the folders that overlap.

    From the data set's own files: `folder_to_objectnet_label.json`, `objectnet_to_imagenet_1k.json` (names
    divided by "; "), `imagenet_to_label_2012_v2` (names in the order of the 2012 ids) and
    `pytorch_to_imagenet_2012_id.json`.

    Raises:
        TetherError: a file is missing, or the files do not fit together.
    """
    folder_of = {
        label: folder for folder, label in read_json(mappings / "folder_to_objectnet_label.json").items()
    }
    overlap = read_json(mappings / "objectnet_to_imagenet_1k.json")
    label_of_id = {
        int(id_): int(label)
        for label, id_ in read_json(mappings / "pytorch_to_imagenet_2012_id.json").items()
    }
    try:
        lines = (mappings / "imagenet_to_label_2012_v2").read_text(encoding="utf-8").splitlines()
        id_of_name = {line.strip(): id_ for id_, line in enumerate(lines)}
        classes = {
            folder_of[label]: tuple(
                sorted(label_of_id[id_of_name[name.strip()]] for name in names.split(";"))
            )
            for label, names in overlap.items()
        }
    except OSError as error:
        raise TetherError(f"Cannot read ObjectNet's mappings: {error}.") from error
    except KeyError as error:
        raise TetherError(
            f"ObjectNet's mapping files in {mappings} do not fit together: no entry for {error}."
        ) from error
    if twice := [label for label, number in Counter(sum(classes.values(), ())).items() if number > 1]:
        raise TetherError(
            f"ObjectNet's mapping files in {mappings} give ImageNet class {twice[0]} to two classes."
        )
    return classes
