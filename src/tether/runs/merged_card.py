"""The card of a merged model: of what it was made, how exactly, and how it is loaded."""

from pathlib import Path

from tether._files import read_json
from tether.adapters import MergeReport
from tether.adapters.files import Adapter
from tether.config import method_of
from tether.evaluation.scores import alpha_text
from tether.models import Model
from tether.models.builtin import ARCHITECTURE

CARD = "CARD.md"
BASE_CARD = "BASE-CARD.md"


def write_card(
    folder: Path, name: str, model: Model, adapter: Adapter, where: Path, report: MergeReport, *, head: bool
) -> None:
    """Write the card into a merged model's folder; that of the base stays beside it under another name.

    Args:
        folder: where the merged model is written.
        name: what the folder will be called.
        model: the merged model, whose source is the base.
        where: the folder of the adapter.
        head: whether a linear head lies in the folder.
    """
    base_card = ""
    if (folder / CARD).is_file():
        (folder / CARD).rename(folder / BASE_CARD)
        base_card = f" Its own card, with its data, numbers and credits, is [{BASE_CARD}]({BASE_CARD})."
    error = "not measured"
    if report.max_error is not None:
        error = f"{report.max_error:.2e}, {report.relative_error:.2e} of the largest output"
    head_text = (
        "\n`head.safetensors` holds the linear head, `weight` [classes, dim]: logits are features of length 1 times "
        "its transpose, times the logit scale.\n"
        if head
        else ""
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
| largest difference of outputs to base and adapter apart, on random pictures and two texts | {error} |
{head_text}
## Loading it

```python
{_loading(folder, name, model)}```

So does `tether.load("{name}")`. What the base's licence asks for holds for this model too.
"""
    (folder / CARD).write_text(text, encoding="utf-8")


def _loading(folder: Path, name: str, model: Model) -> str:
    """Code that loads the folder without tether, as far as that is possible."""
    if model.family == "transformers":
        return f"""from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{name}")
processor = AutoProcessor.from_pretrained("{name}")
"""
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
