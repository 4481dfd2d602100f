"""Each library's loop gives what a plain one gives, bit for bit; its checkpoints hold the adapter alone."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import tether
from tether.errors import TetherError
from tether.integrations import (
    AVERAGE,
    AccelerateSteps,
    by_index,
    keep_adapter_only,
    lightning_callback,
    trainer_callback,
)
from tether.objectives import mpm_nce

STEPS, HALF, BATCH = 6, 3, 4  # two epochs
TEXTS = ("a circle", "a square", "a cross")


class Pictures(torch.utils.data.Dataset):
    def __init__(self, model):
        tokens = model.tokenize(list(TEXTS))
        generator = torch.Generator().manual_seed(4)
        self.rows = [
            {
                "pixels": torch.randn(3, 32, 32, generator=generator),
                "tokens": tokens[i % 3],
                "kind": i % 3,
                "index": i,
            }
            for i in range(HALF * BATCH)
        ]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class Pairs(nn.Module):
    """What is trained: a module around the model, with the loss as its output."""

    def __init__(self, model):
        super().__init__()
        self.model, self.towers = model, model.module

    def forward(self, pixels, tokens, kind, index):
        image, text = self.model.encode_image(pixels), self.model.encode_text(tokens)
        return {"loss": mpm_nce(image, text, kind, 10.0)}


class Setting:
    """One model with an adapter, its optimizer, its average and its data: the same every time."""

    def __init__(self, folder, seed=0):
        self.model = tether.load(folder)
        self.attached = tether.attach(self.model, tether.RAdapterConfig(drop=0.5), seed=2)
        self.average = tether.Accumulation(self.attached.named_parameters(), momentum=0.8)
        self.module = Pairs(self.model)
        self.data = Pictures(self.model)

    def optimizer(self):
        return torch.optim.SGD(self.attached.named_parameters().values(), lr=0.1, momentum=0.9)

    def loader(self):
        return DataLoader(self.data, batch_size=BATCH)

    def values(self):
        return {
            **self.attached.state_dict(),
            **{f"average of {n}": t for n, t in self.average.average().items()},
        }


def same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def check_checkpoint(names, attached):
    """Only what is trained, and its average."""
    trained = {f"towers.{name}" for name in attached.named_parameters()}
    averaged = {f"{AVERAGE}.{name}" for name in ("updates", *attached.named_parameters())}
    assert set(names) == trained | averaged


@pytest.fixture(scope="module")
def plain(tiny_model):
    """What a loop written out gives after each step."""
    setting = Setting(tiny_model)
    optimizer, found = setting.optimizer(), []
    for step, batch in enumerate([*setting.loader(), *setting.loader()]):
        setting.attached.train_mode()
        setting.attached.begin_step(step, batch["index"], batch["index"])
        setting.module(**batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        setting.average.update()
        found.append({name: tensor.clone() for name, tensor in setting.values().items()})
    assert any((found[0][name] != found[-1][name]).any() for name in found[0])
    return found


def accelerated(setting, tmp_path, steps, resume=None):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    own = AccelerateSteps(accelerator, setting.module, setting.attached, average=setting.average)
    module, optimizer, loader = accelerator.prepare(setting.module, setting.optimizer(), setting.loader())
    if resume:
        accelerator.load_state(str(resume))
    for batch in [batch for epoch in range(own.step // HALF, steps // HALF) for batch in loader]:
        own.begin(batch)
        with accelerator.accumulate(module):
            accelerator.backward(module(**batch)["loss"])
            optimizer.step()
            optimizer.zero_grad()
        own.end()
    accelerator.save_state(str(tmp_path / f"step-{steps}"))
    return tmp_path / f"step-{steps}"


def test_accelerate(tiny_model, tmp_path, plain):
    from safetensors import safe_open

    whole = Setting(tiny_model)
    accelerated(whole, tmp_path / "whole", STEPS)
    same(whole.values(), plain[-1])

    first, second = Setting(tiny_model), Setting(tiny_model)
    folder = accelerated(first, tmp_path, HALF)
    same(first.values(), plain[HALF - 1])
    with safe_open(folder / "model.safetensors", "pt") as file:
        check_checkpoint(file.keys(), first.attached)
    accelerated(second, tmp_path, STEPS, resume=folder)
    same(second.values(), plain[-1])


def hugging_face(setting, tmp_path, resume=None, **options):
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        str(tmp_path),
        use_cpu=True,
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        remove_unused_columns=False,
        save_steps=HALF,
        report_to="none",
        disable_tqdm=True,
        lr_scheduler_type="constant",
        max_grad_norm=0,
        **options,
    )
    trainer = Trainer(
        setting.module,
        arguments,
        train_dataset=setting.data,
        optimizers=(setting.optimizer(), None),
        callbacks=[trainer_callback(setting.attached, average=setting.average)],
    )
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(setting.data)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_the_trainer_of_transformers(tiny_model, tmp_path, plain):
    from safetensors import safe_open

    whole = Setting(tiny_model)
    hugging_face(whole, tmp_path)
    same(whole.values(), plain[-1])
    with safe_open(tmp_path / f"checkpoint-{HALF}" / "model.safetensors", "pt") as file:
        check_checkpoint(file.keys(), whole.attached)
    second = Setting(tiny_model)
    hugging_face(second, tmp_path / "second", resume=str(tmp_path / f"checkpoint-{HALF}"))
    same(second.values(), plain[-1])


def test_lightning(tiny_model, tmp_path, plain):
    pl = pytest.importorskip("lightning.pytorch")

    class Lit(pl.LightningModule):
        def __init__(self, setting):
            super().__init__()
            self.setting, self.model, self.towers = [setting], setting.model, setting.module.towers

        def training_step(self, batch, batch_idx):
            return Pairs.forward(self, **batch)["loss"]

        def validation_step(self, batch, batch_idx):
            assert not self.towers.training
            self.log("loss", Pairs.forward(self, **batch)["loss"])

        def configure_optimizers(self):
            return self.setting[0].optimizer()

    def train(setting, folder, steps, resume=None):
        trainer = pl.Trainer(
            accelerator="cpu",
            max_steps=steps,
            default_root_dir=folder,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            check_val_every_n_epoch=1,
            limit_val_batches=1,
            callbacks=[lightning_callback(setting.attached, average=setting.average)],
        )
        trainer.fit(Lit(setting), setting.loader(), setting.loader(), ckpt_path=resume)
        trainer.save_checkpoint(folder / f"step-{steps}.ckpt")
        return folder / f"step-{steps}.ckpt"

    whole = Setting(tiny_model)
    train(whole, tmp_path / "whole", STEPS)
    same(whole.values(), plain[-1])
    first, second = Setting(tiny_model), Setting(tiny_model)
    path = train(first, tmp_path, HALF)
    same(first.values(), plain[HALF - 1])
    check_checkpoint(torch.load(path, weights_only=False)["state_dict"], first.attached)
    train(second, tmp_path, STEPS, resume=path)
    same(second.values(), plain[-1])


def test_a_state_that_lacks_what_is_trained_is_refused(tiny_model):
    setting = Setting(tiny_model)
    keep_adapter_only(setting.module, setting.attached, setting.average)
    state = setting.module.state_dict()
    check_checkpoint(state, setting.attached)
    setting.module.load_state_dict(state)
    lacking = dict(state)
    name = next(name for name in lacking if name.startswith("towers."))
    del lacking[name]
    with pytest.raises(RuntimeError, match=f'Missing key.*"{name}"'):
        setting.module.load_state_dict(lacking)
    without_average = {name: tensor for name, tensor in state.items() if AVERAGE not in name}
    with pytest.raises(RuntimeError, match=f'Missing key.*"{AVERAGE}.updates"'):
        setting.module.load_state_dict(without_average)
    wrapped = nn.ModuleDict({"inner": setting.module})  # as a library may do
    check_checkpoint([name.removeprefix("inner.") for name in wrapped.state_dict()], setting.attached)
    wrapped.load_state_dict(wrapped.state_dict())
    assert len(setting.model.module.state_dict()) > len(state)  # the model's own is whole


def test_the_module_is_one_around_the_model(tiny_model):
    setting = Setting(tiny_model)
    with pytest.raises(TetherError, match=r"self\.towers = model\.module.*It is the model itself"):
        keep_adapter_only(setting.model.module, setting.attached)
    with pytest.raises(TetherError, match=r"Linear is to be a module around the model.*no such part"):
        keep_adapter_only(nn.Linear(1, 1), setting.attached)


def test_a_batch_without_keys_is_told():
    with pytest.raises(
        TetherError, match=r"needs an entry 'index'.*found \['pixels'\]. Add it, or give keys="
    ):
        by_index({"pixels": torch.zeros(1)})
    with pytest.raises(TetherError, match=r"found list"):
        by_index([torch.zeros(1)])
