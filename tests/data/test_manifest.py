import csv
import sys
import zipfile

import pytest

from tether.data import ManifestConfig, load_benchmark
from tether.data.tables import read_table
from tether.errors import TetherError


@pytest.fixture
def pictures(tmp_path, noise):
    """40 pictures p/00.png … in a folder."""
    (tmp_path / "p").mkdir()
    for number in range(40):
        noise(number, (4, 4)).save(tmp_path / f"p/{number:02}.png")
    return tmp_path


def write(path, header, rows, delimiter=","):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(header)
        writer.writerows(rows)
    return str(path)


def table(pictures, **columns):
    """Every picture with a label by turns, and the given columns, each a function of the number."""
    rows = [
        [f"p/{n:02}.png", ("cat", "sea_lion")[n % 2], *(make(n) for make in columns.values())]
        for n in range(40)
    ]
    return write(pictures / "table.csv", ["path", "label", *columns], rows)


def load(path, **options):
    return load_benchmark(ManifestConfig(path=path, **options))


def numbers(split):
    return [int(example.image.name[2:4]) for example in split.examples]


def test_path_and_label_are_enough(pictures):
    benchmark = load(table(pictures), templates="pets")
    assert benchmark.class_names == ("cat", "sea lion") and benchmark.name == "table"
    sizes = [
        len(split) for split in (benchmark.train, benchmark.validation, benchmark.tests["in-distribution"])
    ]
    assert sizes == [28, 4, 8]
    assert benchmark.train.examples[0].captions == ()


def test_a_split_column_is_followed(pictures):
    def split(n):
        return "Train" if n < 20 else "val" if n < 30 else "test"

    def domain(n):
        return "sketch" if n >= 35 else "photo"

    benchmark = load(table(pictures, split=split, domain=domain))
    assert numbers(benchmark.train) == list(range(20)) and numbers(benchmark.validation) == list(
        range(20, 30)
    )
    assert {name: numbers(test) for name, test in benchmark.tests.items()} == {
        "photo": list(range(30, 35)),
        "sketch": list(range(35, 40)),
    }
    assert benchmark.in_distribution == "photo"


def test_nothing_is_chosen_by_a_shifted_domain(pictures):
    path = table(
        pictures,
        split=lambda n: ("train", "val", "test")[n // 14],
        domain=lambda n: "sketch" if n in (20, 39) else "photo",
    )
    with pytest.raises(TetherError, match="validation rows of the domain 'sketch'"):
        load(path)


def test_without_a_split_identities_stay_on_one_side(pictures):
    # Pictures n and n + 20 show the same thing in two domains; 4 and 24 differ from it.
    path = table(
        pictures,
        domain=lambda n: "photo" if n < 20 else "drawing",
        identity=lambda n: f"id{n % 20}" if n != 24 else "own",
    )
    benchmark = load(path, in_distribution="photo", test_share=0.3)
    trained = benchmark.train.identities | benchmark.validation.identities
    assert benchmark.train.domain == "photo" and len(benchmark.tests["photo"]) == 6
    drawn = benchmark.tests["drawing"].identities
    assert drawn == ({f"id{n}" for n in range(20) if n != 4} | {"own"}) - trained
    assert benchmark.notes == (
        f"{20 - len(drawn)} pictures of other domains are left out: their identities are trained on.",
    )
    with pytest.raises(TetherError, match="Which domain is trained on"):
        load(path)
    with pytest.raises(TetherError, match="did you mean 'photo'"):
        load(path, in_distribution="fotos")


def test_captions(pictures):
    path = table(
        pictures,
        captions=lambda n: "a cat, asleep| the cat |" if n == 0 else "",
        split=lambda n: "train" if n < 30 else "test",
    )
    found = [example.captions for example in load(path, validation_share=0.0).train.examples]
    assert found == [("a cat, asleep", "the cat")] + [()] * 29
    commas = load(path, validation_share=0.0, caption_separator=",")
    assert commas.train.examples[0].captions == ("a cat", "asleep| the cat |")


def test_parquet_with_lists_of_captions(pictures):
    import pyarrow
    import pyarrow.parquet

    names = [f"p/{n:02}.png" for n in range(40)]
    columns = {
        "path": names,
        "label": ["cat", "dog"] * 20,
        "caption": [["one", "two"]] * 39 + [None],
        "split": ["train"] * 30 + ["test"] * 10,
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), pictures / "t.parquet")
    benchmark = load(str(pictures / "t.parquet"))
    assert benchmark.train.examples[3].captions == ("one", "two")
    assert benchmark.tests["in-distribution"].examples[-1].captions == ()
    (pictures / "cut.parquet").write_bytes((pictures / "t.parquet").read_bytes()[:200])
    with pytest.raises(TetherError, match=r"Cannot read .* as Parquet"):
        load(str(pictures / "cut.parquet"))


