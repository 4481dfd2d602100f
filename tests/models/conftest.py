"""Small random models, saved to disk in each library's own format."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.tokenizer import SimpleTokenizer, bytes_to_unicode
from safetensors.torch import save_file
from torch import nn

WORDS = 714
LENGTH = 24


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """CLIP's own tokenizer, with its first 200 merges; the end-of-text token has the largest id, 713."""
    from transformers import CLIPTokenizer

    letters = list(bytes_to_unicode().values())
    merges = list(SimpleTokenizer().bpe_ranks)[:200]
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge) for merge in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    assert len(words) == WORDS
    vocabulary = {word: index for index, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)


def open_clip_config(**changes: Any) -> dict[str, Any]:
    """A tiny `model_cfg`; changes to vision_cfg and text_cfg are merged into them."""
    config: dict[str, Any] = {
        "embed_dim": 16,
        "quick_gelu": False,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "head_width": 8},
        "text_cfg": {
            "context_length": LENGTH,
            "vocab_size": WORDS,
            "hf_tokenizer_name": "own",
            "width": 32,
            "heads": 4,
            "layers": 2,
        },
    }
    for name, value in changes.items():
        config[name] = config[name] | value if isinstance(value, dict) and name in config else value
    return config


def build(config: dict[str, Any], seed: int = 0) -> nn.Module:
    """open_clip's module for a configuration, with random weights of which none is zero."""
    torch.manual_seed(seed)
    config = dict(config)
    kind = CustomTextCLIP if config.pop("custom_text", False) else CLIP
    module = kind(**config)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 0:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return module.eval()


@pytest.fixture
def save_open_clip(tmp_path: Path, tokenizer: Any) -> Callable[..., tuple[Path, nn.Module]]:
    """Save a tiny open_clip folder with the changes asked for; gives the folder and the module saved."""

    def save(preprocess: dict[str, Any] | None = None, **changes: Any) -> tuple[Path, nn.Module]:
        config = open_clip_config(**changes)
        module = build(config)
        folder = tmp_path / "model"
        folder.mkdir()
        described = {"model_cfg": config, "preprocess_cfg": preprocess or {"size": 32}}
        (folder / "open_clip_config.json").write_text(json.dumps(described))
        save_file(module.state_dict(), folder / "open_clip_model.safetensors")
        if config["text_cfg"].get("hf_tokenizer_name"):
            tokenizer.save_pretrained(folder)
        return folder, module

    return save


@pytest.fixture
def clip(save_open_clip: Callable[..., tuple[Path, nn.Module]]) -> Path:
    """The folder of a plain tiny open_clip model."""
    return save_open_clip()[0]


@pytest.fixture
def save_transformers(tmp_path: Path, tokenizer: Any) -> Callable[..., tuple[Path, nn.Module]]:
    """Save a tiny transformers folder of one kind; gives the folder and the module that was saved."""

    def save(
        kind: str = "clip", text: dict | None = None, vision: dict | None = None
    ) -> tuple[Path, nn.Module]:
        import transformers as hf

        torch.manual_seed(0)
        tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        words = {"vocab_size": WORDS, "max_position_embeddings": LENGTH, "pad_token_id": WORDS - 1}
        words |= {"bos_token_id": WORDS - 2, "eos_token_id": WORDS - 1}
        picture = {"image_size": 32, "patch_size": 8}
        folder = tmp_path / kind
        if kind == "clip":
            config = hf.CLIPConfig(
                text_config=tower | words | (text or {}),
                vision_config=tower | picture | {"num_hidden_layers": 3} | (vision or {}),
                projection_dim=16,
            )
            module = hf.CLIPModel(config)
            images = hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
            words_of = tokenizer
        else:
            if kind == "siglip2":
                picture = {"num_patches": 16, "patch_size": 8}
            words |= {"vocab_size": 34, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
            kinds = {
                "siglip": (hf.SiglipConfig, hf.SiglipModel),
                "siglip2": (hf.Siglip2Config, hf.Siglip2Model),
            }
            config = kinds[kind][0](
                text_config=tower | words | {"projection_size": 32} | (text or {}),
                vision_config=tower | picture | (vision or {}),
            )
            module = kinds[kind][1](config)
            images = (
                hf.SiglipImageProcessor(size={"height": 32, "width": 32})
                if kind == "siglip"
                else hf.Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
            )
            letters = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *map(chr, range(97, 123)), "▁", ":", "!"]
            vocabulary = {letter: index for index, letter in enumerate(letters)}
            words_of = hf.Siglip2Tokenizer(vocab=vocabulary, merges=[], padding_side="right")
        module.save_pretrained(folder)
        words_of.save_pretrained(folder)
        images.save_pretrained(folder)
        return folder, module.eval()

    return save


@pytest.fixture
def architectures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, nn.Module]:
    """open_clip then knows the architectures "tiny" and "tiny-quickgelu"; gives a module of each."""
    import open_clip.factory as factory

    monkeypatch.setattr(factory, "_MODEL_CONFIG_PATHS", list(factory._MODEL_CONFIG_PATHS))
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))
    folder = tmp_path / "architectures"
    folder.mkdir()
    modules = {}
    for name in ("tiny", "tiny-quickgelu"):
        config = open_clip_config()
        config["text_cfg"] |= {"vocab_size": 49408, "context_length": 77}
        del config["text_cfg"]["hf_tokenizer_name"], config["quick_gelu"]
        if name == "tiny-quickgelu":
            config["quick_gelu"] = True
        (folder / f"{name}.json").write_text(json.dumps(config))
        modules[name] = build(config)
    open_clip.add_model_config(folder)
    return modules


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], None]:
    """An empty hub cache and no network; call it to put a folder's files into the cache under an id."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(repository: str, folder: Path) -> None:
        base = cache / f"models--{repository.replace('/', '--')}"
        snapshot = base / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (base / "refs").mkdir()
        (base / "refs" / "main").write_text("0" * 40)
        for file in folder.iterdir():
            (snapshot / file.name).write_bytes(file.read_bytes())

    return put
