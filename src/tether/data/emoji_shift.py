"""The built-in benchmark `emoji-shift`: one vendor's emoji to train on, five other vendors' to see what it cost.

`emoji_shift/CARD.md` beside this file says what is in it, from where, and under which licence.
"""

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tether._files import read_json
from tether.config import method
from tether.data.corrupted_tests import CorruptedTests, check_choice
from tether.data.records import Benchmark, Example, ImageRef, Split
from tether.errors import TetherError
from tether.families import DataConfig

FOLDER = Path(__file__).with_name("emoji_shift")
TEMPLATES = (
    "{}",
    "an emoji of {}",
    "an icon of {}",
    "a drawing of {}",
    "a picture of {}",
    "a symbol of {}",
)
VALIDATION_SHARE = 0.2


@method("emoji_shift")
@dataclass(frozen=True, kw_only=True)
class EmojiShiftConfig(DataConfig):
    """Which third of the emoji is tested: `fold` 0, 1 or 2.

    Args:
        corruptions: "none", "mixture" (one more test domain, "corrupted", of corrupted pictures) or "all" (one
            for each of 75 corruptions); see `tether.data.corrupted_tests`.

    Raises:
        TetherError: there is no such fold, or no such choice.
    """

    fold: int = 0
    """Which third of the emoji is tested: 0, 1 or 2."""
    corruptions: CorruptedTests = "none"

    def load(self) -> Benchmark:
        return load(self)

    def __post_init__(self):
        if self.fold not in (0, 1, 2):
            raise TetherError(f"emoji-shift has the folds 0, 1 and 2, not {self.fold}.")
        check_choice(self.corruptions)


def load(config: EmojiShiftConfig) -> Benchmark:
    """The benchmark with train, validation and in-distribution test from twemoji and five shifted test domains."""
    index = _index()
    classes = list(index["classes"])
    validation = _validation_identities(index["emojis"], config.fold)

    def split(name: str, vendor: str, wanted) -> Split:
        there = _members(vendor)
        examples = tuple(
            Example(
                image=ImageRef(str(FOLDER / f"{vendor}.zip"), f"{emoji['code'].lower()}.webp"),
                label=classes.index(emoji["class"]),
                captions=(emoji["name"], ", ".join([emoji["name"], *emoji["keywords"][:3]])),
                identity=emoji["identity"],
            )
            for emoji in index["emojis"]
            if wanted(emoji) and f"{emoji['code'].lower()}.webp" in there
        )
        return Split(
            name=name, domain=vendor, examples=examples, convention=f"scored over all {len(classes)} classes"
        )

    def tested(emoji: dict) -> bool:
        return emoji["fold"] == config.fold

    def validated(emoji: dict) -> bool:
        return not tested(emoji) and emoji["identity"] in validation

    def trained(emoji: dict) -> bool:
        return not tested(emoji) and emoji["identity"] not in validation

    home = index["in_distribution"]
    return Benchmark(
        name=f"emoji-shift (fold {config.fold})",
        class_names=tuple(index["classes"].values()),
        templates=TEMPLATES,
        train=split("train", home, trained),
        validation=split("validation", home, validated),
        tests={vendor: split(vendor, vendor, tested) for vendor in (home, *index["shifted"])},
        in_distribution=home,
        notes=("Split by emoji identity; training and validation use the in-distribution vendor only.",),
    )


def captioned(vendor: str) -> list[tuple[ImageRef, str, str]]:
    """Every picture of a vendor with the emoji's name and its class name, for zero-shot evaluation over all folds."""
    index, there = _index(), _members(vendor)
    return [
        (ImageRef(str(FOLDER / f"{vendor}.zip"), file), emoji["name"], index["classes"][emoji["class"]])
        for emoji in index["emojis"]
        if (file := f"{emoji['code'].lower()}.webp") in there
    ]


def vendors() -> tuple[str, ...]:
    """The in-distribution vendor and the shifted ones."""
    index = _index()
    return (index["in_distribution"], *index["shifted"])


@lru_cache(maxsize=1)
def _index() -> dict:
    return read_json(FOLDER / "index.json")


@lru_cache
def _members(vendor: str) -> frozenset[str]:
    import zipfile

    with zipfile.ZipFile(FOLDER / f"{vendor}.zip") as archive:
        return frozenset(archive.namelist())


def _validation_identities(emojis: list[dict], fold: int) -> set[str]:
    """A fifth of each class's identities outside the test fold, at least one where the class has three or more."""
    by_class: dict[str, set[str]] = defaultdict(set)
    for emoji in emojis:
        if emoji["fold"] != fold:
            by_class[emoji["class"]].add(emoji["identity"])
    chosen: set[str] = set()
    for identities in by_class.values():
        ordered = sorted(identities, key=lambda text: hashlib.sha256(f"{fold} {text}".encode()).hexdigest())
        count = max(round(len(ordered) * VALIDATION_SHARE), 1) if len(ordered) >= 3 else 0
        chosen.update(ordered[:count])
    return chosen