def test_parquet_without_pyarrow(pictures, monkeypatch):
    (pictures / "t.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(TetherError, match=r"\.\[parquet\]"):
        load(str(pictures / "t.parquet"))


def test_other_names_for_columns_and_labels(pictures):
    rows = [[f"p/{n:02}.png", n % 2] for n in range(40)]
    path = write(pictures / "t.tsv", ["file name", "class"], rows, delimiter="\t")
    (pictures / "names.tsv").write_text("1\tdog\n0\tcat\n")
    columns = {"path": "file name", "label": "class"}
    benchmark = load(path, columns=columns, class_names=str(pictures / "names.tsv"))
    assert benchmark.class_names == ("dog", "cat")
    assert {(int(e.image.name[2:4]) % 2, e.label) for e in benchmark.train.examples} == {(0, 1), (1, 0)}
    with pytest.raises(TetherError, match="numbers, which say nothing"):
        load(path, columns=columns)
    (pictures / "names.tsv").write_text("1\tdog\n")
    with pytest.raises(TetherError, match="row 2: the label '0' has no name"):
        load(path, columns=columns, class_names=str(pictures / "names.tsv"))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (["pth", "label"], "no column 'path'; did you mean 'pth'"),
        (["path", "labels"], "no column 'label'; did you mean 'labels'"),
        (["path", "label", "captoin"], "'captoin', which looks like a misspelt 'caption'"),
        (["path", "label", "Split"], "'Split', which looks like a misspelt 'split'"),
        (["path", "label", "label"], "two columns called 'label'"),
        ([], "no column 'path'"),
    ],
)
def test_wrong_columns(pictures, header, message):
    with pytest.raises(TetherError, match=message):
        load(write(pictures / "t.csv", header, [["p/00.png", "cat", "x"][: len(header)]]))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["", "cat", "train"], "row 2: the path is empty"),
        (["p/00.png", " ", "train"], "row 2: the label is empty"),
        (["p/00.png", "cat", "trian"], "did you mean 'train'"),
        (["p/00.png", "cat", ""], "row 2: the split is ''"),
        (["p/00.png", "cat"], "row 2: 2 fields, but the header has 3"),
        (["../outside.png", "cat", "train"], "row 2: '../outside.png' lies outside"),
        (["/etc/passwd", "cat", "train"], "row 2: '/etc/passwd' lies outside"),
        (["p/99.png", "cat", "train"], r"1 of 1 pictures are not in .*\n  p/99.png"),
    ],
)
def test_wrong_rows(pictures, row, message):
    with pytest.raises(TetherError, match=message):
        load(write(pictures / "t.csv", ["path", "label", "split"], [row]))


def test_absolute_paths_inside_the_root(pictures):
    rows = [[str(pictures / f"p/{n:02}.png"), ("cat", "dog")[n % 2]] for n in range(10)]
    benchmark = load(write(pictures / "t.csv", ["path", "label"], rows))
    assert benchmark.train.examples[0].image.name.startswith("p/")


def test_pictures_in_an_archive(pictures):
    with zipfile.ZipFile(pictures / "all.zip", "w") as archive:
        for n in range(39):
            archive.write(pictures / f"p/{n:02}.png", f"p/{n:02}.png")
    path = table(pictures)
    with pytest.raises(TetherError, match=r"1 of 40 pictures(.|\n)*39\.png"):
        load(path, root=str(pictures / "all.zip"))
    with zipfile.ZipFile(pictures / "whole.zip", "w") as archive:
        for n in range(40):
            archive.write(pictures / f"p/{n:02}.png", f"p/{n:02}.png")
    benchmark = load(path, root=str(pictures / "whole.zip"))
    assert benchmark.train.digest == load(path).train.digest
    (pictures / "bad.zip").write_bytes(b"PK")
    with pytest.raises(TetherError, match="Cannot read the archive"):
        load(path, root=str(pictures / "bad.zip"))


