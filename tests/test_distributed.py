"""Two processes do what one does: losses, gradients, trained weights, stops."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tether._distributed import average_gradients, from_main, gather, gather_with_grad, joined, world_size
from tether.training.checkpoint import latest_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    script = Path(__file__).with_name("two_processes.py")
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        env={**environment, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def found(folder, name):
    """What the single process, the first of two and the second of two found."""
    return [load_file(folder / f"{name}-{who}.safetensors") for who in ("1-0", "2-0", "2-1")]


def text(tensor):
    return bytes(tensor.tolist()).decode()


@pytest.mark.parametrize(
    "name",
    [
        "contrastive",
        "each_its_own_loss",
        "rows_of_the_global_loss",
        "info_nce_with_distinct_texts",
        "second_half_without_gradient",
    ],
)
def test_loss_and_gradients_are_those_of_one_process(folder, name):
    single, first, second = found(folder, name)
    assert single["image.weight"].abs().max() > 1e-3
    for both in (first, second):
        torch.testing.assert_close(both, single, rtol=1e-9, atol=1e-12)


def test_trained_weights_are_those_of_one_process(folder):
    single, first, second = found(folder, "trained")
    for name in first:
        assert torch.equal(first[name], second[name])
    torch.testing.assert_close(first, single, rtol=1e-6, atol=1e-9)


def test_a_signal_to_one_process_stops_both_after_the_same_step(folder):
    for answer in found(folder, "stopped"):
        assert int(answer["code"]) == 143
        assert text(answer["message"]) == "Stopped by SIGTERM after step 5"


def test_what_two_processes_began_one_can_finish(folder):
    single = load_file(folder / "trained-1-0.safetensors")
    torch.testing.assert_close(load_file(folder / "continued-1-0.safetensors"), single, rtol=1e-6, atol=1e-9)


def test_a_nan_in_one_process_stops_both(folder):
    for answer in found(folder, "bad"):
        assert text(answer["message"]) == "The loss of step 5 (epoch 2) is not finite"


def test_both_use_one_run_directory_that_the_first_writes(folder):
    assert [path.name for path in folder.glob("trained-by-2-*")] == ["trained-by-2-001"]
    assert latest_checkpoint(folder / "trained-by-2-001" / "checkpoints").name == "step-00000009"
    assert len((folder / "trained-by-2-001" / "metrics.jsonl").read_text().splitlines()) == 3


def test_shares_that_are_not_equal_are_refused(folder):
    single, first, second = found(folder, "odd")
    assert text(single["message"]) == "trained"
    assert "A batch of 1 examples cannot be shared equally by 2 processes" in text(first["message"])
    assert text(first["message"]) == text(second["message"])


def test_gather_and_what_only_the_first_computes(folder):
    for answer in found(folder, "helpers"):
        assert answer["gathered"].tolist() == [0, 1, 2, 3, 4, 5]
        assert answer["broadcast"].tolist() == [1, 2, 0]
        assert text(answer["refused"]) == "only the first looked"


def test_alone_nothing_is_gathered():
    with joined() as device:
        assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")
        x = torch.ones(2, 3, requires_grad=True)
        assert world_size() == 1 and gather_with_grad(x) is x and gather(x) is x
        assert from_main(lambda: {1: 2}) == {1: 2}


def test_a_missing_gradient_is_zero():
    given, missing = torch.ones(2), torch.ones(3)
    given.grad = torch.ones(2)
    extras = average_gradients([given, missing], torch.tensor([5.0]))
    assert given.grad.tolist() == [1, 1] and missing.grad.tolist() == [0, 0, 0] and extras.tolist() == [5]
