"""Adapter folders: round trips, and every way in which a file can be wrong."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tether._files import sha256_file
from tether.adapters import (
    Adapter,
    FullConfig,
    LastBlocksConfig,
    RAdapterConfig,
    apply,
    attach,
    load_adapter,
    save_adapter,
)
from tether.adapters.files import _entry, check_head
from tether.adapters.head import Head
from tether.ensembles.accumulation import Accumulation
from tether.errors import TetherError
from tether.models.site import Select

from .earlier import as_written_before
from .models import features, open_clip_model, pixels, timm_model
from .r_adapter.test_method import assert_same, disturb, snapshot
from .test_attached import CONFIGS, EVERY_METHOD, HEADED, train, train_with_head, with_head


def saved(path, config=None, **options):
    attached = attach(open_clip_model(), config or RAdapterConfig(rank=3))
    train(attached)
    save_adapter(path, attached, **options)
    return attached


@EVERY_METHOD
@torch.no_grad()
def test_round_trip_through_a_folder(tmp_path, config):
    with torch.enable_grad():
        attached = saved(tmp_path / "a", config, alpha=0.4, extra={"seed": 3})
    adapter = load_adapter(tmp_path / "a")
    assert adapter.config == config
    assert (adapter.alpha, adapter.extra, adapter.raw) == (0.4, {"seed": 3}, None)
    assert_same(adapter.state, attached.state_dict())
    model = open_clip_model()
    again = apply(model, tmp_path / "a")
    assert not model.training
    assert all(torch.equal(a, b) for a, b in zip(features(model), features(attached.module), strict=True))
    if attached.mergeable:
        attached.merge(adapter.alpha)
        again.merge(adapter.alpha)
    assert_same(snapshot(model), snapshot(attached.module))
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == ["adapter.json", "adapter.safetensors"]


def test_the_average_is_stored_and_the_raw_weights_on_request(tmp_path):
    attached = attach(open_clip_model(), RAdapterConfig())
    average = Accumulation(attached.named_parameters(), momentum=0.9)
    disturb(attached)
    average.update()
    save_adapter(tmp_path / "a", attached, state=average.average(), keep_raw=True)
    adapter = load_adapter(tmp_path / "a")
    assert_same(adapter.state, average.average())
    assert_same(adapter.raw, attached.state_dict())
    name = next(iter(adapter.state))
    assert not torch.equal(adapter.state[name], adapter.raw[name])


def test_an_exact_average_of_products_is_stored_as_what_it_is(tmp_path):
    attached = attach(open_clip_model(), RAdapterConfig(rank=2))
    average = Accumulation(attached.products, momentum=0.9)
    disturb(attached)
    average.update()
    save_adapter(tmp_path / "a", attached, state=average.average())
    again = apply(open_clip_model(), tmp_path / "a")
    assert set(again.config.rank.values()) == {None} and again.config.scale is None
    for name, tensor in attached.delta(average.average()).items():
        assert torch.allclose(again.delta()[name], tensor)


def test_half_precision_states_its_error(tmp_path):
    attached = saved(tmp_path / "a", precision="float16")
    full = save_adapter(tmp_path / "b", attached)
    sizes = [(folder / "adapter.safetensors").stat().st_size for folder in (tmp_path / "a", full)]
    assert sizes[0] < 0.75 * sizes[1]  # the header does not shrink
    description = json.loads((tmp_path / "a" / "adapter.json").read_text())
    state, exact = load_adapter(tmp_path / "a").state, attached.state_dict()
    error = max(float((state[name] - exact[name]).abs().max()) for name in exact)
    assert description["adapter_rounding_error"]["absolute"] == pytest.approx(error)
    assert 0 < description["adapter_rounding_error"]["relative"] <= 2**-11
    assert all(tensor.dtype == torch.float32 for tensor in state.values())
    assert "adapter_rounding_error" not in json.loads((full / "adapter.json").read_text())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_what_cannot_be_stored_is_not(tmp_path, value):
    attached = attach(open_clip_model(), RAdapterConfig())
    with torch.no_grad():
        next(iter(attached.named_parameters().values()))[0, 0] = value
    with pytest.raises(TetherError, match="holds NaN or infinity"):
        save_adapter(tmp_path / "a", attached, precision="float16")
    with pytest.raises(TetherError, match="no adapter folder"):
        load_adapter(tmp_path / "a")


@HEADED
@torch.no_grad()
def test_what_was_trained_beside_the_method_is_stored_and_fits_the_base_of_any_program(tmp_path, config):
    """The base's own head was never trained: another program makes another one."""
    with torch.enable_grad():
        attached = train_with_head(with_head(seed=0), config)
    save_adapter(tmp_path / "a", attached, alpha=0.5)
    adapter = load_adapter(tmp_path / "a")
    assert_same(adapter.unfrozen, attached.unfrozen())
    model = with_head(seed=1)
    base = snapshot(model)
    again = apply(model, tmp_path / "a")
    assert torch.equal(model(pixels()), attached.module(pixels()))
    save_adapter(tmp_path / "b", again)  # what is applied and trained on is stored again
    assert_same(load_adapter(tmp_path / "b").unfrozen, adapter.unfrozen)
    save_adapter(tmp_path / "c", adapter)
    assert load_adapter(tmp_path / "c").fingerprint == adapter.fingerprint == again.fingerprint()
    attached.merge(0.5)
    again.merge(0.5)
    assert torch.equal(model(pixels()), attached.module(pixels()))
    again.detach()
    assert_same(snapshot(model), base)


