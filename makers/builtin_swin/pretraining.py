"""A small Swin, taught by the built-in CLIP: how the built-in backbone for dense tasks was made.

    python -m makers.builtin_swin.pretraining build/pictures

It sees the pictures that the built-in CLIP was pre-trained on, one new augmented view each time. Through a linear map
that is thrown away afterwards its pooled features learn two things at once: what CLIP's image tower says of the same
view (distillation), and which of the batch's captions fit the picture, by CLIP's frozen texts.
"""

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from makers._building import errors_as_lines, pretraining_options, pretraining_parser
from makers.builtin_clip.pairs import CaptionedPictures, augment
from makers.builtin_clip.pretraining import multi_positive_loss
from tether._files import write_json, write_tensors
from tether.config import build, override, plain
from tether.ensembles import Accumulation
from tether.evaluation import class_embeddings
from tether.evaluation.scoring import Progress
from tether.models import Model, load
from tether.optimizers.groups import parameter_groups
from tether.optimizers.schedule import Schedule, ScheduleConfig
from tether.training import FitConfig, RunDirectory, fit
from tether.training.progress import ProgressDisplay

ARCHITECTURE = "swin_tiny_patch4_window7_224"
MEAN = STD = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class SwinConfig:
    """Shape of the backbone. With windows of 4 no map of a picture of 128 pixels has to be padded."""

    embed_dim: int = 48
    depths: tuple[int, ...] = (2, 2, 2, 2)
    num_heads: tuple[int, ...] = (2, 4, 8, 16)
    window_size: int = 4
    img_size: int = 128

    def timm(self) -> dict:
        """The configuration as timm writes it into a model folder."""
        return {
            "architecture": ARCHITECTURE,
            "num_classes": 0,
            "model_args": {**plain(self), "strict_img_size": False},
            "pretrained_cfg": {
                "input_size": [3, self.img_size, self.img_size],
                "mean": list(MEAN),
                "std": list(STD),
                "interpolation": "bicubic",
                "crop_pct": 1.0,
                "crop_mode": "center",
                "num_classes": 0,
                "pool_size": None,
            },
        }

    def create(self) -> nn.Module:
        """A fresh model with random weights and without a head."""
        return timm.create_model(ARCHITECTURE, num_classes=0, **self.timm()["model_args"])


@dataclass(frozen=True, kw_only=True)
class PretrainingConfig:
    """How the built-in Swin is made; the defaults made the one that is shipped.

    Attributes:
        distillation: weight of what CLIP's image tower says, against what the captions say.
        scale: of similarities of pictures and captions.
        emoji_share: share of the views that are of emoji; the rest are icons.
        momentum: of the running average of the weights, which is what is kept.
    """

    backbone: SwinConfig = field(default_factory=SwinConfig)
    distillation: float = 10.0
    scale: float = 30.0
    emoji_share: float = 0.4
    lr: float = 1e-3
    momentum: float = 0.998
    weight_decay: float = 0.05
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(warmup=200))
    training: FitConfig = field(
        default_factory=lambda: FitConfig(
            steps=2400, batch_size=128, drop_last=True, clip_norm=1.0, workers=1, checkpoint_every=60
        )
    )


def pretrain(
    config: PretrainingConfig,
    pictures: Path,
    root: Path,
    *,
    resume: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train a fresh Swin and write it as a folder of timm's layout into the run directory.

    Args:
        pictures: folder with `pictures.zip` and `pictures.json`.
        resume: a run that was stopped; it goes on from its last checkpoint.
        progress: told how many captions are encoded.

    Returns:
        The model's folder.
    """
    data = CaptionedPictures(pictures)
    teacher = load("builtin")
    with RunDirectory.open(resume) if resume else RunDirectory.create(root, "pretrain-swin") as run:
        run.record("config", plain(config))
        torch.manual_seed(config.training.seed)
        views = TaughtPictures(
            data, config.backbone.img_size, emoji_share=config.emoji_share, seed=config.training.seed
        )
        texts = class_embeddings(teacher, views.captions, ("{}",), progress=progress)
        task = Pretraining(config, teacher, texts)
        groups = parameter_groups(task.named_parameters(), lr=config.lr, weight_decay=config.weight_decay)
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
        schedule = Schedule.of(optimizer, config.schedule, config.training.total_steps(len(views)))
        average = Accumulation(task.named_parameters(), config.momentum, "warmup")
        fit(task, views, optimizer, config.training, schedule=schedule, accumulation=average, run=run)
        folder = run.path / "model"
        save_model(task.finish(average.average()), config.backbone, folder)
    return folder


def save_model(model: nn.Module, config: SwinConfig, folder: Path) -> None:
    """A folder of timm's layout: configuration and fp16 safetensors."""
    folder.mkdir(exist_ok=True)
    write_json(folder / "config.json", config.timm())
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in model.state_dict().items()}
    write_tensors(folder / "model.safetensors", tensors)


