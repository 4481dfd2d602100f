"""Image folders: one folder per class, one root per domain."""

import json
import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from tether.config import method
from tether.data.corrupted_tests import CorruptedTests, check_choice
from tether.data.domains import DomainConfig, check_domains, check_shifted
from tether.data.prompts import templates
from tether.data.reading import PICTURE_SUFFIXES, list_pictures
from tether.data.records import Benchmark, Example, ImageRef, Split, distinct
from tether.data.splitting import split_by_identity
from tether.errors import TetherError, near_misses
from tether.families import DataConfig

ExtraClasses = Literal["refuse", "leave out"]


@method("folder")
@dataclass(frozen=True, kw_only=True)
class FolderConfig(DataConfig):
    """Where the pictures are. Every root holds one folder per class with its pictures, at any depth.

    Args:
        train: root of the training pictures; its folders are the classes.
        validation, test: roots of in-distribution pictures; what is not given is cut from `train`, by class.
        shifted: domain name → root of test pictures that look different.
        domain: name of the look of `train`, `validation` and `test`.
        validation_share, test_share: share of each class's pictures that is cut from `train`.
        class_names: a file of names for the folders: JSON `{folder: name}`, or lines `folder<TAB>name`.
            Otherwise a folder's name is the class's name, with spaces for underscores.
        templates: name of a template set, a template, or several.
        seed: decides which pictures are cut from `train`.
        extra_classes: what to do with class folders of a shifted domain that `train` does not have: "refuse" them, or
            "leave out" their pictures, counted in the notes.
        domains: shifted domain → its own classes or templates, where these are not those of `train`.
        corruptions: which tests of corrupted pictures to add, "none", "mixture" or "all"; see
            `tether.data.corrupted_tests`.

    Raises:
        TetherError: shares that leave nothing to train on, a shifted domain with the in-distribution name, or
            classes or templates of a domain that is not there.
    """

    train: str
    validation: str | None = None
    test: str | None = None
    shifted: Mapping[str, str] = field(default_factory=dict)
    domain: str = "in-distribution"
    validation_share: float = 0.1
    test_share: float = 0.2
    class_names: str | None = None
    templates: str | Sequence[str] = "photo"
    seed: int = 0
    corruptions: CorruptedTests = "none"
    extra_classes: ExtraClasses = field(default="refuse", metadata={"added": True})
    domains: Mapping[str, DomainConfig] = field(default_factory=dict, metadata={"added": True})

    def load(self) -> Benchmark:
        return load(self)

    def __post_init__(self):
        check_shifted(self.shifted, self.domain)
        templates(self.templates)
        check_choice(self.corruptions)
        check_extra_classes(self.extra_classes)
        check_domains(self.domains, tuple(self.shifted), self.domain)


def check_extra_classes(choice: str) -> None:
    """Refuse a choice that is none of `ExtraClasses`.

    Raises:
        TetherError: it is none.
    """
    if choice not in (known := get_args(ExtraClasses)):
        raise TetherError(f"extra_classes is {choice!r}{near_misses(str(choice), known)}")


def extra_classes_note(domain: str, pictures: int, classes: Sequence[str]) -> str:
    """What a reader of the numbers must know about classes that were left out of a shifted domain."""
    shown = ", ".join(map(repr, classes[:10])) + (" and more" if classes[10:] else "")
    return f"{pictures} pictures of {len(classes)} classes that are not trained on are left out of {domain}: {shown}."


def load(config: FolderConfig) -> Benchmark:
    """Read the folders' listings; pictures are read when they are used.

    Raises:
        TetherError: a missing or empty root or class folder, pictures outside class folders, a shifted domain with an
            unknown class, names that do not fit the folders.
    """
    folders = class_folders(config.train)
    label_of = {folder: label for label, folder in enumerate(folders)}

    given, _ = _examples(config.train, label_of, "train")
    test, _ = _examples(config.test, label_of, "test") if config.test else (None, {})
    validation, _ = _examples(config.validation, label_of, "validation") if config.validation else (None, {})
    shares = (0.0 if test else config.test_share, 0.0 if validation else config.validation_share)
    cut_test, cut_validation, train = split_by_identity(given, shares, seed=config.seed)

    tests = {config.domain: Split("test", config.domain, test or cut_test)}
    notes = []
    for domain, root in config.shifted.items():
        role = f"shifted {domain}" if domain in ("train", "validation") else domain
        rules = config.domains.get(domain, DomainConfig())
        if rules.classes == "own":
            other = class_folders(root)
            examples, extra = _examples(root, {folder: label for label, folder in enumerate(other)}, role)
            tests[domain] = rules.split(domain, examples, _class_names(rules.class_names, other))
        else:
            examples, extra = _examples(root, label_of, role, config.extra_classes)
            tests[domain] = rules.split(domain, examples)
        if extra:
            notes.append(extra_classes_note(domain, sum(extra.values()), sorted(extra)))
    return Benchmark(
        name=Path(config.train).resolve().name,
        class_names=distinct(_class_names(config.class_names, folders)),
        templates=templates(config.templates),
        train=Split("train", config.domain, train),
        validation=Split("validation", config.domain, validation or cut_validation),
        tests=tests,
        in_distribution=config.domain,
        notes=tuple(notes),
    )