def test_what_was_trained_beside_the_method_wants_the_same_head(tmp_path):
    save_adapter(tmp_path / "a", train_with_head(with_head(), RAdapterConfig()))
    for model, message in (
        (
            with_head(classes=5),
            r"head.bias was trained .* with shape \[3\], and this module has \[5\]",
        ),
        (
            timm_model(),
            "head.bias was trained beside the adapter, and this module has no parameter of that name",
        ),
    ):
        before = snapshot(model)
        with pytest.raises(TetherError, match=message):
            apply(model, tmp_path / "a")
        assert_same(snapshot(model), before)
        attach(model, RAdapterConfig())
    other = with_head()
    with torch.no_grad():
        other.blocks[0].mlp.fc1.weight[0, 0] += 1e-3
    with pytest.raises(TetherError, match="belongs to a base with fingerprint"):
        apply(other, tmp_path / "a")
    change_json(tmp_path / "a", unfrozen=3)
    with pytest.raises(TetherError, match="unfrozen takes dict"):
        load_adapter(tmp_path / "a")


@pytest.mark.parametrize("keep_raw", [False, True])
def test_nothing_is_written_where_one_of_the_parts_is_no_number(tmp_path, keep_raw):
    attached = train_with_head(with_head(), RAdapterConfig())
    state = {name: tensor.clone() for name, tensor in attached.state_dict().items()}
    with torch.no_grad():
        attached.module.head.weight[0, 0] = torch.nan
        if keep_raw:
            next(iter(attached.named_parameters().values()))[0, 0] = torch.nan
    with pytest.raises(TetherError, match="holds NaN or infinity"):
        save_adapter(tmp_path / "a", attached, state=state, keep_raw=keep_raw)
    assert not (tmp_path / "a").exists()


def test_nothing_is_overwritten_and_options_are_checked(tmp_path, unchecked):
    attached = saved(tmp_path / "a")
    with pytest.raises(TetherError, match="none is overwritten"):
        save_adapter(tmp_path / "a", attached)
    with pytest.raises(TetherError, match="did you mean 'float16'"):
        save_adapter(tmp_path / "b", attached, precision="float-16")
    with pytest.raises(TetherError, match="Missing"):
        save_adapter(tmp_path / "b", attached, state={})


