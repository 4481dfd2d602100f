"""Contrastive pre-training of a pair of towers from captioned pictures: how the built-in model was made.

    python -m makers.builtin_clip.pretraining build/pictures --stem build/stem.safetensors

The trunk's frozen lower stem runs once per augmented view; the rest learns from these features. Positives of a
picture are the texts of its name, and texts so general that they fit it too (the class name of many emoji).
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from timm.layers import set_fused_attn
from torch import Tensor, nn

from makers._building import errors_as_lines, pretraining_options, pretraining_parser
from makers.builtin_clip.pairs import CaptionedPictures, PairDataset, cache_stem_features
from makers.builtin_clip.stem import load_stem
from makers.builtin_clip.towers import ArchitectureConfig, create, save_model, train_tokenizer
from tether.config import build, override, plain
from tether.ensembles import Accumulation
from tether.errors import TetherError
from tether.evaluation.scoring import Progress
from tether.models.open_clip_text import text_features
from tether.models.text import unique_rows
from tether.optimizers.groups import parameter_groups
from tether.optimizers.schedule import Schedule, ScheduleConfig
from tether.training import FitConfig, RunDirectory, fit
from tether.training.progress import ProgressDisplay


@dataclass(frozen=True, kw_only=True)
class PretrainingConfig:
    """How the built-in model is made; the defaults made the one that is shipped.

    Attributes:
        emoji_views, icon_views: augmented views per picture whose stem features are cached.
        repeats: how often an emoji's name comes in an epoch, against once per picture for an icon's.
        stem_lr: learning rate of the stem's upper part, as a share of `lr`; 0 keeps its ImageNet weights.
        stem_from: step from which that part learns; it is half of the work.
        momentum: of the running average of the weights, which is what is kept.
    """

    architecture: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    emoji_views: int = 16
    icon_views: int = 1
    repeats: int = 32
    lr: float = 1e-3
    stem_lr: float = 0.2
    stem_from: int = 2400
    momentum: float = 0.998
    weight_decay: float = 0.1
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(warmup=200))
    training: FitConfig = field(
        default_factory=lambda: FitConfig(
            steps=3200,
            batch_size=256,
            drop_last=True,
            precision="bf16",
            clip_norm=1.0,
            workers=1,
            checkpoint_every=60,
        )
    )


def pretrain(
    config: PretrainingConfig,
    pictures: Path,
    stem: Path,
    root: Path,
    *,
    resume: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train a fresh pair of towers and write it as an open_clip folder into the run directory.

    Args:
        pictures: folder with `pictures.zip` and `pictures.json`.
        stem: safetensors that `makers.builtin_clip.stem` wrote.
        resume: a run that was stopped; it goes on from its last checkpoint.
        progress: told how many views are encoded by the frozen stem.

    Returns:
        The model's folder.
    """
    data = CaptionedPictures(pictures)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    set_fused_attn(
        device.type == "cuda"
    )  # torch's fused attention is slower than plain products on a CPU in bf16
    with RunDirectory.open(resume) if resume else RunDirectory.create(root, "pretrain") as run:
        run.record("config", plain(config))
        torch.manual_seed(config.training.seed)
        lower_and_upper = load_stem(stem).to(device, memory_format=torch.channels_last)
        views = {"emoji": config.emoji_views, "icon": config.icon_views}

        @torch.no_grad()
        def lower(pixels: Tensor) -> Tensor:
            return lower_and_upper.lower(pixels.to(device)).cpu()

        features = cache_stem_features(
            data,
            run.path / "features",
            lower,
            size=config.architecture.image_size,
            views=views,
            seed=config.training.seed,
            progress=progress,
        )
        tokenizer = train_tokenizer(data.captions, config.architecture.vocabulary)

        def tokenize(texts: list[str]) -> Tensor:
            length = config.architecture.context_length
            options = {
                "return_tensors": "pt",
                "max_length": length,
                "padding": "max_length",
                "truncation": True,
            }
            return tokenizer(texts, **options).input_ids

        seed = config.training.seed
        pairs = PairDataset(data, features, views, tokenize, often="emoji", repeats=config.repeats, seed=seed)
        model = create(config.architecture, lower_and_upper).to(device, memory_format=torch.channels_last)
        model.visual.trunk.patch_embed.backbone.requires_grad_(config.stem_lr > 0)
        task = Pretraining(model, config.stem_from)
        upper_stem = {"*.backbone.*": {"lr": config.lr * config.stem_lr, "weight_decay": 0.0}}
        groups = parameter_groups(
            task.named_parameters(),
            lr=config.lr,
            weight_decay=config.weight_decay,
            special=upper_stem if config.stem_lr > 0 else None,
        )
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
        schedule = Schedule.of(optimizer, config.schedule, config.training.total_steps(len(pairs)))
        average = Accumulation(task.named_parameters(), config.momentum, "warmup")
        task.model.train()
        fit(task, pairs, optimizer, config.training, schedule=schedule, accumulation=average, run=run)
        task.model.load_state_dict(average.average(), strict=False)
        folder = run.path / "model"
        save_model(task.finish(), config.architecture, tokenizer, folder)
        shutil.rmtree(run.path / "features")
    return folder