def class_folders(root: str) -> list[str]:
    """Names of the class folders in `root`, sorted.

    Raises:
        TetherError: there is no such folder, or no folder in it.
    """
    try:
        folders = sorted(
            entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith(".")
        )
    except OSError as error:
        raise TetherError(f"Cannot list the folder {root}: {error.strerror}.") from error
    if not folders:
        raise TetherError(f"{root} holds no folders; expected one folder per class with its pictures inside.")
    return folders


def completeness(name: str, root: Path, found: int, expected: int, allow_partial: bool) -> str:
    """What to add to a split's convention: nothing, or that pictures are missing.

    Raises:
        TetherError: the set is not whole and that is not allowed.
    """
    if found == expected:
        return ""
    if not allow_partial or not found:
        raise TetherError(
            f"{name} has {expected:,} pictures, but {found:,} are in {root}. Numbers on a part are not "
            "comparable; complete the set, or set allow_partial=True, and every report will say so."
        )
    warnings.warn(
        f"{name} is not whole: {found:,} of {expected:,} pictures are in {root}; every report will say so.",
        stacklevel=2,
    )
    return f"; PARTIAL: {found:,} of {expected:,} pictures"


def _examples(
    root: str, label_of: Mapping[str, int], role: str, extra_classes: ExtraClasses | None = None
) -> tuple[tuple[Example, ...], Counter[str]]:
    """The pictures of a root, and how many there are of each class that is left out.

    Args:
        extra_classes: of a shifted domain; None where every folder has to be a class.
    """
    folders = class_folders(root)
    extra = Counter(dict.fromkeys((folder for folder in folders if folder not in label_of), 0))
    if extra and extra_classes != "leave out":
        clause = near_misses(first := next(iter(extra)), tuple(label_of))
        clause += "" if clause.endswith("?") else "."
        way_out = " Or pass over such folders: extra_classes='leave out'." if extra_classes else ""
        raise TetherError(f"{root} has a folder {first!r} that is no class{clause}{way_out}")
    folders = [folder for folder in folders if folder in label_of]
    place = str(Path(root).resolve())
    examples, loose = [], []
    for name in list_pictures(root):
        folder, _, inside = name.partition("/")
        if not inside:
            loose.append(name)
            continue
        if folder in extra:
            extra[folder] += 1
            continue
        # Equal file names under two roots are two pictures, hence the role; the place would make hashes local.
        examples.append(Example(ImageRef(place, name), label_of[folder], identity=f"{role}/{name}"))
    if loose:
        raise TetherError(
            f"{root} holds pictures outside any class folder, such as {loose[0]!r}; put them in one."
        )
    if not examples:
        what = "but none of a class that is trained on" if extra else "but no pictures in them"
        raise TetherError(f"{root} holds class folders, {what}.")
    filled = {example.image.name.partition("/")[0] for example in examples}
    if empty := [folder for folder in folders if folder not in filled]:
        raise TetherError(
            f"{len(empty)} of {len(folders)} class folders in {root} hold no picture of a known kind, such as "
            f"{empty[0]!r}. Add pictures ({', '.join(sorted(PICTURE_SUFFIXES))}), or take these folders out."
        )
    return tuple(examples), extra


def _class_names(file: str | None, folders: Sequence[str]) -> tuple[str, ...]:
    if file is None:
        return tuple(" ".join(folder.replace("_", " ").split()) for folder in folders)
    names = read_class_names(Path(file))
    if missing := [folder for folder in folders if folder not in names]:
        raise TetherError(
            f"{file} lacks names for {len(missing)} of {len(folders)} folders, first "
            f"{missing[0]!r}{near_misses(missing[0], tuple(names))}"
        )
    return tuple(names[folder] for folder in folders)


def read_class_names(path: Path) -> dict[str, str]:
    """Names by folder or label, from JSON `{folder: name}` or from lines `folder<TAB>name`.

    Raises:
        TetherError: there is no such file, or it is of neither form.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            names = json.loads(text)
            if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
                raise ValueError("not an object of names")
            return names
        return dict(_name_line(line) for line in text.splitlines() if line.strip())
    except (OSError, ValueError) as error:
        raise TetherError(
            f"Cannot read class names from {path} ({error}); expected JSON {{folder: name}} or lines "
            "'folder<TAB>name'."
        ) from error


def _name_line(line: str) -> tuple[str, str]:
    folder, tab, name = line.partition("\t")
    if not tab or not name.strip():
        raise ValueError(f"no name after a tab in {line!r}")
    return folder.strip(), name.strip()
