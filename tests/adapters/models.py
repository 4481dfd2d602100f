"""Small models of each kind that adapters are attached to."""

from collections.abc import Callable
from functools import wraps

import open_clip
import timm
import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from tether.models.site import Site

VOCABULARY = 60
CONTEXT = 9
TEXTS = 5


class Block(nn.Module):
    """Two linears with a residual; site after the second."""

    def __init__(self, width: int, hidden: int, bias: bool = True) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc2(torch.tanh(self.fc1(x)))


def seeded(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """The same weights at every call."""

    @wraps(make)
    def wrapped(*args: object, **options: object) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return make(*args, **options)

    return wrapped


def block_site(width: int, path: str = "fc2", **options: object) -> Site:
    values = {
        "tower": "image",
        "depth": 0,
        "kind": "mlp",
        "tokens": "BNC",
        "prefix_tokens": 0,
        "fused": False,
    }
    return Site(**{"path": path, "width": width, "linear": path, **values, **options})


@seeded
def open_clip_model(layers: int = 2, batch_first: bool = True) -> nn.Module:
    """A tiny open_clip CLIP with fused attention; sequence-first if asked."""
    model = open_clip.CLIP(
        embed_dim=12,
        vision_cfg={"layers": layers, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 16},
        text_cfg={
            "context_length": CONTEXT,
            "vocab_size": VOCABULARY,
            "width": 24,
            "heads": 2,
            "layers": layers,
        },
    )
    if not batch_first:
        for transformer in (model.visual.transformer, model.transformer):
            transformer.batch_first = False
            for block in transformer.resblocks:
                block.attn.batch_first = False
    return randomise(model)


@seeded
def transformers_model() -> nn.Module:
    common = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return randomise(
        CLIPModel(
            CLIPConfig(
                text_config=CLIPTextConfig(
                    vocab_size=VOCABULARY,
                    max_position_embeddings=CONTEXT,
                    eos_token_id=VOCABULARY - 1,
                    **common,
                ).to_dict(),
                vision_config=CLIPVisionConfig(image_size=16, patch_size=8, **common).to_dict(),
                projection_dim=12,
            )
        )
    )


@seeded
def timm_model() -> nn.Module:
    """A tiny ViT with LayerScale."""
    model = timm.models.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=0, init_values=0.5
    )
    return randomise(model)


def randomise(model: nn.Module) -> nn.Module:
    """Biases and norms too, so that a forgotten bias shows."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def pixels(count: int = TEXTS) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def tokens(count: int = TEXTS) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, VOCABULARY - 1, (count, CONTEXT), generator=generator)
    ids[:, -1] = VOCABULARY - 1
    return ids


def features(model: nn.Module) -> list[torch.Tensor]:
    """Outputs of every tower on a fixed batch."""
    if hasattr(model, "text_model"):  # CLIP and SigLIP of transformers
        output = model(input_ids=tokens(), pixel_values=pixels())
        return [output.image_embeds, output.text_embeds]
    if hasattr(model, "encode_text"):
        return [model.encode_image(pixels()), model.encode_text(tokens())]
    return [model(pixels())]


MODELS = {
    "open_clip": open_clip_model,
    "open_clip sequence first": lambda: open_clip_model(batch_first=False),
    "timm ViT with LayerScale": timm_model,
}
"""What differs in where an adapter's output goes; every backbone is in the matrix."""
