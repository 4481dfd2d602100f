"""Directories belong to one process, are never overwritten, and tell the truth."""

import json
import os
import socket

import pytest

from tether._files import read_json
from tether.errors import TetherError
from tether.training import RunDirectory, read_metrics
from tether.training.run_directory import differences


def create(root, name="run", **options):
    return RunDirectory.create(root, name, tensorboard=False, **options)


def test_every_run_gets_a_number_of_its_own(tmp_path):
    paths = []
    for _ in range(3):
        with create(tmp_path) as run:
            paths.append(run.path.name)
    (tmp_path / "run-017").mkdir()
    (tmp_path / "run-of-others").mkdir()
    with create(tmp_path) as run:
        paths.append(run.path.name)
    assert paths == ["run-001", "run-002", "run-003", "run-018"]


@pytest.mark.parametrize("name", ["", "../run", "a/b", ".hidden", "-x", "a b", "ä", "x" * 101, "a\n"])
def test_a_name_that_is_no_plain_file_name_is_refused(tmp_path, name):
    with pytest.raises(TetherError, match="A run's name has"):
        create(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_the_environment_is_recorded(tmp_path):
    with create(tmp_path) as run:
        recorded = json.loads((run.path / "environment.json").read_text())
    assert recorded["packages"]["torch"] and recorded["python"] and recorded["threads"] >= 1


def test_a_directory_in_use_is_refused_also_to_its_own_process(tmp_path):
    busy = f"in use by process {os.getpid()} on {socket.gethostname()}"
    with create(tmp_path) as run, pytest.raises(TetherError, match=busy):
        RunDirectory.open(run.path, tensorboard=False)
    RunDirectory.open(run.path, tensorboard=False).close()


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(TetherError, match="There is no run at"):
        RunDirectory.open(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_config_must_stay_what_it_was_but_for_named_entries(tmp_path):
    with create(tmp_path) as run:
        run.record("config", {"fit": {"seed": 0, "workers": 2}, "sizes": (1, 2)})
        run.record("config", {"fit": {"seed": 0, "workers": 4}, "sizes": (1, 2)}, may_change=["fit.workers"])
        assert json.loads((run.path / "config.json").read_text())["fit"]["workers"] == 4
        with pytest.raises(TetherError, match=r"fit.seed was 0 and is 1; new was 'not there' and is 5"):
            run.record("config", {"fit": {"seed": 1, "workers": 4}, "sizes": (1, 2), "new": 5})


def test_differences_names_every_entry_that_differs():
    old, new = {"a": {"b": 1, "c": [1]}, "d": 2}, {"a": {"b": 1, "c": [2]}, "e": 3}
    assert set(differences(old, new)) == {"a.c", "d", "e"}
    assert differences(old, old) == {}


def test_metrics_are_lines_of_json_and_not_finite_becomes_null(tmp_path):
    with create(tmp_path) as run:
        run.log("train", 1, {"loss": 0.5, "epoch": 0})
        run.log("train", 2, {"loss": float("nan")})
    assert read_metrics(run.path) == [
        {"kind": "train", "step": 1, "loss": 0.5, "epoch": 0},
        {"kind": "train", "step": 2, "loss": None},
    ]


def test_rewinding_drops_later_lines_and_a_torn_one(tmp_path):
    with create(tmp_path) as run:
        for step in (1, 2, 3):
            run.log("train", step, {"loss": 1.0})
        with open(run.metrics, "a") as file:
            file.write('{"kind": "train", "step": 1')
        assert len(read_metrics(run.path)) == 3
        run.rewind(2)
        run.log("train", 3, {"loss": 2.0})
    assert [(row["step"], row["loss"]) for row in read_metrics(run.path)] == [(1, 1.0), (2, 1.0), (3, 2.0)]


def test_a_full_disk_delays_metrics_and_loses_none(tmp_path):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with create(tmp_path) as run:
        run.log("train", 1, {"loss": 1.0})
        before = run.metrics.read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, hard))
        try:
            with pytest.warns(UserWarning, match="Training goes on"):
                run.log("train", 2, {"loss": 2.0})
            run.log("train", 3, {"loss": 3.0})  # says it once
            assert run.metrics.read_bytes() == before
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        run.log("train", 4, {"loss": 4.0})
    assert [row["step"] for row in read_metrics(run.path)] == [1, 2, 3, 4]


