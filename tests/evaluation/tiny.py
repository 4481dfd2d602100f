"""A tiny two-tower model and tiny splits of real picture files."""

from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from tether.data.records import Example, ImageRef, Split
from tether.models.model import ImageSpec, Model
from tether.models.weight_path import WeightPath

SIZE = 8
NAMES = ("red", "green", "blue", "white", "black", "yellow", "pink")
TEMPLATES = ("a {}.", "the colour {}")


class TinyTowers(nn.Module):
    def __init__(self):
        super().__init__()
        self.visual = nn.Linear(3 * SIZE * SIZE, 6)
        self.text = nn.Embedding(256, 6)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("steps", torch.tensor(3))
        self.dropout = nn.Dropout(0.5)


def tokenize(texts: list[str]) -> torch.Tensor:
    return torch.tensor([list(text.encode()[:24].ljust(24, b"\0")) for text in texts])


def tiny_model() -> Model:
    torch.manual_seed(0)
    return Model(
        module=TinyTowers(),
        source="tiny",
        family="open_clip",
        image=ImageSpec(size=SIZE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        dim=6,
        context_length=24,
        activation="gelu",
        tokenizer=tokenize,
        image_features=lambda module, pixels: module.visual(module.dropout(pixels.flatten(1))),
        text_features=lambda module, tokens, multiple: module.text(tokens).mean(1),
    )


def tiny_delta(model: Model) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    names = ("visual.weight", "visual.bias", "text.weight")
    parameters = dict(model.module.named_parameters())
    return {name: 0.3 * torch.randn(parameters[name].shape, generator=generator) for name in names}


def tiny_split(folder: Path, name: str, n: int, labels: int = len(NAMES), **rest) -> Split:
    """`n` pictures of random colours, written below `folder` and labelled in turn."""
    root = folder / name
    root.mkdir(exist_ok=True)
    examples = []
    generator = torch.Generator().manual_seed(len(name))
    for i in range(n):
        pixels = torch.randint(256, (SIZE, SIZE, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(root / f"{i}.png")
        examples.append(Example(ImageRef(str(root), f"{i}.png"), i % labels, identity=f"thing {i}"))
    return Split(name=name, domain=rest.pop("domain", name), examples=tuple(examples), **rest)


def way(model: Model, delta: Mapping[str, Tensor]) -> WeightPath:
    """The straight way from a model's weights to these plus delta."""
    return WeightPath(model.module, delta)