def change_json(folder, **values):
    file = folder / "adapter.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def change_tensors(folder, change, describe: bool):
    """Change the file; if asked, as somebody would who also forges the JSON."""
    file = folder / "adapter.safetensors"
    tensors = change(load_file(file))
    save_file(tensors, file)
    if describe:
        described = {name: _entry(tensor) for name, tensor in tensors.items()}
        change_json(folder, adapter={"sha256": sha256_file(file), "tensors": described})


def without_first(tensors):
    return dict(list(tensors.items())[1:])


def with_another(tensors):
    return tensors | {"more": torch.zeros(2)}


def with_nan(tensors):
    name = next(iter(tensors))
    return tensors | {name: torch.full_like(tensors[name], float("nan"))}


def changed(tensors):
    name = next(iter(tensors))
    return tensors | {name: tensors[name] + 1}


@pytest.mark.parametrize(
    ("change", "describe", "message"),
    [
        (without_first, False, "adapter.safetensors is damaged: it was cut short or changed"),
        (with_another, False, "adapter.safetensors is damaged: it was cut short or changed"),
        (changed, False, "adapter.safetensors is damaged: it was cut short or changed"),
        (with_nan, True, "holds NaN or infinity, so the adapter cannot be used"),
    ],
)
def test_wrong_tensors(tmp_path, change, describe, message):
    saved(tmp_path / "a")
    change_tensors(tmp_path / "a", change, describe)
    with pytest.raises(TetherError, match=message):
        load_adapter(tmp_path / "a")


@pytest.mark.parametrize(
    ("change", "message"), [(without_first, "missing"), (with_another, "unexpected: more")]
)
def test_a_consistent_file_with_other_tensors_does_not_fit_the_model(tmp_path, change, message):
    saved(tmp_path / "a")
    change_tensors(tmp_path / "a", change, describe=True)
    model = open_clip_model()
    before = snapshot(model)
    with pytest.raises(TetherError, match=message):
        apply(model, tmp_path / "a")
    assert_same(snapshot(model), before)
    attach(model, RAdapterConfig())


@pytest.mark.parametrize("bytes_left", [0, 5, 200, -1])
def test_truncated_files(tmp_path, bytes_left):
    saved(tmp_path / "a")
    file = tmp_path / "a" / "adapter.safetensors"
    file.write_bytes(file.read_bytes()[:bytes_left])
    with pytest.raises(TetherError, match="cut short"):
        load_adapter(tmp_path / "a")


def test_a_flipped_bit_is_found(tmp_path):
    saved(tmp_path / "a")
    file = tmp_path / "a" / "adapter.safetensors"
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(data)
    with pytest.raises(TetherError, match="cut short or changed"):
        load_adapter(tmp_path / "a")


@pytest.mark.parametrize("entries", [{}, {"more": {}}])
def test_a_description_of_other_tensors_is_refused(tmp_path, entries):
    saved(tmp_path / "a")
    listed = json.loads((tmp_path / "a" / "adapter.json").read_text())["adapter"]
    first = min(listed["tensors"])
    others = {name: entry for name, entry in listed["tensors"].items() if entries or name != first}
    change_json(tmp_path / "a", adapter=listed | {"tensors": others | entries})
    with pytest.raises(
        TetherError, match=rf"{'more' if entries else first} in .* is not what adapter.json lists"
    ):
        load_adapter(tmp_path / "a")


def head():
    return Head(torch.randn(3, 12), torch.randn(3, 12))


def test_a_head_is_in_the_folder_and_comes_back(tmp_path):
    given = head()
    saved(tmp_path / "a", head=given)
    shutil.copytree(tmp_path / "a", tmp_path / "copy" / "a")  # the folder is all that there is to copy
    adapter = load_adapter(tmp_path / "copy" / "a")
    assert_same(adapter.head.tensors(), given.tensors())
    assert torch.equal(adapter.head.at(0.0), given.zero_shot)
    torch.testing.assert_close(adapter.head.at(1.0), given.weight)
    save_adapter(tmp_path / "b", adapter)
    assert_same(load_adapter(tmp_path / "b").head.tensors(), given.tensors())
    save_adapter(tmp_path / "without", replace(adapter, head=None))
    assert load_adapter(tmp_path / "without").head is None