def multi_positive_targets(
    names: Int[Tensor, " batch"], generals: Int[Tensor, " batch"], captions: Int[Tensor, " batch"]
) -> Bool[Tensor, "batch batch"]:
    """Which text fits which picture: the same name, or a caption that fits several names and this picture's too.

    Args:
        names: id of each pair's name.
        generals: id of the general caption that fits each picture, −1 where there is none.
        captions: id of each pair's text where it is such a general caption, −1 where it belongs to the name alone.
    """
    general = (captions[None, :] >= 0) & (generals[:, None] == captions[None, :])
    return general | (names[:, None] == names[None, :])


def multi_positive_loss(
    logits: Float[Tensor, "batch batch"], positive: Bool[Tensor, "batch batch"]
) -> Float[Tensor, ""]:
    """Symmetric cross-entropy against targets spread evenly over the positives of each picture and of each text."""
    weight = positive.float()
    rows = -(weight / weight.sum(1, keepdim=True) * F.log_softmax(logits, 1)).sum(1)
    columns = -(weight / weight.sum(0, keepdim=True) * F.log_softmax(logits, 0)).sum(0)
    return (rows.mean() + columns.mean()) / 2


class Pretraining:
    """What `tether.training.fit` trains: both towers on cached stem features.

    Args:
        stem_from: step from which the stem's upper part learns too, if it is to learn at all.

    Raises:
        TetherError: the image trunk has no stem with a frozen lower part.
    """

    def __init__(self, model: open_clip.CustomTextCLIP, stem_from: int = 0):
        backbone = getattr(model.visual.trunk.patch_embed, "backbone", None)
        if not hasattr(backbone, "lower"):
            raise TetherError(
                "Pre-training from cached features needs a trunk with `patch_embed.backbone.lower`."
            )
        self.model = model
        self._lower, backbone.lower = backbone.lower, nn.Identity()
        self._upper = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
        self._stem_from = stem_from

    def begin_step(self, step: int, batch: dict[str, Tensor]) -> None:
        for parameter in self._upper:
            parameter.requires_grad_(step >= self._stem_from)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        distinct, inverse = unique_rows(batch["tokens"])
        image = F.normalize(self.model.encode_image(batch["pixels"]).float(), dim=-1)
        text = F.normalize(text_features(self.model, distinct, 1).float(), dim=-1)[inverse]
        scale = self.model.logit_scale.clamp(max=math.log(100)).exp()
        positive = multi_positive_targets(batch["name"], batch["general"], batch["caption"])
        loss = multi_positive_loss(scale * image @ text.T, positive)
        return loss, {"logit_scale": scale.detach()}

    def state_dict(self) -> dict[str, Tensor]:
        return self.model.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.model.load_state_dict(state)

    def finish(self) -> open_clip.CustomTextCLIP:
        """The whole model, its lower stem back in place."""
        self.model.visual.trunk.patch_embed.backbone.lower = self._lower
        return self.model


def main(arguments: Sequence[str] | None = None) -> None:
    parser = pretraining_parser(__doc__)
    parser.add_argument("--stem", type=Path, required=True, help="safetensors of the convolutional stem")
    options = pretraining_options(parser, arguments)
    with errors_as_lines(), ProgressDisplay() as progress:
        config = build(PretrainingConfig, override({}, options.overrides))
        folder = pretrain(
            config, options.pictures, options.stem, options.runs, resume=options.resume, progress=progress
        )
    print(f"The model is in {folder}.")


if __name__ == "__main__":
    main()
