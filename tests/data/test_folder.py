import pytest

from tether.config import plain
from tether.data import FolderConfig, load_benchmark
from tether.errors import TetherError


@pytest.fixture
def photo(tmp_path, class_tree):
    return class_tree(tmp_path / "photo", {"hot_dog": 10, "sea  lion": 20})


def names(split):
    return [example.image.name for example in split.examples]


def test_one_folder_is_cut_by_class(photo):
    benchmark = load_benchmark(FolderConfig(train=str(photo), domain="photo", templates="food"))
    assert benchmark.class_names == ("hot dog", "sea lion")
    assert benchmark.templates == ("a photo of {}, a type of food.",)
    parts = (benchmark.train, benchmark.validation, benchmark.tests["photo"])
    assert [[names_of_class(part, folder) for folder in ("hot_dog", "sea  lion")] for part in parts] == [
        [7, 14],
        [1, 2],
        [2, 4],
    ]
    assert benchmark.in_distribution == "photo" and benchmark.name == "photo"


def names_of_class(split, folder):
    return sum(name.startswith(f"{folder}/") for name in names(split))


def test_the_cut_follows_the_seed_and_not_the_place(photo, tmp_path):
    first = load_benchmark(FolderConfig(train=str(photo)))
    other_seed = load_benchmark(FolderConfig(train=str(photo), seed=1))
    photo.rename(tmp_path / "moved")
    moved = load_benchmark(FolderConfig(train=str(tmp_path / "moved")))
    assert (first.train.digest, first.validation.digest) == (moved.train.digest, moved.validation.digest)
    assert names(first.train) != names(other_seed.train)


def test_given_folders_are_used_whole(photo, tmp_path, class_tree):
    class_tree(tmp_path / "val", {"hot_dog": 3, "sea  lion": 3}, start=100)
    class_tree(tmp_path / "test", {"hot_dog": 4}, start=200)
    class_tree(tmp_path / "sketch", {"sea  lion": 5}, start=300)
    benchmark = load_benchmark(
        FolderConfig(
            train=str(photo),
            validation=str(tmp_path / "val"),
            test=str(tmp_path / "test"),
            shifted={"sketch": str(tmp_path / "sketch")},
            domain="photo",
        )
    )
    sizes = [len(split) for split in (benchmark.train, benchmark.validation, *benchmark.tests.values())]
    assert sizes == [30, 6, 4, 5]
    assert benchmark.tests["sketch"].labels == {1} and benchmark.tests["sketch"].domain == "sketch"


@pytest.mark.parametrize("domain", ["train", "validation", "test"])
def test_a_shifted_domain_may_have_the_name_of_another_split(photo, tmp_path, class_tree, domain):
    roots = [str(class_tree(tmp_path / name, {"hot_dog": 3, "sea  lion": 3})) for name in ("v", "t", "s")]
    config = FolderConfig(train=str(photo), validation=roots[0], test=roots[1], shifted={domain: roots[2]})
    assert len(load_benchmark(config).tests[domain]) == 6
    with pytest.raises(
        TetherError, match="in the training split and in the test"
    ):  # the same pictures still are not
        load_benchmark(FolderConfig(train=str(photo), shifted={domain: str(photo)}))


def test_testing_on_the_training_folder_is_refused(photo):
    with pytest.raises(TetherError, match="in the training split and in the test"):
        load_benchmark(FolderConfig(train=str(photo), test=str(photo)))
    with pytest.raises(TetherError, match="another name"):
        FolderConfig(train=str(photo), domain="photo", shifted={"photo": "x"})


