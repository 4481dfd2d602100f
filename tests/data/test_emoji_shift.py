"""The built-in benchmark: whole, split by identity, and what its card says."""

from collections import Counter

import pytest

from tether._files import sha256_file
from tether.data import EmojiShiftConfig, load_benchmark, read_image
from tether.data.emoji_shift import FOLDER, _index, captioned, vendors

FOLDS = [load_benchmark(EmojiShiftConfig(fold=fold)) for fold in range(3)]


def test_every_emoji_is_tested_in_exactly_one_fold():
    for vendor in vendors():
        tested = Counter(example.image.name for fold in FOLDS for example in fold.tests[vendor].examples)
        assert set(tested.values()) == {1}
        assert len(tested) == _index()["sets"][vendor]["pictures"]


@pytest.mark.parametrize("benchmark", FOLDS, ids=lambda benchmark: benchmark.name)
def test_no_test_identity_is_in_training_or_validation(benchmark):
    seen = benchmark.train.identities | benchmark.validation.identities
    assert not benchmark.train.identities & benchmark.validation.identities
    for split in benchmark.tests.values():
        assert not seen & split.identities


@pytest.mark.parametrize("benchmark", FOLDS, ids=lambda benchmark: benchmark.name)
def test_training_and_validation_come_from_the_in_distribution_vendor(benchmark):
    assert benchmark.train.domain == benchmark.validation.domain == benchmark.in_distribution == "twemoji"
    assert len(benchmark.train.labels) == len(benchmark.class_names)
    assert len(benchmark.train) + len(benchmark.validation) + len(benchmark.tests["twemoji"]) == len(
        captioned("twemoji")
    )


def test_files_are_those_that_the_index_describes():
    for vendor, entry in _index()["sets"].items():
        assert sha256_file(FOLDER / f"{vendor}.zip") == entry["sha256"]


def test_a_picture_can_be_read():
    picture = read_image(FOLDS[0].tests["noto"].examples[0].image)
    assert picture.size == (128, 128) and picture.mode == "RGB"