def test_a_head_is_sealed_as_the_rest(tmp_path):
    saved(tmp_path / "a", head=head())
    save_file(head().tensors(), tmp_path / "a" / "head.safetensors")
    with pytest.raises(TetherError, match=r"head\.safetensors is damaged: it was cut short or changed"):
        load_adapter(tmp_path / "a")
    (tmp_path / "a" / "head.safetensors").unlink()
    with pytest.raises(TetherError, match=r"head\.safetensors is damaged: it is missing"):
        load_adapter(tmp_path / "a")
    with pytest.raises(TetherError, match="weight holds NaN"):
        saved(tmp_path / "b", head=replace(head(), weight=torch.full((3, 12), torch.nan)))


@pytest.mark.parametrize("inside", [True, False], ids=["as of a mean", "as of a run"])
def test_a_head_is_found_where_earlier_versions_put_it(tmp_path, inside):
    given = head()
    saved(tmp_path / "run" / "adapter", head=given)
    folder = as_written_before(tmp_path / "run" / "adapter", inside=inside)
    adapter = load_adapter(folder)
    check_head(adapter, folder)
    assert_same(adapter.head.tensors(), given.tensors())
    shutil.copytree(folder, tmp_path / "alone")
    adapter = load_adapter(tmp_path / "alone")
    assert (adapter.head is None) == (not inside)
    if not inside:
        with pytest.raises(TetherError, match=r"no head\.safetensors in it or beside it"):
            check_head(adapter, tmp_path / "alone")


def test_the_classifier_of_a_fisher_weighted_run_is_found_where_earlier_versions_put_it(tmp_path):
    given = head()
    for name, others in (("headed", True), ("contrastive", False)):
        folder = tmp_path / name / "fisher"
        saved(folder, extra={"ensemble": "fisher", "alpha": 0.5})
        save_file(given.tensors(), folder / "classifier.safetensors")
        if others:
            save_file(head().tensors(), folder.with_name("head.safetensors"))
    assert_same(load_adapter(tmp_path / "headed" / "fisher").head.tensors(), given.tensors())
    assert load_adapter(tmp_path / "contrastive" / "fisher").head is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": "other"}, "does not describe an adapter"),
        ({"format_version": 2}, "Upgrade tether"),
        ({"format_version": None}, "Upgrade tether"),
        ({"method": "r_adaptor"}, "did you mean 'r_adapter'"),
        ({"config": {"rank": 3, "dropp": 0.2}}, "did you mean 'drop'"),
        ({"config": {"rank": -3}}, "rank is None"),
        ({"config": {"drop": "0.2"}}, "config.drop takes a number"),
        ({"adapter": {"sha256": "0"}}, "lacks 'tensors'"),
        ({"adapter": 3}, "adapter takes dict"),
        ({"adapter": {"sha256": "0", "tensors": []}}, "adapter.tensors takes dict"),
        ({"raw": None}, "raw takes dict"),
        ({"method": ["full"]}, "method takes a text"),
        ({"config": [1]}, "config takes dict"),
        ({"base": "f"}, "base takes dict"),
        ({"base": {"fingerprint": 3}}, "base.fingerprint takes a text"),
        ({"base": {"fingerprint": "f", "source": 3}}, "base.source takes a text"),
        ({"base": {}}, "lacks 'fingerprint'"),
        ({"extra": 3}, "extra takes dict"),
        ({"alpha": "half"}, "alpha takes a number"),
        ({"alpha": float("nan")}, "alpha takes a finite number"),
        ({"alpha": {"picture": 0.5}}, "names the tower"),
    ],
)
def test_wrong_descriptions(tmp_path, values, message):
    saved(tmp_path / "a")
    change_json(tmp_path / "a", **values)
    with pytest.raises(TetherError, match=message):
        load_adapter(tmp_path / "a")