def test_class_names_from_a_file(photo, tmp_path):
    for name, text in (
        ("a.json", '{"hot_dog": "frankfurter", "sea  lion": "seal"}'),
        ("a.tsv", "hot_dog\tfrankfurter\n\nsea  lion\tseal\n"),
    ):
        (tmp_path / name).write_text(text)
        config = FolderConfig(train=str(photo), class_names=str(tmp_path / name))
        assert load_benchmark(config).class_names == ("frankfurter", "seal")
    for name, text, message in (
        ("b.json", '{"hotdog": "frankfurter", "sea  lion": "seal"}', "did you mean 'hotdog'"),
        ("c.json", '["frankfurter"]', "not an object"),
        ("d.json", '{"hot_dog": "fr', "Cannot read class names"),
        ("e.tsv", "hot_dog frankfurter", "no name after a tab"),
        ("f.tsv", "hot_dog\tseal\nsea  lion\tseal", "same name: seal"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(TetherError, match=message):
            load_benchmark(FolderConfig(train=str(photo), class_names=str(tmp_path / name)))
    with pytest.raises(TetherError, match="Cannot read class names"):
        load_benchmark(FolderConfig(train=str(photo), class_names=str(tmp_path / "none.json")))


def test_folders_that_do_not_fit(photo, tmp_path, class_tree, noise):
    with pytest.raises(TetherError, match="Cannot list"):
        load_benchmark(FolderConfig(train=str(tmp_path / "none")))
    class_tree(tmp_path / "sketch", {"hotdog": 1})
    with pytest.raises(TetherError, match="'hotdog' that is no class; did you mean 'hot_dog'"):
        load_benchmark(FolderConfig(train=str(photo), shifted={"sketch": str(tmp_path / "sketch")}))
    (tmp_path / "bare").mkdir()
    with pytest.raises(TetherError, match="one folder per class"):
        load_benchmark(FolderConfig(train=str(tmp_path / "bare")))
    (tmp_path / "bare/cat").mkdir()
    with pytest.raises(TetherError, match="no pictures in them"):
        load_benchmark(FolderConfig(train=str(tmp_path / "bare")))
    (photo / "empty").mkdir()
    with pytest.raises(
        TetherError, match=r"1 of 3 class folders in .*, such as 'empty'\. Add pictures \(\.avif"
    ):
        load_benchmark(FolderConfig(train=str(photo)))
    (photo / "empty").rmdir()
    class_tree(tmp_path / "drawn", {"hot_dog": 1, "sea  lion": 0})
    with pytest.raises(TetherError, match=r"1 of 2 class folders .*'sea  lion'"):
        load_benchmark(FolderConfig(train=str(photo), shifted={"drawn": str(tmp_path / "drawn")}))
    noise().save(photo / "loose.png")
    with pytest.raises(TetherError, match=r"outside any class folder, such as 'loose\.png'"):
        load_benchmark(FolderConfig(train=str(photo)))


def test_a_linked_class_folder_is_followed(photo, tmp_path):
    (tmp_path / "links").mkdir()
    for folder in ("hot_dog", "sea  lion"):
        (tmp_path / "links" / folder).symlink_to(photo / folder)
    assert len(load_benchmark(FolderConfig(train=str(tmp_path / "links"))).train) == 21


def test_an_unknown_configuration():
    with pytest.raises(TetherError, match="Expected one of"):
        load_benchmark({"train": "x"})


def test_impossible_shares(photo):
    with pytest.raises(TetherError, match="leave something to train on"):
        load_benchmark(FolderConfig(train=str(photo), test_share=0.6, validation_share=0.4))


def test_names_that_are_not_utf_8_are_refused_with_what_to_do(tmp_path, class_tree):
    root = class_tree(tmp_path / "photo", {"hot_dog": 4, "caf\udce9": 4})
    with pytest.raises(TetherError, match=r"'caf\\udce9/.*not UTF-8.*Rename"):
        load_benchmark(FolderConfig(train=str(root)))


def test_extra_classes_of_a_shifted_domain_are_left_out_where_that_is_asked_for(photo, tmp_path, class_tree):
    root = class_tree(tmp_path / "sketch", {"hot_dog": 3, "walrus": 2, "zebra": 4})
    config = {"train": str(photo), "shifted": {"sketch": str(root)}}
    with pytest.raises(
        TetherError, match=r"'walrus' that is no class[^.]*\. Or pass over such folders: extra_classes="
    ):
        load_benchmark(FolderConfig(**config))
    benchmark = load_benchmark(FolderConfig(**config, extra_classes="leave out"))
    assert len(benchmark.tests["sketch"]) == 3 and benchmark.class_names == ("hot dog", "sea lion")
    assert benchmark.notes == (
        "6 pictures of 2 classes that are not trained on are left out of sketch: 'walrus', 'zebra'.",
    )
    with pytest.raises(TetherError, match="'walrus' that is no class"):  # only of shifted domains
        load_benchmark(FolderConfig(train=str(photo), test=str(root), extra_classes="leave out"))
    others = class_tree(tmp_path / "others", {"walrus": 2})
    with pytest.raises(TetherError, match="but none of a class that is trained on"):
        load_benchmark(FolderConfig(train=str(photo), shifted={"o": str(others)}, extra_classes="leave out"))


def test_an_option_that_came_later_is_not_said_at_its_default():
    """So the configuration of a run that was made before is still the same."""
    assert "extra_classes" not in plain(FolderConfig(train="x"))
    assert plain(FolderConfig(train="x", extra_classes="leave out"))["extra_classes"] == "leave out"


def test_a_single_class_is_refused(tmp_path, class_tree):
    with pytest.raises(TetherError, match="only the class 'hot dog'; there is nothing to tell apart"):
        load_benchmark(FolderConfig(train=str(class_tree(tmp_path / "one", {"hot_dog": 9}))))


def test_a_choice_for_extra_classes_that_does_not_exist(unchecked):
    with pytest.raises(TetherError, match="extra_classes is 'leave'; did you mean 'leave out'"):
        FolderConfig(train="x", extra_classes="leave")
