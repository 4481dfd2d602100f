"""What is wrong with answers is listed before training starts."""

import numpy as np
import pytest

from tether.data import ImageRef
from tether.data.dense import DenseBenchmark, DenseExample, DenseSplit
from tether.data.dense_checking import problems, require_sound
from tether.data.scenes import ScenesConfig
from tether.data.targets import IGNORE, DenseTarget, Objects
from tether.errors import TetherError


class At:
    """An answer at hand."""

    def __init__(self, boxes=((1.0, 1.0, 9.0, 9.0),), labels=(0,), semantic=None, masks=None, error=""):
        self.key, self.error = "answer", error
        none = np.zeros(len(labels), bool)
        boxes = np.array(boxes, np.float32).reshape(-1, 4)
        objects = Objects(
            boxes, np.array(labels, np.int64), masks, none, none, np.ones(len(labels), np.float32)
        )
        self.target = DenseTarget(semantic, objects)

    def read(self, height, width):
        if self.error:
            raise TetherError(self.error)
        return self.target


@pytest.fixture
def benchmark(tmp_path, noise):
    def make(*targets, answers=("boxes",), **changes):
        def split(name, targets):
            examples = []
            for number, target in enumerate(targets):
                file = f"{name}{number}.png"
                noise(number, (12, 10)).save(tmp_path / file)
                examples.append(DenseExample(ImageRef(str(tmp_path), file), target))
            return DenseSplit(name, "photo", tuple(examples))

        both = At(boxes=((1, 1, 9, 9), (2, 2, 4, 4)), labels=(0, 1))
        return DenseBenchmark(
            name="tiny",
            class_names=("cat", "dog"),
            answers=answers,
            train=split("train", targets or (both,)),
            validation=split("validation", ()),
            tests={"photo": split("test", (both,))},
            in_distribution="photo",
            **changes,
        )

    return make


def test_a_sound_benchmark_has_no_problems_and_progress_is_told(benchmark):
    told = []
    assert problems(benchmark(), progress=lambda done, total: told.append((done, total))) == ()
    assert told == [(1, 2), (2, 2)]
    require_sound(benchmark())


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (At(boxes=((5, 5, 5, 9),)), "box 0 (5, 5, 5, 9) has no area"),
        (At(boxes=((5, 5, 4, 9),)), "has no area"),
        (At(boxes=((float("nan"), 5, 4, 9),)), "has no area"),
        (At(boxes=((1, 1, 15, 9),)), "stands out of the picture of 12 × 10 pixels"),
        (At(boxes=((-3, 1, 5, 9),)), "stands out"),
        (At(labels=(2,)), "it has the classes [2], but there are 2"),
        (At(masks=np.zeros((1, 10, 12), bool)), "a mask without a pixel"),
        (At(masks=np.eye(10, 12, dtype=bool)[None] & (np.arange(12) > 5)), "is not around its mask"),
        (At(semantic=np.full((10, 12), 3, np.int16)), "its mask has the classes [3]"),
        (At(semantic=np.full((10, 12), IGNORE, np.int16)), "every pixel of its mask is ignored"),
        (At(semantic=np.zeros((5, 6), np.int16)), "its mask has 6 × 5 pixels, and the picture 12 × 10"),
        (At(error="There is no mask."), "There is no mask."),
    ],
)
def test_what_is_wrong_with_a_picture_is_said(benchmark, target, expected):
    found = problems(benchmark(At(boxes=((1, 1, 9, 9),) * 2, labels=(0, 1)), target))
    assert len(found) == 1 and expected in found[0].what and found[0].severe
    assert found[0].picture.endswith("train1.png") and str(found[0]).startswith("train: ")


def test_answers_that_are_promised_and_missing_are_said(benchmark):
    found = problems(benchmark(answers=("semantic", "masks")))
    assert {problem.what for problem in found} == {
        f"it has no answer of the kind {kind!r}." for kind in ("semantic", "masks")
    }


def test_a_class_that_does_not_occur_is_severe_in_training_only(benchmark):
    (found,) = problems(benchmark(At()))
    assert found.what == "1 of 2 classes occur in no picture: 'dog'." and found.severe and not found.picture
    with pytest.raises(TetherError, match=r"tiny has 1 problems(.|\n)*'dog'"):
        require_sound(benchmark(At()))


def test_a_missing_picture_is_said(benchmark, tmp_path):
    made = benchmark()
    (tmp_path / "train0.png").unlink()
    found = [problem.what for problem in problems(made)]
    assert any("train0.png" in what for what in found)


def test_made_pictures_are_taken_to_be_right():
    config = ScenesConfig(size=64, train_pictures=3, validation_pictures=1, test_pictures=1, shifted=["line"])
    assert problems(config.load()) == ()
