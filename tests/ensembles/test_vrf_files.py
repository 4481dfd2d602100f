import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tether.ensembles.vrf.files
from tether.ensembles.vrf.files import load_vrf, save_vrf
from tether.ensembles.vrf.method import VRF, Views, VRFConfig
from tether.errors import TetherError


def fitted(seed=0):
    failures = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed))
    config = VRFConfig(share=0.4, squared=False)
    return VRF(config, failures, training_size=40, a=0.9, b=0.3, temperatures=(1.7, 0.2))


def views():
    random = torch.Generator().manual_seed(3)
    return Views(*(torch.randn(4, n, generator=random) for n in (3, 3, 5)))


def test_what_was_saved_is_what_is_loaded_bit_for_bit(tmp_path):
    vrf = fitted()
    save_vrf(tmp_path, vrf, fingerprint="f")
    again = load_vrf(tmp_path, fingerprint="f")
    assert torch.equal(again(views()), vrf(views()))
    assert (again.config, again.training_size, again.neighbours) == (vrf.config, 40, 2)


def test_no_failures_can_be_saved_too(tmp_path):
    save_vrf(tmp_path, VRF(VRFConfig(), torch.zeros(0, 5), training_size=4, a=1.0, b=1.0), fingerprint="f")
    assert load_vrf(tmp_path, fingerprint="f").failures.shape == (0, 5)


def test_saving_again_replaces_the_pair(tmp_path):
    save_vrf(tmp_path, fitted(), fingerprint="f")
    save_vrf(tmp_path, fitted(1), fingerprint="g")
    assert torch.equal(load_vrf(tmp_path, fingerprint="g").failures, fitted(1).failures)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_crash_between_the_files_leaves_the_old_pair_in_force(tmp_path, monkeypatch):
    save_vrf(tmp_path, fitted(), fingerprint="f")

    def crash(*_):
        raise KeyboardInterrupt("between the files")

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="between the files"):
        patch.setattr(tether.ensembles.vrf.files, "write_json", crash)
        save_vrf(tmp_path, fitted(1), fingerprint="g")
    assert torch.equal(load_vrf(tmp_path, fingerprint="f").failures, fitted().failures)


def test_other_weights_are_refused(tmp_path):
    save_vrf(tmp_path, fitted(), fingerprint="f")
    with pytest.raises(TetherError, match="fingerprint f; this one has g"):
        load_vrf(tmp_path, fingerprint="g")


def _cut(folder: Path):
    path = next(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-3])


def _change(**changes):
    def change(folder: Path):
        path = folder / "vrf.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (_cut, "damaged"),
        (lambda folder: next(folder.glob("*.safetensors")).unlink(), "damaged: it is missing"),
        (lambda folder: (folder / "vrf.json").unlink(), "no file"),
        (lambda folder: (folder / "vrf.json").write_text("{"), "cut short"),
        (lambda folder: (folder / "vrf.json").write_text("[]"), "not a VRF"),
        (_change(format="other"), "not a VRF"),
        (_change(failures={"file": "../vrf.safetensors", "sha256": ""}), "outside"),
        (_change(config={"sqared": True}), "sqared"),
        (_change(failures={}), "lacks"),
    ],
)
def test_each_kind_of_damage_is_told(tmp_path, harm, complaint):
    save_vrf(tmp_path, fitted(), fingerprint="f")
    harm(tmp_path)
    with pytest.raises(TetherError, match=complaint):
        load_vrf(tmp_path, fingerprint="f")


class Exported(nn.Module):
    def __init__(self, vrf):
        super().__init__()
        torch.manual_seed(0)
        self.zero_shot, self.encode, self.head, self.vrf = (
            nn.Linear(7, 3),
            nn.Linear(7, 5),
            nn.Linear(5, 3),
            vrf,
        )

    def forward(self, pixels):
        features = F.normalize(self.encode(pixels), dim=-1)
        return self.vrf(Views(self.zero_shot(pixels), self.head(features), features))


def test_it_exports_inside_a_model_with_its_failure_set():
    model, pixels = Exported(fitted()).eval(), torch.randn(4, 7)
    program = torch.export.export(model, (pixels,))
    torch.testing.assert_close(program.module()(pixels), model(pixels))
    assert "vrf.failures" in program.state_dict