class TaughtPictures(Dataset):
    """Augmented views with the number of one of the picture's captions.

    Item (epoch, index) is a pure function of the seed and both. An epoch has as many views as there are pictures.
    """

    def __init__(self, pictures: CaptionedPictures, size: int, *, emoji_share: float, seed: int) -> None:
        self._rows, self._size, self._seed, self._emoji_share = pictures.rows, size, seed, emoji_share
        self._path, self._archive = pictures.archive, None
        self._of_kind = {
            kind: [
                index for index, row in enumerate(self._rows) if (row.kind == "emoji") == (kind == "emoji")
            ]
            for kind in ("emoji", "icon")
        }
        self.captions = tuple(dict.fromkeys(caption for row in self._rows for caption in row.captions))
        self._numbers = {caption: number for number, caption in enumerate(self.captions)}
        self._names = {
            name: number for number, name in enumerate(dict.fromkeys(row.name for row in self._rows))
        }

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Tensor | int]:
        """`pixels` of the view in −1 to 1, `caption` and `name` as numbers."""
        epoch, index = item
        random = np.random.default_rng([self._seed, epoch, index])
        indices = self._of_kind["emoji" if random.random() < self._emoji_share else "icon"]
        row = self._rows[indices[random.integers(len(indices))]]
        if self._archive is None:  # in the process that reads
            self._archive = zipfile.ZipFile(self._path)
        picture = Image.open(io.BytesIO(self._archive.read(row.file))).convert("RGBA")
        view = np.asarray(augment(picture, row.coloured, self._size, random))
        caption = row.captions[0 if random.random() < 0.5 else random.integers(len(row.captions))]
        return {
            "pixels": torch.from_numpy(view.copy()).permute(2, 0, 1).float().div_(127.5).sub_(1),
            "caption": self._numbers[caption],
            "name": self._names[row.name],
            "index": index,
        }


class Pretraining:
    """What `tether.training.fit` trains: the backbone, and the map from its features to CLIP's."""

    def __init__(
        self, config: PretrainingConfig, teacher: Model, texts: Float[Tensor, "captions dim"]
    ) -> None:
        self._config, self._teacher, self._texts = config, teacher.eval(), texts
        teacher.module.requires_grad_(False)
        self.backbone = config.backbone.create()
        self.map = nn.Linear(self.backbone.num_features, texts.shape[1])

    def begin_step(self, step: int, batch: dict[str, Tensor]) -> None:
        self.backbone.train()

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return {
            **{f"backbone.{name}": parameter for name, parameter in self.backbone.named_parameters()},
            **{f"map.{name}": parameter for name, parameter in self.map.named_parameters()},
        }

    def loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = batch["pixels"]
        side = self._teacher.image.height
        with torch.no_grad():
            smaller = F.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True)
            told = self._teacher.encode_image(smaller).float()
        image = F.normalize(self.map(self.backbone(pixels)).float(), dim=-1)
        positive = (batch["name"][:, None] == batch["name"]) | (batch["caption"][:, None] == batch["caption"])
        contrast = multi_positive_loss(self._config.scale * image @ self._texts[batch["caption"]].T, positive)
        distance = 1 - (image * told).sum(1).mean()
        return contrast + self._config.distillation * distance, {
            "contrast": contrast.detach(),
            "distance": distance.detach(),
        }

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        return {"backbone": self.backbone.state_dict(), "map": self.map.state_dict()}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        self.backbone.load_state_dict(state["backbone"])
        self.map.load_state_dict(state["map"])

    def finish(self, average: dict[str, Tensor]) -> nn.Module:
        """The backbone with the averaged weights."""
        prefix = "backbone."
        weights = {name.removeprefix(prefix): t for name, t in average.items() if name.startswith(prefix)}
        self.backbone.load_state_dict({**self.backbone.state_dict(), **weights})
        return self.backbone


def main(arguments: Sequence[str] | None = None) -> None:
    parser = pretraining_parser(__doc__)
    parser.set_defaults(threads=1)
    options = pretraining_options(parser, arguments)
    with errors_as_lines(), ProgressDisplay() as progress:
        config = build(PretrainingConfig, override({}, options.overrides))
        folder = pretrain(config, options.pictures, options.runs, resume=options.resume, progress=progress)
    print(f"The model is in {folder}.")


if __name__ == "__main__":
    main()
