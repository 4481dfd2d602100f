"""A CSV, TSV or Parquet table of pictures: one row each, with path, label and what else is known."""

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tether.config import method
from tether.data.corrupted_tests import CorruptedTests, check_choice
from tether.data.domains import DomainConfig, check_domains
from tether.data.folder import (
    ExtraClasses,
    check_extra_classes,
    extra_classes_note,
    read_class_names,
)
from tether.data.locating import image_inside, require_there
from tether.data.prompts import templates
from tether.data.records import Benchmark, Example, Split, distinct
from tether.data.splitting import parts_of, split_by_identity
from tether.data.tables import read_table, resolve_columns, split_of, texts_of
from tether.errors import TetherError, near_misses
from tether.families import DataConfig

COLUMNS = ("path", "label", "caption", "domain", "split", "identity")


@method("manifest")
@dataclass(frozen=True, kw_only=True)
class ManifestConfig(DataConfig):
    """A table with the columns `path` and `label`, and, where they are known, `caption`, `domain`, `split`,
    `identity`.

    `label` is the class's name (or a key into `class_names`). `caption` is a text, in Parquet also a list of
    texts; in CSV several are divided by `caption_separator`. `split` is train, validation or test. Pictures
    of one `identity` never lie on both sides of a train-test border.

    What the `split` column does not give, of validation and in-distribution test rows, is cut from its training rows.
    Without a `split` column the table is cut by identity, class by class: the in-distribution domain into
    train, validation and test; of the other domains all identities that are not trained on become shifted
    tests.

    Args:
        path: a `.csv`, `.tsv` or `.parquet` file.
        root: the folder or `.zip` archive that the paths are relative to; by default the table's folder.
        in_distribution: the domain to train on; needed where the table has several and does not tell by
            `split`.
        columns: our column name → the table's, where it differs, as in {"path": "filename"}.
        class_names: a file of names for the labels, as for `FolderConfig`; its order is the order of classes.
        validation_share, test_share: shares of each class's identities, where the table does not give the part.
        corruptions: which tests of corrupted pictures to add, "none", "mixture" or "all"; see
            `tether.data.corrupted_tests`.
        extra_classes: what to do with classes of shifted domains that the in-distribution domain does not have:
            "refuse" them, or "leave out" their pictures, counted in the notes.
        domains: shifted domain → its own classes or templates, where these are not those that are trained on.

    Raises:
        TetherError: a table of another kind, or a column that is none of ours.
    """

    path: str
    root: str | None = None
    in_distribution: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    class_names: str | None = None
    caption_separator: str = "|"
    """What divides the captions of one picture in CSV."""
    templates: str | Sequence[str] = "photo"
    """Name of a template set, a template, or several."""
    validation_share: float = 0.1
    test_share: float = 0.2
    seed: int = 0
    """Decides how the table is cut, where it has no `split` column."""
    corruptions: CorruptedTests = "none"
    extra_classes: ExtraClasses = field(default="refuse", metadata={"added": True})
    domains: Mapping[str, DomainConfig] = field(default_factory=dict, metadata={"added": True})

    def load(self) -> Benchmark:
        return load(self)

    def __post_init__(self):
        templates(self.templates)
        check_choice(self.corruptions)
        check_extra_classes(self.extra_classes)
        if Path(self.path).suffix.lower() not in (".csv", ".tsv", ".parquet"):
            raise TetherError(f"{self.path} is no .csv, .tsv or .parquet file.")
        for ours in self.columns:
            if ours not in COLUMNS:
                raise TetherError(f"There is no column {ours!r} to rename{near_misses(ours, COLUMNS)}")


@dataclass(frozen=True, slots=True)
class _Row:
    example: Example
    domain: str
    split: str


def load(config: ManifestConfig) -> Benchmark:
    """Read the table and look whether every picture is there; pictures are read when they are used.

    Raises:
        TetherError: wrong columns, incomplete rows, pictures that are missing or outside the root, labels
            without a name, or splits that overlap by identity.
    """
    class_names, other_names, rows = _read(config)
    has_split = any(row.split for row in rows)
    home = _in_distribution(config, rows, has_split)
    check_domains(config.domains, sorted({row.domain for row in rows} - {home}), home)
    notes: list[str] = []
    if config.extra_classes == "leave out":
        class_names, rows, notes = _without_extra_classes(class_names, rows, home, other_names)
    home_rows = [row for row in rows if row.domain == home]
    if has_split:
        if foreign := {row.domain for row in rows if row.split in ("train", "validation")} - {home}:
            raise TetherError(
                f"{config.path} has training or validation rows of the domain {min(foreign)!r}, but {home!r} "
                "is the in-distribution one. Choosing anything by a shifted domain would spoil it as a "
                "test."
            )
        parts = {
            name: tuple(row.example for row in rows if row.split == name) for name in ("train", "validation")
        }
        tested = [row for row in rows if row.split == "test"]
        shares = (
            0.0 if any(row.domain == home for row in tested) else config.test_share,
            0.0 if parts["validation"] else config.validation_share,
        )
        if parts["train"] and any(shares):
            test, validation, parts["train"] = _cut(parts["train"], shares, config.seed)
            parts["validation"] = parts["validation"] or validation
            chosen = {example.image for example in test}
            tested += [row for row in home_rows if row.example.image in chosen]
    else:
        shares = (config.test_share, config.validation_share)
        test, validation, train = split_by_identity(
            [row.example for row in home_rows], shares, seed=config.seed
        )
        parts = {"train": train, "validation": validation}
        used = {example.identity for example in (*train, *validation)}
        chosen = {example.image for example in test}
        tested = [
            row
            for row in rows
            if (row.example.image in chosen if row.domain == home else row.example.identity not in used)
        ]
        left_out = sum(row.domain != home for row in rows) - sum(row.domain != home for row in tested)
        if left_out:
            notes.append(
                f"{left_out} pictures of other domains are left out: their identities are trained on."
            )

    by_domain: dict[str, list[Example]] = defaultdict(list)
    for row in tested:
        by_domain[row.domain].append(row.example)
    tests = {
        domain: config.domains.get(domain, DomainConfig()).split(
            domain, by_domain[domain], other_names.get(domain)
        )
        for domain in sorted(by_domain)
    }
    return Benchmark(
        name=Path(config.path).stem,
        class_names=distinct(class_names),
        templates=templates(config.templates),
        train=Split("train", home, parts["train"]),
        validation=Split("validation", home, parts["validation"]),
        tests=tests,
        in_distribution=home,
        notes=tuple(notes),
    )


