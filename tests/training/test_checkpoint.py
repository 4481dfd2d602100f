"""What is saved is loaded; what is torn is passed over; a failure loses nothing."""

import json
import math
import resource
import shutil
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tether._files import sha256_file
from tether.errors import TetherError
from tether.training.checkpoint import (
    checkpoint_to_resume,
    clean,
    flatten,
    is_complete,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
    unflatten,
)

STATE = {
    "step": 3,
    "model": {"layer.weight": torch.arange(6.0).reshape(2, 3), "empty": torch.zeros(0, 4)},
    "optimizer": {"state": {0: {"step": torch.tensor(3.0)}, 1: {}}, "betas": (0.9, 0.999), "lr": 0.1 + 0.2},
    "rest": [None, True, "text", math.inf, -math.inf, [1, (2, [3])], 2**70],
}


def plain(value):
    match value:
        case torch.Tensor():
            return value.dtype, tuple(value.shape), value.contiguous().numpy().tobytes()
        case dict():
            return {key: plain(item) for key, item in value.items()}
        case list() | tuple():
            return type(value)(map(plain, value))
        case float():
            return value.hex()
    return value


def test_a_state_comes_back_as_it_was(tmp_path):
    path = save_checkpoint(tmp_path, 3, STATE)
    assert path.name == "step-00000003"
    assert plain(load_checkpoint(path)) == plain(STATE)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
tensors = st.lists(st.floats(width=32), max_size=4).map(torch.tensor)
keys = st.text(max_size=5).filter(lambda key: "/" not in key) | st.integers()
states = st.recursive(
    scalars | tensors,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=8,
)


def names_are_distinct(value):
    if isinstance(value, dict):
        return len(set(map(str, value))) == len(value) and all(map(names_are_distinct, value.values()))
    return not isinstance(value, list | tuple) or all(map(names_are_distinct, value))


@settings(deadline=None)
@given(states.filter(names_are_distinct))
def test_unflatten_is_the_inverse_of_flatten(state):
    found, structure = flatten({"": state})
    assert plain(unflatten(json.loads(json.dumps(structure)), found)) == plain({"": state})


def test_tensors_that_share_memory_and_slices_come_back(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    state = {"whole": whole, "same": whole, "row": whole[1], "column": whole[:, 1], "turned": whole.T}
    assert plain(load_checkpoint(save_checkpoint(tmp_path, 1, state))) == plain(state)


def test_two_tensors_of_one_name_are_refused():
    with pytest.raises(TetherError, match="'a/b'"):
        flatten({"a": {"b": torch.zeros(1)}, "a/b": torch.ones(1)})


def test_anything_that_would_need_a_pickle_is_refused(tmp_path):
    with pytest.raises(TetherError, match="found object at 'a/0'"):
        save_checkpoint(tmp_path, 1, {"a": [object()]})
    assert list(tmp_path.iterdir()) == []


def test_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 10, 11):
        save_checkpoint(tmp_path, step, {"step": step}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000011"]


def tear_marker(path):
    (path / "complete.json").unlink()


def tear_tensors(path):
    file = path / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(path):
    file = path / "tensors.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def empty_state(path):
    (path / "state.json").write_bytes(b"")


def empty_marker(path):
    (path / "complete.json").write_bytes(b"")


@pytest.mark.parametrize(
    "tear", [tear_marker, tear_tensors, flip_a_bit, empty_state, empty_marker, shutil.rmtree]
)
def test_a_torn_checkpoint_is_passed_over_refused_and_replaced(tmp_path, tear):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"value": torch.tensor([float(step)])})
    newest = tmp_path / "step-00000002"
    tear(newest)
    assert latest_checkpoint(tmp_path) == tmp_path / "step-00000001"
    with pytest.raises(TetherError, match="not a complete checkpoint"):
        load_checkpoint(newest)
    save_checkpoint(tmp_path, 2, {"value": torch.tensor([7.0])})
    assert load_checkpoint(latest_checkpoint(tmp_path))["value"] == 7


def test_a_torn_later_checkpoint_does_not_crowd_out_a_good_one(tmp_path):
    for step in (1, 5):
        save_checkpoint(tmp_path, step, {"step": step})
    tear_marker(tmp_path / "step-00000005")
    save_checkpoint(tmp_path, 2, {"step": 2}, keep=1)
    assert load_checkpoint(latest_checkpoint(tmp_path)) == {"step": 2}


