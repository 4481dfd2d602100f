import csv

import pytest

from tether.data import CaptionTableConfig
from tether.errors import TetherError


@pytest.fixture
def table(tmp_path):
    """Write rows of a table whose pictures p/0.png … p/39.png are there, and give its config."""
    (tmp_path / "p").mkdir()
    for number in range(40):
        (tmp_path / f"p/{number}.png").touch()  # nothing is opened

    def write(header, rows, name="table.csv", **options):
        with open(tmp_path / name, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter="\t" if name.endswith(".tsv") else ",").writerows([header, *rows])
        return CaptionTableConfig(path=str(tmp_path / name), **options)

    return write


def names(split):
    return [int(example.image.name[2:-4]) for example in split.examples]


def test_one_row_per_caption_and_several_in_a_cell_are_the_same(table):
    header = ["path", "caption", "split"]
    split = {0: "train", 1: "val", 2: "test"}
    by_row = [[f"p/{n}.png", f"{word} {n}", split[n]] for word in ("a", "the", "one") for n in range(3)]
    by_cell = [[f"p/{n}.png", f"a {n}| the {n}|one {n}|", split[n]] for n in range(3)]
    one, other = table(header, by_row, "one.csv").load(), table(header, by_cell, "other.tsv").load()
    assert one.train.examples[0].captions == ("a 0", "the 0", "one 0")
    assert one.train.digest == other.train.digest and one.validation.digest == other.validation.digest
    assert one.tests["in-distribution"].digest == other.tests["in-distribution"].digest


def test_without_a_split_identities_stay_on_one_side(table):
    # Pictures n and n + 20 show the same thing in two domains.
    rows = [
        [f"p/{n}.png", f"caption {i} of {n}", "photo" if n < 20 else "drawing", f"id{n % 20}"]
        for i in range(2)
        for n in range(40)
    ]
    benchmark = table(["path", "caption", "domain", "identity"], rows, in_distribution="photo").load()
    sizes = [len(benchmark.train), len(benchmark.validation), len(benchmark.tests["photo"])]
    assert sizes == [14, 2, 4]
    assert benchmark.tests["drawing"].identities == benchmark.tests["photo"].identities
    assert benchmark.notes == ("16 pictures of other domains are left out: their identities are trained on.",)
    with pytest.raises(TetherError, match="Which domain is trained on"):
        table(["path", "caption", "domain", "identity"], rows).load()
    with pytest.raises(TetherError, match="did you mean 'photo'"):
        table(["path", "caption", "domain", "identity"], rows, in_distribution="fotos").load()


def test_parquet_with_lists_and_other_names_of_columns(table, tmp_path):
    import pyarrow
    import pyarrow.parquet

    columns = {
        "file": [f"p/{n}.png" for n in range(6)],
        "texts": [["one", "two"]] * 6,
        "split": ["train"] * 3 + ["test"] * 3,
        "domain": ["photo"] * 5 + ["sketch"],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    renamed = {"path": "file", "caption": "texts"}
    benchmark = CaptionTableConfig(path=str(tmp_path / "t.parquet"), columns=renamed).load()
    assert benchmark.train.examples[0].captions == ("one", "two") and benchmark.in_distribution == "photo"
    assert {domain: names(split) for domain, split in benchmark.tests.items()} == {
        "photo": [3, 4],
        "sketch": [5],
    }


def test_contradictions_and_gaps_are_named_by_their_row(table):
    header = ["path", "caption", "domain", "split"]
    row = ["p/0.png", "a", "photo", "train"]
    for other, words in (
        (["p/0.png", "b", "sketch", "train"], "row 3: p/0.png has another domain, identity or split"),
        (["p/0.png", "b", "photo", "test"], "row 3: p/0.png has another domain, identity or split"),
        (["p/1.png", " | ", "photo", "train"], "row 3: the caption is empty"),
        (["", "b", "photo", "train"], "row 3: the path is empty"),
        (["p/1.png", "b", "photo", "trian"], "row 3: the split is 'trian'; did you mean 'train'"),
        (["../1.png", "b", "photo", "train"], "row 3: '../1.png' lies outside"),
        (["p/99.png", "b", "photo", "train"], r"1 of 2 pictures are not in .*:\n  p/99.png"),
        (["p/1.png", "b", "sketch", "val"], "Which domain is trained on"),
    ):
        with pytest.raises(TetherError, match=words):
            table(header, [row, other]).load()
    with pytest.raises(TetherError, match="validation rows of the domain 'sketch', but 'photo' is"):
        table(header, [row, ["p/1.png", "b", "sketch", "val"]], in_distribution="photo").load()
    with pytest.raises(TetherError, match=r"has no rows"):
        table(header, []).load()


def test_columns_are_named_with_near_misses(table, tmp_path):
    with pytest.raises(TetherError, match="no column 'caption'; did you mean 'captoin'"):
        table(["path", "captoin"], [["p/0.png", "a"]]).load()
    with pytest.raises(TetherError, match="'domian', which looks like a misspelt 'domain'"):
        table(["path", "caption", "domian"], [["p/0.png", "a", "photo"]]).load()
    with pytest.raises(TetherError, match="no column 'lable' to rename"):
        CaptionTableConfig(path="t.csv", columns={"lable": "x"})
    with pytest.raises(TetherError, match=r"t.txt is no .csv, .tsv or .parquet file"):
        CaptionTableConfig(path="t.txt")
    with pytest.raises(TetherError, match="caption_separator is empty"):
        CaptionTableConfig(path="t.csv", caption_separator="")