def test_opening_cleans_up_after_a_kill_and_notes_a_changed_environment(tmp_path):
    with create(tmp_path) as run:
        (run.checkpoints / ".step-00000003.77.tmp").mkdir()
        (run.path / ".metrics.jsonl.77.tmp").write_text("half")
    with RunDirectory.open(run.path, tensorboard=False):
        assert list(run.checkpoints.iterdir()) == []
        assert not (run.path / ".metrics.jsonl.77.tmp").exists()
        assert not (run.path / "environment-2.json").exists()
    recorded = json.loads((run.path / "environment.json").read_text())
    recorded["packages"]["torch"] = "1.0"
    (run.path / "environment.json").write_text(json.dumps(recorded))
    RunDirectory.open(run.path, tensorboard=False).close()
    assert (run.path / "environment-2.json").exists()


def test_tensorboard_shows_a_copy(tmp_path):
    with RunDirectory.create(tmp_path, "run") as run:
        run.log("train", 1, {"loss": 0.5})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.path / "tensorboard")).Reload()
    assert [event.value for event in events.Scalars("train/loss")] == [0.5]


def test_a_broken_tracker_does_not_stop_the_run(tmp_path):
    with RunDirectory.create(tmp_path, "run") as run:
        (run.path / "tensorboard").write_text("a file where a folder should be")
        with pytest.warns(UserWarning, match="TensorBoard failed"):
            run.log("train", 1, {"loss": 0.5})
        run.log("train", 2, {"loss": 0.4})
    assert [row["step"] for row in read_metrics(run.path)] == [1, 2]


def test_a_process_killed_while_it_makes_its_directory_leaves_none_that_lacks_what_explains_it(
    tmp_path, monkeypatch
):
    """A kill is played by an error that nothing catches, at each file that is written."""
    from tether.training import run_directory

    write, left = run_directory.write_json, []

    def killed(path, value):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        write(path, value)

    monkeypatch.setattr(run_directory, "write_json", killed)
    records = {"config": {"a": 1}, "base": {"b": 2}}
    for files in range(3):
        left[:] = range(files)
        with pytest.raises(KeyboardInterrupt):
            create(tmp_path, records=records)
        assert [path for path in tmp_path.iterdir() if not path.name.startswith(".")] == []
    left[:] = range(9)
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))  # abandoned long ago
    with create(tmp_path, records=records) as run:
        assert [read_json(run.path / f"{name}.json") for name in records] == list(records.values())
    assert list(tmp_path.iterdir()) == [run.path]


def test_a_number_that_another_process_took_meanwhile_is_passed_over(tmp_path, monkeypatch):
    from tether.training import run_directory

    with create(tmp_path) as first:
        monkeypatch.setattr(type(tmp_path), "glob", lambda self, pattern: iter(()))
        made = run_directory._make(tmp_path, first.path.name[:-4], {})
    assert made.name.endswith("-002")


def test_a_directory_that_is_only_read_is_left_as_it_is(tmp_path):
    with create(tmp_path, records={"config": {"a": 1}}) as run:
        pass
    (run.path / "lock").write_text("[]")  # nobody asks
    before = {path: path.stat().st_mtime_ns for path in (run.path, *run.path.rglob("*"))}
    with RunDirectory.open(run.path, read_only=True) as again:
        again.record("config", {"a": 1})
        with pytest.raises(TetherError, match="a was 1 and is 2"):
            again.record("config", {"a": 2})
    assert before == {path: path.stat().st_mtime_ns for path in (run.path, *run.path.rglob("*"))}


def test_a_folder_of_runs_that_is_not_named_in_utf_8_is_refused(tmp_path):
    with pytest.raises(TetherError, match=r"runs is not named in UTF-8"):
        create(tmp_path / "caf\udce9")