def test_without_a_checkpoint_there_is_no_latest(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "nothing") is None


def test_leftovers_of_a_killed_process_are_cleaned(tmp_path):
    good = save_checkpoint(tmp_path, 1, {"step": 1})
    (tmp_path / ".step-00000002.123.tmp").mkdir()
    (tmp_path / ".step-00000002.123.tmp" / "state.json").write_text("{")
    (tmp_path / ".metrics.jsonl.5.tmp").write_text("")
    clean(tmp_path)
    assert list(tmp_path.iterdir()) == [good] and is_complete(good)


@contextmanager
def files_of_at_most(size):
    """Let every write beyond `size` bytes of a file fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 100, 5000])
def test_a_full_disk_leaves_the_earlier_checkpoint_and_nothing_else(tmp_path, room):
    state = {"value": torch.zeros(5000)}
    good = save_checkpoint(tmp_path, 1, state)
    with files_of_at_most(room), pytest.raises(TetherError, match="Could not write"):
        save_checkpoint(tmp_path, 2, state)
    assert list(tmp_path.iterdir()) == [good]
    assert latest_checkpoint(tmp_path) == good


def test_training_goes_on_when_a_save_fails_and_says_so(toy, run, capsys):
    from tether.training import FitConfig, fit

    parts = toy.parts(12)
    large = {"padding": torch.zeros(5000)}
    original = parts["task"].state_dict
    parts["task"].state_dict = lambda: {**original(), **large}
    config = FitConfig(steps=12, batch_size=8, checkpoint_every=5)

    def one_bad_hour(step, batch):
        limit = 5000 if 7 <= step < 11 else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    parts["task"].begin_step = one_bad_hour
    fit(data=toy.ToyData(), config=config, run=run, **parts)
    names = sorted(path.name for path in run.checkpoints.iterdir())
    assert names == ["step-00000005", "step-00000012"]
    said = " ".join(capsys.readouterr().err.split())
    assert "Could not write" in said and "Training goes on." in said


def test_a_last_save_that_fails_is_an_error_and_earlier_ones_stay(toy, run):
    from tether.training import FitConfig, fit

    parts = toy.parts(12)
    original = parts["task"].state_dict
    parts["task"].state_dict = lambda: {**original(), "padding": torch.zeros(100_000)}
    config = FitConfig(steps=12, batch_size=8, checkpoint_every=100)
    with files_of_at_most(100_000), pytest.raises(TetherError, match="Could not write"):
        fit(data=toy.ToyData(), config=config, run=run, show_progress=False, **parts)
    assert list(run.checkpoints.iterdir()) == []


def deep_marker(path):
    (path / "complete.json").write_text("[" * 100_000 + "]" * 100_000)


def marker_of_another_form(path):
    (path / "complete.json").write_text('[{"sha256": 1}]')


def deep_state(path):
    put(path, "[" * 100_000 + "]" * 100_000)


def state_that_parses_and_cannot_be_walked(path):
    put(path, "[" * 5_000 + "]" * 5_000)


def state_with_a_tensor_that_is_not_there(path):
    put(path, '{"value": {"$tensor": "another"}}')


def put(path, state):
    """Another state, with the hash that belongs to it."""
    (path / "state.json").write_text(state)
    marker = json.loads((path / "complete.json").read_text())
    marker["sha256"]["state.json"] = sha256_file(path / "state.json")
    (path / "complete.json").write_text(json.dumps(marker))


@pytest.mark.parametrize(
    "spoil",
    [
        deep_marker,
        marker_of_another_form,
        deep_state,
        state_that_parses_and_cannot_be_walked,
        state_with_a_tensor_that_is_not_there,
    ],
)
def test_a_run_goes_on_from_the_older_checkpoint_where_the_newest_cannot_be_read(tmp_path, spoil):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"value": torch.tensor([float(step)])})
    spoil(tmp_path / "step-00000002")
    with pytest.warns(UserWarning, match="step-00000002 in .* damaged .* goes on from step-00000001"):
        assert checkpoint_to_resume(tmp_path) == tmp_path / "step-00000001"
