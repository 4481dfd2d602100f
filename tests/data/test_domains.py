"""A shifted domain with classes or prompts of its own, in folders and in tables."""

import csv

import pytest

from tether.config import plain
from tether.data import DomainConfig, FolderConfig, ManifestConfig, load_benchmark
from tether.errors import TetherError


@pytest.fixture
def roots(tmp_path, class_tree):
    """Cats and dogs to train on, drawn cats alone, and birds of two kinds."""
    return {
        "photo": str(class_tree(tmp_path / "photo", {"cat": 10, "dog": 10})),
        "sketch": str(class_tree(tmp_path / "sketch", {"cat": 3}, start=100)),
        "birds": str(class_tree(tmp_path / "birds", {"grey_owl": 2, "wren": 4}, start=200)),
    }


@pytest.fixture
def folder(roots):
    """`folder(birds={...})`: the benchmark of these folders with rules for domains."""

    def load(**domains):
        shifted = {name: roots[name] for name in ("sketch", "birds") if name != "birds" or "birds" in domains}
        rules = {name: DomainConfig(**options) for name, options in domains.items()}
        return load_benchmark(FolderConfig(train=roots["photo"], shifted=shifted, domains=rules))

    return load


@pytest.fixture
def table(roots, tmp_path):
    """The same as a table; `table(birds={...})` is its benchmark."""
    rows = [
        (str(path.relative_to(tmp_path)), path.parent.name, path.parts[-3])
        for path in sorted(tmp_path.glob("*/*/*.png"))
    ]

    def load(**domains):
        with open(tmp_path / "table.csv", "w", newline="") as file:
            there = [row for row in rows if row[2] != "birds" or "birds" in domains]
            csv.writer(file).writerows([("path", "label", "domain"), *there])
        rules = {name: DomainConfig(**options) for name, options in domains.items()}
        path = str(tmp_path / "table.csv")
        return load_benchmark(ManifestConfig(path=path, in_distribution="photo", domains=rules))

    return load


@pytest.fixture(params=["folder", "table"])
def load(request):
    return request.getfixturevalue(request.param)


def test_a_domain_may_have_classes_and_prompts_of_its_own(load):
    benchmark = load(birds={"classes": "own", "templates": "a photo of a {}, a bird."})
    assert benchmark.class_names == ("cat", "dog") and benchmark.tests["sketch"].class_names is None
    birds = benchmark.tests["birds"]
    assert birds.class_names == benchmark.class_names_of(birds) == ("grey owl", "wren")
    assert birds.templates == benchmark.templates_of(birds) == ("a photo of a {}, a bird.",)
    labels = [(example.image.name.split("/")[-2], example.label) for example in birds.examples]
    assert labels == [("grey_owl", 0)] * 2 + [("wren", 1)] * 4
    assert birds.convention == (
        "scored over 2 classes of its own, by prompts of its own: 'a photo of a {}, a bird.'"
    )
    assert birds.has_other_classes and not benchmark.tests["sketch"].has_other_classes


def test_only_the_classes_that_it_has_may_compete(load):
    sketch = load(sketch={"classes": "present"}).tests["sketch"]
    assert sketch.class_mask == (0,) and sketch.convention == "masked: scored over its 1 classes"
    assert load().tests["sketch"].class_mask is None


def test_names_of_its_own_classes_from_a_file(load, tmp_path):
    (tmp_path / "birds.tsv").write_text("wren\tEurasian wren\ngrey_owl\tgreat grey owl\n")
    birds = load(birds={"classes": "own", "class_names": str(tmp_path / "birds.tsv")}).tests["birds"]
    names = {"wren": "Eurasian wren", "grey_owl": "great grey owl"}
    assert set(birds.class_names) == set(names.values())
    for example in birds.examples:
        assert birds.class_names[example.label] == names[example.image.name.split("/")[-2]]
    (tmp_path / "birds.tsv").write_text("wren\tbird\ngrey_owl\tbird\n")
    with pytest.raises(TetherError, match="same name: bird"):
        load(birds={"classes": "own", "class_names": str(tmp_path / "birds.tsv")})


def test_prompts_and_classes_of_its_own_are_in_the_hash(folder):
    plainly = folder().tests["sketch"].digest
    assert folder(sketch={}).tests["sketch"].digest == plainly
    changed = [
        folder(sketch={"templates": "a sketch of a {}."}).tests["sketch"].digest,
        folder(sketch={"templates": ["a sketch of a {}.", "{}"]}).tests["sketch"].digest,
        folder(sketch={"classes": "present"}).tests["sketch"].digest,
    ]
    assert len({plainly, *changed}) == 4


def test_classes_of_another_domain_do_not_count_as_extra_ones(table, tmp_path):
    path = str(tmp_path / "table.csv")
    table(birds={"classes": "own"})
    config = ManifestConfig(
        path=path,
        in_distribution="photo",
        extra_classes="leave out",
        domains={"birds": DomainConfig(classes="own")},
    )
    benchmark = load_benchmark(config)
    assert len(benchmark.tests["birds"]) == 6 and benchmark.notes == ()


def test_what_makes_no_sense_is_refused(load, roots, unchecked):
    for domains, message in (
        ({"skech": {}}, r"no shifted domain 'skech'; did you mean 'sketch'"),
        ({"sketch": {"classes": "own"}}, "only the class 'cat' of its own"),
    ):
        with pytest.raises(TetherError, match=message):
            load(**domains)
    for options, message in (
        ({"classes": "owns"}, "classes of a domain are 'owns'; did you mean 'own'"),
        ({"class_names": "birds.tsv"}, "names of its own classes"),
        ({"templates": "phto"}, "no template set 'phto'; did you mean 'photo'"),
    ):
        with pytest.raises(TetherError, match=message):
            DomainConfig(**options)
    with pytest.raises(TetherError, match=r"domains\.in-distribution: the in-distribution domain has"):
        FolderConfig(train=roots["photo"], domains={"in-distribution": DomainConfig()})


def test_numbers_are_no_names_of_classes(tmp_path, noise):
    rows = [(f"{n}.png", n % 2, "digits") for n in range(4)] + [
        (f"{n}.png", ("cat", "dog")[n % 2], "photo") for n in range(4, 24)
    ]
    for n in range(24):
        noise(n).save(tmp_path / f"{n}.png")
    with open(tmp_path / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "domain"), *rows])
    rules = {"digits": DomainConfig(classes="own")}
    with pytest.raises(TetherError, match=r"give `domains\.digits\.class_names`"):
        load_benchmark(ManifestConfig(path=str(tmp_path / "t.csv"), in_distribution="photo", domains=rules))


def test_rules_of_domains_are_said_only_where_there_are_some():
    assert "domains" not in plain(FolderConfig(train="x"))
    rules = {"birds": DomainConfig(classes="own")}
    assert plain(FolderConfig(train="x", shifted={"birds": "y"}, domains=rules))["domains"]["birds"] == {
        "classes": "own",
        "class_names": None,
        "templates": None,
    }
