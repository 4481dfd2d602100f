"""The built-in captions: the pictures of emoji-shift, described by their names, classes and keywords."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tether._files import read_json
from tether.config import method
from tether.data.captions import CaptionBenchmark, CaptionedImage, CaptionSplit
from tether.data.emoji_shift import FOLDER, EmojiShiftConfig
from tether.data.emoji_shift import load as load_emoji_shift
from tether.data.records import Split
from tether.families import DataConfig


@method("emoji_captions")
@dataclass(frozen=True, kw_only=True)
class EmojiCaptionsConfig(DataConfig):
    """Which third of the emoji is tested: `fold` 0, 1 or 2. Splits and domains (vendors) are those of emoji-shift.

    Raises:
        TetherError: there is no such fold.
    """

    fold: int = 0
    """Which third of the emoji is tested: 0, 1 or 2."""

    def __post_init__(self):
        EmojiShiftConfig(fold=self.fold)

    def load(self) -> CaptionBenchmark:
        """Every picture with three to five captions, none of which another emoji has as well."""
        labelled = load_emoji_shift(EmojiShiftConfig(fold=self.fold))
        captions = emoji_captions()

        def captioned(split: Split) -> CaptionSplit:
            return CaptionSplit(
                split.name,
                tuple(
                    CaptionedImage(
                        image=example.image,
                        captions=captions[example.image.name.removesuffix(".webp")],
                        identity=example.identity,
                        domain=split.domain,
                    )
                    for example in split.examples
                ),
            )

        return CaptionBenchmark(
            name=f"emoji-captions (fold {self.fold})",
            train=captioned(labelled.train),
            validation=captioned(labelled.validation),
            tests={domain: captioned(split) for domain, split in labelled.tests.items()},
            in_distribution=labelled.in_distribution,
            notes=labelled.notes,
        )


def emoji_captions() -> dict[str, tuple[str, ...]]:
    """The captions of every emoji by its code points in lower case, as its pictures are called.

    The name, the name with its class, the name with keywords; and, where no other emoji has the same, keywords alone
    and keywords with the class.
    """
    index = read_json(FOLDER / "index.json")
    candidates = {emoji["code"].lower(): _candidates(emoji, index["classes"]) for emoji in index["emojis"]}
    counts = Counter(caption for own, shared in candidates.values() for caption in own + shared)
    return {
        code: own + tuple(caption for caption in shared if counts[caption] == 1)
        for code, (own, shared) in candidates.items()
    }


def _candidates(
    emoji: Mapping[str, Any], classes: Mapping[str, str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Captions that hold the name, which only one emoji has, and those of keywords, which several may share."""
    name, kind = emoji["name"], classes[emoji["class"]]
    others = [word for word in emoji["keywords"] if word not in name.lower().split()]
    own = (name, f"{kind}: {name}", ", ".join([name, *(others or emoji["keywords"])[:3]]))
    if len(others) < 2:
        return own, ()
    return own, (", ".join(others[:5]), f"{kind}, {', '.join(others[:3])}")