def test_missing_files_and_broken_json(tmp_path):
    with pytest.raises(TetherError, match="no adapter folder"):
        load_adapter(tmp_path)
    saved(tmp_path / "a", keep_raw=True)
    (tmp_path / "a" / "raw.safetensors").unlink()
    with pytest.raises(TetherError, match="is missing"):
        load_adapter(tmp_path / "a")
    file = tmp_path / "a" / "adapter.json"
    file.write_text(file.read_text()[:100])
    with pytest.raises(TetherError, match="not valid JSON"):
        load_adapter(tmp_path / "a")
    file.write_text("[1]")
    with pytest.raises(TetherError, match="does not describe"):
        load_adapter(tmp_path / "a")


def test_another_base_is_refused_and_left_alone(tmp_path):
    saved(tmp_path / "a")
    model = open_clip_model()
    with torch.no_grad():
        model.visual.proj[0, 0] += 1e-3
    before = snapshot(model)
    with pytest.raises(TetherError, match="belongs to a base with fingerprint"):
        apply(model, tmp_path / "a")
    assert_same(snapshot(model), before)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_another_architecture_is_refused_by_its_fingerprint_before_anything_is_attached(tmp_path):
    """The adapter would not fit its sites either, which would say nothing about the real fault."""
    saved(tmp_path / "a", LastBlocksConfig(blocks=2))
    small = open_clip_model(layers=1)
    with pytest.raises(TetherError, match=r"belongs to a base with fingerprint.*--model"):
        apply(small, tmp_path / "a")
    attach(small, RAdapterConfig())
    with pytest.raises(TetherError, match="something attached already"):
        apply(small, tmp_path / "a")


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), {"image": float("nan"), "text": 1.0}, "half"])
def test_an_alpha_that_is_no_number_is_neither_saved_nor_merged(tmp_path, alpha, unchecked):
    attached = attach(open_clip_model(), RAdapterConfig())
    with pytest.raises(TetherError, match="alpha is a finite number"):
        save_adapter(tmp_path / "a", attached, alpha=alpha)
    assert not (tmp_path / "a").exists()
    with pytest.raises(TetherError, match="alpha is a finite number"):
        attached.merge(alpha)
    attached.merge(1.5)  # an extrapolation, on purpose


def test_a_full_disk_leaves_no_adapter(tmp_path, monkeypatch):
    attached = attach(open_clip_model(), RAdapterConfig())

    def full(*arguments):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("tether._files.save_file", full)
    with pytest.raises(TetherError, match="No space left on device"):
        save_adapter(tmp_path / "a", attached)
    assert not list((tmp_path / "a").iterdir())


@pytest.mark.parametrize(
    "config",
    [
        *CONFIGS.values(),
        RAdapterConfig(
            rank={"image": 4, "text": None}, select=Select(depths=(-1, -1), kinds=("mlp",), tower="text")
        ),
        FullConfig(exclude=("visual.*", "ln_final")),
        LastBlocksConfig(blocks=2),
    ],
)
def test_configs_survive_json(tmp_path, config):
    save_adapter(tmp_path / "a", Adapter(config, {}, "f"))
    assert load_adapter(tmp_path / "a").config == config


def test_an_adapter_without_a_model_is_stored_too(tmp_path):
    saved(tmp_path / "a", alpha={"image": 0.3, "text": 1.0})
    adapter = load_adapter(tmp_path / "a")
    save_adapter(tmp_path / "b", adapter)
    again = load_adapter(tmp_path / "b")
    assert isinstance(again, Adapter)
    assert (again.alpha, again.fingerprint, again.config) == (
        adapter.alpha,
        adapter.fingerprint,
        adapter.config,
    )
    assert_same(again.state, adapter.state)
