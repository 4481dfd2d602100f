"""Two gloo processes under the command line train what one process trains on the same batches."""

import pytest
import torch
from safetensors.torch import load_file

from tether._files import read_json
from tether.training import read_metrics


@pytest.fixture(scope="module", params=["classification", pytest.param("retrieval", marks=pytest.mark.slow)])
def runs(request, tether_processes, tiny_recipe, retrieval_options):
    """One run by one process and by two; two epochs, a measurement for every step, adapter drop on."""
    options = {"classification": tiny_recipe, "retrieval": {**retrieval_options, "name": "tiny"}}[
        request.param
    ]
    batches = {"classification": {"batch_size": 6}, "retrieval": {"batch_size": 8, "drop_last": True}}
    training = {"epochs": 2, "clip_norm": 1.0, "seed": 3, "log_every": 1, **batches[request.param]}
    return tether_processes("joined", {**options, "training": training})


def test_both_end_well_and_only_the_main_process_talks(runs):
    folder, report = runs
    texts = {path.name: path.read_text() for path in folder.glob("*.[eo][ru][rt]")}
    assert report["codes"] == [0, 0, 0], texts
    assert "mean of shifted" in texts["two-0.out"] and "tiny-001" in texts["two-0.err"]
    assert texts["two-1.out"] == "" and texts["two-1.err"] == ""


def test_the_losses_are_those_of_one_process(runs):
    rows = [read_metrics(runs[0] / name / "tiny-001") for name in ("one", "two")]
    one, two = ([row for row in own if row["kind"] == "train"] for own in rows)
    assert [row["step"] for row in two] == [row["step"] for row in one] == list(range(1, len(one) + 1)) != []
    for name in ("loss", "gradient_norm"):
        expected = torch.tensor([row[name] for row in one])
        torch.testing.assert_close(torch.tensor([row[name] for row in two]), expected, rtol=1e-5, atol=1e-6)
    measured = [[row for row in own if row["kind"] == "validation"] for own in rows]
    assert measured[0] == measured[1] != []


def test_the_trained_weights_and_the_test_are_those_of_one_process(runs):
    one, two = (runs[0] / name / "tiny-001" for name in ("one", "two"))
    expected, found = (load_file(run / "adapter" / "adapter.safetensors") for run in (one, two))
    assert expected.keys() == found.keys() and any(tensor.abs().max() > 0.01 for tensor in expected.values())
    for (
        name,
        tensor,
    ) in expected.items():  # up to 0.09; AdamW magnifies rounding where a gradient is near zero
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-4, msg=name)
    expected, found = (load_file(run / "scores.safetensors") for run in (one, two))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5, msg=name)
    assert read_json(two / "environment.json")["processes"] == 2
