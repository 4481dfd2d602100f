"""Batches read ahead are those read in turn; errors, Ctrl-C and an early end leave nothing behind."""

import os
import signal
import threading

import pytest
import torch

from tether.data.dataset import ImageDataset
from tether.data.transforms import test_transform as plain_transform
from tether.errors import TetherError
from tether.evaluation.classification import evaluate
from tether.evaluation.classifier import zero_shot_classifier
from tether.evaluation.reading import read_ahead

from .tiny import NAMES, TEMPLATES


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("tether-reader")]


class Numbers(torch.utils.data.Dataset):
    """Items 0, 1, …; tells when a number was read."""

    def __init__(self, count=20, broken=()):
        self.was_read = [threading.Event() for _ in range(count)]
        self.broken = broken

    def __getitem__(self, index):
        if index in self.broken:
            raise TetherError(f"Cannot read the picture {index}.png: it is empty.")
        self.was_read[index].set()
        return {"pixels": torch.tensor([float(index)]), "index": index}


def test_the_next_batch_is_read_before_it_is_asked_for():
    data = Numbers()
    batches = read_ahead(data, range(20), batch_size=2)
    assert next(batches)["index"].tolist() == [0, 1]
    assert data.was_read[3].wait(20)  # nobody has asked for the second batch yet
    assert not data.was_read[10].is_set()  # but not everything is read at once
    assert [batch["index"].tolist() for batch in batches] == [[i, i + 1] for i in range(2, 20, 2)]
    assert not readers()


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_read_ahead_are_those_read_one_by_one_and_no_random_stream_moves(model, make_split, workers):
    data = ImageDataset(make_split("plain", 23), plain_transform(model.image), seed=3)
    expected = [data[index] for index in range(23)]
    torch.manual_seed(7)
    before = torch.get_rng_state()
    batches = list(read_ahead(data, range(23), batch_size=5, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)
    assert [len(batch["index"]) for batch in batches] == [5, 5, 5, 5, 3]
    for name in ("pixels", "text_pick", "label"):
        found = torch.cat([batch[name] for batch in batches])
        assert torch.equal(found, torch.stack([torch.as_tensor(item[name]) for item in expected])), name


def test_scores_do_not_depend_on_where_pictures_are_read(model, make_split):
    splits = {"plain": make_split("plain", 23)}
    classifier = zero_shot_classifier(model, NAMES, TEMPLATES)
    alone, shared = (
        evaluate(model, splits, classifier, batch_size=4, workers=workers)["plain"] for workers in (0, 1)
    )
    assert torch.equal(alone.confidences, shared.confidences)
    assert torch.equal(alone.predictions, shared.predictions)


def test_an_error_names_the_picture_when_its_turn_comes():
    batches = read_ahead(Numbers(broken=(5,)), range(20), batch_size=2)
    assert [next(batches)["index"].tolist() for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(TetherError, match=r"^Cannot read the picture 5\.png: it is empty\.$"):
        next(batches)
    assert not readers()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_in_an_evaluation_is_named(model, make_split, tmp_path, workers):
    split = make_split("plain", 9)
    (tmp_path / "plain" / "6.png").write_bytes(b"")
    with pytest.raises(TetherError, match=r"^Cannot read the picture .*6\.png: the file is empty\.$"):
        evaluate(
            model,
            {"plain": split},
            zero_shot_classifier(model, NAMES, TEMPLATES),
            batch_size=2,
            workers=workers,
        )
    assert not readers()


def test_who_leaves_early_waits_for_no_more_than_the_picture_in_hand():
    data = Numbers()
    batches = read_ahead(data, range(20), batch_size=2)
    next(batches)
    batches.close()
    assert not readers()
    assert not data.was_read[10].is_set()


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_the_reading():
    class Interrupting(Numbers):
        def __getitem__(self, index):
            if index == 6:
                os.kill(os.getpid(), signal.SIGINT)
            return super().__getitem__(index)

    before = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        for _ in read_ahead(Interrupting(1000), range(1000), batch_size=2):
            pass
    assert not readers()
    assert torch.equal(torch.get_rng_state(), before)