def test_damaged_tables(pictures):
    with pytest.raises(TetherError, match=r"no \.csv, \.tsv or \.parquet"):
        ManifestConfig(path="table.xlsx")
    with pytest.raises(TetherError, match="did you mean 'caption'"):
        ManifestConfig(path="t.csv", columns={"captions": "text"})
    with pytest.raises(TetherError, match="Cannot read"):
        load(str(pictures / "none.csv"))
    (pictures / "latin.csv").write_bytes("path,label\np/00.png,caf\xe9\n".encode("latin-1"))
    with pytest.raises(TetherError, match="UTF-8"):
        load(str(pictures / "latin.csv"))
    (pictures / "quote.csv").write_text('path,label\np/00.png,"cat\n')
    with pytest.raises(TetherError, match=r"quote\.csv, row"):
        load(str(pictures / "quote.csv"))
    with pytest.raises(TetherError, match="has no rows"):
        load(write(pictures / "empty.csv", ["path", "label"], []))


def test_a_cell_may_hold_a_line_break_and_the_file_a_byte_order_mark(tmp_path):
    (tmp_path / "t.csv").write_bytes(b'\xef\xbb\xbfpath,caption\r\na.png,"two\nlines"\r\n\r\nb.png,x\r\n')
    header, rows = read_table(tmp_path / "t.csv")
    assert header == ["path", "caption"]
    assert [row for _, row in rows] == [["a.png", "two\nlines"], ["b.png", "x"]]


def test_parts_that_the_split_column_does_not_give_are_cut_from_the_training_rows(pictures):
    path = table(pictures, split=lambda n: "train" if n < 30 else "test")
    benchmark = load(path)
    assert (len(benchmark.train), len(benchmark.validation)) == (26, 4)
    assert numbers(benchmark.tests["in-distribution"]) == list(range(30, 40))
    whole = load(path, validation_share=0.0)
    assert numbers(whole.train) == list(range(30)) and not len(whole.validation)

    path = table(
        pictures,
        split=lambda n: "test" if n >= 30 else "train",
        domain=lambda n: "sketch" if n >= 30 else "photo",
    )
    benchmark = load(path)
    sizes = [len(split) for split in (benchmark.train, benchmark.validation, *benchmark.tests.values())]
    assert sizes == [20, 4, 6, 10] and benchmark.in_distribution == "photo"


@pytest.mark.parametrize("split", [False, True])
def test_extra_classes_of_a_shifted_domain_are_left_out_where_that_is_asked_for(pictures, split):
    def name(n):  # "ape" comes first among the classes, and only drawings have it
        return "ape" if n >= 35 else ("cat", "sea_lion")[n % 2]

    rows = [
        [
            f"p/{n:02}.png",
            name(n),
            "drawing" if n >= 30 else "photo",
            "test" if n % 3 == 0 or n >= 30 else "train",
        ]
        for n in range(40)
    ]
    path = write(pictures / "t.csv", ["path", "label", "domain", "split" if split else "other"], rows)
    with pytest.raises(
        TetherError, match=r"1 of 3 classes have no training picture: ape.*extra_classes='leave out'"
    ):
        load(path, in_distribution="photo")
    benchmark = load(path, in_distribution="photo", extra_classes="leave out")
    assert benchmark.class_names == ("cat", "sea lion")
    assert benchmark.notes == (
        "5 pictures of 1 classes that are not trained on are left out of drawing: 'ape'.",
    )
    assert [example.label for example in benchmark.tests["drawing"].examples] == [0, 1, 0, 1, 0]


def test_fields_that_something_else_divides(pictures):
    for name, mark in (("t.csv", ";"), ("tabs.csv", "\t"), ("t.tsv", ",")):
        path = write(pictures / name, ["path", "label"], [["p/00.png", "cat"]], delimiter=mark)
        with pytest.raises(TetherError) as error:
            load(path)
        told = f"seem to be divided by {mark!r}, and those of a {path[-4:]} file are by"
        assert "has a single column, 'path" in str(error.value) and told in str(error.value)
