"""The card of a merged model: of what it was made, how exactly, and how it is loaded."""

from pathlib import Path

from torch import Tensor

from tether._files import read_json
from tether.adapters import MergeReport
from tether.adapters.files import Adapter
from tether.adapters.head import HEAD_FILE, ModuleHead, described_at
from tether.config import method_of
from tether.evaluation.scores import alpha_text
from tether.models import Model
from tether.models.builtin import ARCHITECTURE

CARD = "CARD.md"
BASE_CARD = "BASE-CARD.md"
DOORS = {
    "segmentation": "segmenter.load_segmenter",
    "detection": "detector.load_finder",
    "instances": "detector.load_finder",
}
"""What answers with a merged model and its head, by the head's task."""


def write_card(
    folder: Path,
    name: str,
    model: Model,
    adapter: Adapter,
    where: Path,
    report: MergeReport,
    *,
    head: Tensor | ModuleHead | None,
) -> None:
    """Write the card into a merged model's folder; that of the base stays beside it under another name.

    Args:
        folder: where the merged model is written.
        name: what the folder will be called.
        model: the merged model, whose source is the base.
        where: the folder of the adapter.
        head: what lies in the folder beside the model: a linear head's weight, or a head of several layers.
    """
    base_card = ""
    if (folder / CARD).is_file():
        (folder / CARD).rename(folder / BASE_CARD)
        base_card = f" Its own card, with its data, numbers and credits, is [{BASE_CARD}]({BASE_CARD})."
    error = "not measured"
    if report.max_error is not None:
        error = f"{report.max_error:.2e}, {report.relative_error:.2e} of the largest output"
    probe = "random pictures and two texts" if model.has_text else "random pictures"
    scale = "the logit scale" if model.has_text else f"{model.head_scale:.6g} (√dim)"
    head_text = ""
    if isinstance(head, ModuleHead):
        head_text = f"\n`{HEAD_FILE}` and `{described_at(Path(HEAD_FILE))}` hold the head for {head.task}.\n"
        if door := DOORS.get(head.task):
            head_text += f'`tether.runs.{door}("{name}")` answers with both.\n'
    elif head is not None:
        head_text = (
            f"\n`{HEAD_FILE}` holds the linear head, `weight` [classes, dim]: logits are features of length 1 times "
            f"its transpose, times {scale}.\n"
        )
    text = f"""# {name}

The model `{model.source}` with an adapter merged into its weights: an ordinary {model.family} model without any part of
the adapter, as fast and as large as its base.{base_card}

| | |
|---|---|
| base | `{model.source}`, fingerprint `{adapter.fingerprint}` |
| adapter | `{where}`, method `{method_of(type(adapter.config))}` |
| alpha | {alpha_text(report.alpha)} (0 is the base, 1 the tuned model) |
| tensors changed | {len(report.changed)} |
| largest difference of outputs to base and adapter apart, on {probe} | {error} |
{head_text}
## Loading it

```python
{_loading(folder, name, model)}```

So does `tether.load("{name}")`. What the base's licence asks for holds for this model too.
"""
    (folder / CARD).write_text(text, encoding="utf-8")


def _loading(folder: Path, name: str, model: Model) -> str:
    """Code that loads the folder without tether, as far as that is possible."""
    return _LOADING[model.family](folder, name, model)


def _transformers(folder: Path, name: str, model: Model) -> str:
    processor = "AutoProcessor" if model.has_text else "AutoImageProcessor"
    return f"""from transformers import AutoModel, {processor}

model = AutoModel.from_pretrained("{name}")
processor = {processor}.from_pretrained("{name}")
"""


def _timm(folder: Path, name: str, model: Model) -> str:
    return f"""import timm
from timm.data import create_transform, resolve_model_data_config

model = timm.create_model("local-dir:{name}", pretrained=True).eval()
preprocess = create_transform(**resolve_model_data_config(model))
"""


def _torchvision(folder: Path, name: str, model: Model) -> str:
    from tether.models.load_torchvision import KEY, classifier_of

    architecture = read_json(folder / "config.json")[KEY]["architecture"]
    size = f", image_size={model.image.height}" if architecture.startswith("vit") else ""
    image = model.image
    return f"""import torch
from safetensors.torch import load_file
from torchvision.models import get_model
from torchvision.transforms import v2

model = get_model("{architecture}", weights=None{size})
model.set_submodule("{classifier_of(model.module)}", torch.nn.Identity())
model.load_state_dict(load_file("{name}/model.safetensors"))
model.eval()
preprocess = v2.Compose([
    v2.Resize({image.before_crop}, v2.InterpolationMode("{image.interpolation}")),
    v2.CenterCrop({image.size}),
    v2.PILToTensor(),
    v2.ToDtype(torch.float32, scale=True),
    v2.Normalize({image.mean}, {image.std}),
])
"""


def _open_clip(folder: Path, name: str, model: Model) -> str:
    vision = read_json(folder / "open_clip_config.json")["model_cfg"]["vision_cfg"]
    register = ""
    if vision.get("timm_model_name") == ARCHITECTURE:
        register = f"""from tether.models import builtin

builtin.register()  # makes the image tower, {ARCHITECTURE}, known to timm"""
    return f"""import open_clip
{register}
model, _, preprocess = open_clip.create_model_and_transforms("local-dir:{name}")
tokenizer = open_clip.get_tokenizer("local-dir:{name}")
"""


_LOADING = {
    "open_clip": _open_clip,
    "timm": _timm,
    "torchvision": _torchvision,
    "transformers": _transformers,
}
"""By the library that a model is of."""
