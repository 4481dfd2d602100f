"""The pair of towers that is pre-trained from nothing, and its tokenizer: made, and written as open_clip reads it."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import open_clip
from torch import nn

from tether._files import write_json, write_tensors
from tether.errors import TetherError


@dataclass(frozen=True, kw_only=True)
class ArchitectureConfig:
    """Shape of the two towers: a hybrid ViT on the convolutional stem, and a causal text transformer."""

    image_depth: int = 6
    text_depth: int = 4
    width: int = 192
    embed_dim: int = 256
    image_size: int = 112
    context_length: int = 32
    vocabulary: int = 4000

    def open_clip(self) -> dict:
        """The configuration as open_clip writes it into a model folder."""
        return {
            "model_cfg": {
                "embed_dim": self.embed_dim,
                "custom_text": True,
                "vision_cfg": {
                    "timm_model_name": "tether_vit_lite0",
                    "timm_model_pretrained": False,
                    "timm_pool": "avg",
                    "timm_proj": "linear",
                    "image_size": self.image_size,
                },
                "text_cfg": {
                    "context_length": self.context_length,
                    "vocab_size": self.vocabulary,
                    "width": self.width,
                    "heads": self.width // 64,
                    "layers": self.text_depth,
                    "hf_tokenizer_name": "tokenizer",
                    "tokenizer_kwargs": {"clean": "lower"},
                },
            },
            "preprocess_cfg": {
                "mean": [0.5, 0.5, 0.5],
                "std": [0.5, 0.5, 0.5],
                "interpolation": "bicubic",
                "resize_mode": "shortest",
            },
        }


def save_model(model: nn.Module, config: ArchitectureConfig, tokenizer, folder: Path) -> None:
    """An open_clip folder: configuration, fp16 safetensors, tokenizer."""
    tensors = {name: tensor.half() for name, tensor in model.state_dict().items()}
    write_json(folder / "open_clip_config.json", config.open_clip())
    tokenizer.save_pretrained(folder)
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    write_tensors(folder / "open_clip_model.safetensors", tensors)


def create(config: ArchitectureConfig, stem: nn.Module | None = None) -> open_clip.CustomTextCLIP:
    """A fresh model with random weights, but for the stem where one is given."""
    import tether.models.hybrid  # noqa: F401  (registers the trunk)

    settings = config.open_clip()["model_cfg"]
    model = open_clip.model.CustomTextCLIP(
        embed_dim=settings["embed_dim"], vision_cfg=settings["vision_cfg"], text_cfg=settings["text_cfg"]
    )
    if stem is not None:
        model.visual.trunk.patch_embed.backbone = stem
    return model


def train_tokenizer(texts: list[str], vocabulary: int):
    """A byte-level BPE of exactly `vocabulary` tokens; padding is 0 and end-of-text the last id, where open_clip pools.

    Returns:
        A `transformers.PreTrainedTokenizerFast`.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 2,
        special_tokens=["<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocabulary - 2:
        raise TetherError(
            f"{len(texts)} captions give {tokenizer.get_vocab_size() + 2} tokens, not {vocabulary}; "
            "lower the vocabulary."
        )
    tokenizer.add_special_tokens(["<start>", "<end>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", vocabulary - 2), ("<end>", vocabulary - 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<start>",
        eos_token="<end>",
        pad_token="<pad>",
        unk_token="<pad>",
    )
