"""A CSV, TSV or Parquet table of captions: one row for each, or one for each picture with all of its captions."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from tether.config import method
from tether.data.captions import CaptionBenchmark, CaptionedImage, CaptionSplit, by_domain
from tether.data.locating import image_inside, require_there
from tether.data.records import ImageRef
from tether.data.splitting import parts_of
from tether.data.tables import read_table, resolve_columns, split_of, texts_of
from tether.errors import TetherError, near_misses
from tether.families import DataConfig

COLUMNS = ("path", "caption", "domain", "split", "identity")


@method("caption_table")
@dataclass(frozen=True, kw_only=True)
class CaptionTableConfig(DataConfig):
    """A table with the columns `path` and `caption`, and, where they are known, `domain`, `split`, `identity`.

    Rows of the same path are captions of one picture, and say the same in the other columns. A cell may hold several
    captions: a list in Parquet, divided by `caption_separator` in CSV. `split` is train, validation or test; training
    and validation pictures are of one domain. Pictures of one `identity` never lie on both sides of a border.

    Without a `split` column the in-distribution domain is cut by identity into train, validation and test; of the
    other domains all identities that are not trained on become shifted tests.

    Args:
        path: a `.csv`, `.tsv` or `.parquet` file.
        root: the folder or `.zip` archive that the paths are relative to; by default the table's folder.
        in_distribution: the domain to train on; needed where the table has several and does not tell by `split`.
        columns: our column name → the table's, where it differs, as in {"path": "filename"}.
        caption_separator: what stands between several captions in a cell of a CSV or TSV file.
        validation_share, test_share: shares of the identities, where there is no `split` column.
        seed: of that cut.

    Raises:
        TetherError: a table of another kind, or a column that is none of ours.
    """

    path: str
    root: str | None = None
    in_distribution: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    caption_separator: str = "|"
    validation_share: float = 0.1
    test_share: float = 0.2
    seed: int = 0

    def __post_init__(self):
        if Path(self.path).suffix.lower() not in (".csv", ".tsv", ".parquet"):
            raise TetherError(f"{self.path} is no .csv, .tsv or .parquet file.")
        if not self.caption_separator:
            raise TetherError(
                "caption_separator is empty; give what divides the captions of a cell, such as '|'."
            )
        for ours in self.columns:
            if ours not in COLUMNS:
                raise TetherError(f"There is no column {ours!r} to rename{near_misses(ours, COLUMNS)}")

    def load(self) -> CaptionBenchmark:
        """Read the table and look whether every picture is there; pictures are read when they are used.

        Raises:
            TetherError: wrong columns, incomplete or contradicting rows, pictures that are missing or outside the
                root, training pictures of several domains, or splits that overlap by identity.
        """
        examples, split_by_image = _read(self)
        trained = {e.domain for e in examples if split_by_image.get(e.image) in ("train", "validation")}
        home = self._home(sorted({e.domain for e in examples}), trained)
        if foreign := trained - {home}:
            raise TetherError(
                f"{self.path} has training or validation rows of the domain {min(foreign)!r}, but {home!r} is the "
                "in-distribution one. Choosing anything by a shifted domain would spoil it as a test."
            )
        notes: tuple[str, ...] = ()
        if split_by_image:
            part = [split_by_image[example.image] for example in examples]
        else:
            identities = dict.fromkeys(e.identity for e in examples if e.domain == home)
            parts = parts_of(identities, (self.test_share, self.validation_share), seed=self.seed)
            names = {identity: ("test", "validation", "train")[number] for identity, number in parts.items()}
            part = [names.get(example.identity, "test") for example in examples]
            for position, example in enumerate(examples):
                if example.domain != home and part[position] != "test":
                    part[position] = "left out"
            if left_out := part.count("left out"):
                notes = (
                    f"{left_out} pictures of other domains are left out: their identities are trained on.",
                )

        def chosen(name: str) -> tuple[CaptionedImage, ...]:
            return tuple(example for example, own in zip(examples, part, strict=True) if own == name)

        return CaptionBenchmark(
            name=Path(self.path).stem,
            train=CaptionSplit("train", chosen("train")),
            validation=CaptionSplit("validation", chosen("validation")),
            tests=by_domain(chosen("test")),
            in_distribution=home,
            notes=notes,
        )

    def _home(self, domains: list[str], trained: set[str]) -> str:
        if self.in_distribution is not None:
            if self.in_distribution not in domains:
                raise TetherError(
                    f"{self.path} has no domain {self.in_distribution!r}{near_misses(self.in_distribution, domains)}"
                )
            return self.in_distribution
        for candidates in (trained, set(domains)):
            if len(candidates) == 1:
                return min(candidates)
        raise TetherError(
            f"Which domain is trained on? Set in_distribution to one of {', '.join(map(repr, domains))}."
        )


def _read(config: CaptionTableConfig) -> tuple[list[CaptionedImage], dict[ImageRef, str]]:
    """The pictures in the order in which they first occur, and their splits; no splits without that column."""
    path = Path(config.path)
    found, records = read_table(path)
    column = resolve_columns(path, found, COLUMNS, config.columns, needed={"path", "caption"})
    root = os.path.abspath(config.root or path.parent)
    pictures: dict[ImageRef, CaptionedImage] = {}
    splits: dict[ImageRef, str] = {}
    for line, record in records:
        place = f"{path}, row {line}"
        values = {ours: record[position] for ours, position in column.items()}
        cells = {name: str(values.get(name) or "").strip() for name in ("path", "domain", "identity")}
        captions = texts_of(values["caption"], config.caption_separator)
        if not cells["path"] or not captions:
            raise TetherError(f"{place}: the {'caption' if cells['path'] else 'path'} is empty.")
        example = CaptionedImage(
            image=image_inside(root, cells["path"], place),
            captions=captions,
            identity=cells["identity"],
            domain=cells["domain"] or "in-distribution",
        )
        split = split_of(values["split"], place) if "split" in column else ""
        known = pictures.setdefault(example.image, example)
        if known is not example:
            earlier = (known.domain, known.identity, splits.get(example.image, ""))
            if earlier != (example.domain, example.identity, split):
                raise TetherError(
                    f"{place}: {cells['path']} has another domain, identity or split than in a row before it. Rows "
                    "of one path are captions of one picture."
                )
            pictures[example.image] = replace(known, captions=known.captions + captions)
        if split:
            splits[example.image] = split
    if not pictures:
        raise TetherError(f"{path} has no rows.")
    require_there(root, list(pictures))
    return list(pictures.values()), splits