def _cut(examples: Sequence[Example], shares: Sequence[float], seed: int) -> tuple[tuple[Example, ...], ...]:
    """`split_by_identity`; not class by class where identities have several labels, as a typeface has all letters."""
    labels = {(example.identity, example.label) for example in examples}
    identities = dict.fromkeys(example.identity for example in examples)
    if len(labels) == len(identities):
        return split_by_identity(examples, shares, seed=seed)
    part_of = parts_of(identities, shares, seed=seed)
    return tuple(
        tuple(example for example in examples if part_of[example.identity] == part)
        for part in range(len(shares) + 1)
    )


def _without_extra_classes(
    class_names: Sequence[str], rows: Sequence[_Row], home: str, other_classes: Collection[str]
) -> tuple[tuple[str, ...], list[_Row], list[str]]:
    """Classes, rows and notes when the classes that have no in-distribution picture are left out.

    Args:
        other_classes: domains that have classes of their own.
    """
    labels = sorted({row.example.label for row in rows if row.domain == home})
    number = {label: position for position, label in enumerate(labels)}
    left_out: dict[str, list[str]] = defaultdict(list)
    kept = []
    for row in rows:
        if row.domain in other_classes:
            kept.append(row)
        elif row.example.label in number:
            kept.append(replace(row, example=replace(row.example, label=number[row.example.label])))
        else:
            left_out[row.domain].append(class_names[row.example.label])
    notes = [extra_classes_note(name, len(own), sorted(set(own))) for name, own in sorted(left_out.items())]
    return tuple(class_names[label] for label in labels), kept, notes


def _read(config: ManifestConfig) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]], list[_Row]]:
    """Names of the classes, those of each domain that has classes of its own, and the rows."""
    path = Path(config.path)
    found, records = read_table(path)
    column = resolve_columns(path, found, COLUMNS, config.columns, needed={"path", "label"})
    root = os.path.abspath(config.root or path.parent)

    cells = []
    for line, record in records:
        values = {ours: record[position] for ours, position in column.items()}
        name, label = (
            str(values[ours] if values[ours] is not None else "").strip() for ours in ("path", "label")
        )
        if not name or not label:
            raise TetherError(f"{path}, row {line}: the {'label' if name else 'path'} is empty.")
        domain = str(values.get("domain") or "").strip() or "in-distribution"
        cells.append((line, name, label, domain, values))
    if not cells:
        raise TetherError(f"{path} has no rows.")

    others = [domain for domain, rules in config.domains.items() if rules.classes == "own"]
    shared = {label for _, _, label, domain, _ in cells if domain not in others}
    label_of, class_names = _classes(path, config.class_names, shared)
    other_labels, other_names = {}, {}
    for other in others:
        labels = {label for _, _, label, domain, _ in cells if domain == other}
        names = config.domains[other].class_names
        other_labels[other], other_names[other] = _classes(path, names, labels, f"domains.{other}.")

    rows = []
    for line, name, label, domain, values in cells:
        labels = other_labels.get(domain, label_of)
        if label not in labels:
            raise TetherError(
                f"{path}, row {line}: the label {label!r} has no name{near_misses(label, tuple(labels))}"
            )
        split = split_of(values["split"], f"{path}, row {line}") if "split" in column else ""
        example = Example(
            image=image_inside(root, name, f"{path}, row {line}"),
            label=labels[label],
            captions=texts_of(values.get("caption"), config.caption_separator),
            identity=str(values.get("identity") or "").strip(),
        )
        rows.append(_Row(example, domain, split))
    require_there(root, [row.example.image for row in rows])
    return class_names, other_names, rows


def _classes(
    path: Path, file: str | None, labels: Iterable[str], option: str = ""
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Number of each class by its label, and names of the classes: a file's, or the labels with spaces."""
    if file:
        names = read_class_names(Path(file))
    else:
        names = {label: " ".join(label.replace("_", " ").split()) for label in sorted(labels)}
        if names and all(label.lstrip("-").isdigit() for label in names):
            raise TetherError(
                f"The labels of {path} are numbers, which say nothing in a prompt; give `{option}class_names`, a file "
                "of lines 'number<TAB>name'."
            )
    return {label: number for number, label in enumerate(names)}, tuple(names.values())


def _in_distribution(config: ManifestConfig, rows: Sequence[_Row], has_split: bool) -> str:
    domains = sorted({row.domain for row in rows})
    trained = sorted({row.domain for row in rows if row.split == "train"}) if has_split else domains
    if config.in_distribution is None:
        if len(trained) == 1:
            return trained[0]
        raise TetherError(
            f"Which domain is trained on? Set in_distribution to one of {', '.join(map(repr, domains))}."
        )
    if config.in_distribution not in domains:
        raise TetherError(
            f"{config.path} has no domain "
            f"{config.in_distribution!r}{near_misses(config.in_distribution, domains)}"
        )
    return config.in_distribution
