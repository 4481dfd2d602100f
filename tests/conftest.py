"""What the tests of whole runs share: a tiny random model, tiny data, and a recipe for them."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

settings.register_profile("tether", deadline=None)  # a loaded machine is no failure
settings.load_profile("tether")

CONTEXT = 16


@pytest.fixture
def own_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods that a test marks, and where their files were found, are forgotten after it."""
    from tether import families
    from tether.config import is_family, methods_of

    monkeypatch.setattr(sys, "path", list(sys.path))
    for family in filter(is_family, vars(families).values()):
        methods_of(family)
        monkeypatch.setattr(family, "members", dict(family.members))


@pytest.fixture
def unchecked() -> Iterator[None]:
    """No check of annotations at run time, as for users: what they get wrong has to meet our own messages."""
    from jaxtyping import config

    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def make_tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """An open_clip folder with a random model of two towers of two blocks, the same for the same seed."""
    made: dict[int, Path] = {}

    def make(seed: int) -> Path:
        if seed not in made:
            made[seed] = tmp_path_factory.mktemp("model") / "tiny"
            _save_model(made[seed], seed)
        return made[seed]

    return make


@pytest.fixture(scope="session")
def tiny_model(make_tiny_model: Callable[[int], Path]) -> Path:
    return make_tiny_model(0)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options of a folder data set: three shapes in colour to train on, and as outlines in grey."""
    root = tmp_path_factory.mktemp("data")
    for domain, count in (("colour", 10), ("outline", 4)):
        save_pictures(root / domain, domain, count)
    return {
        "method": "folder",
        "train": str(root / "colour"),
        "shifted": {"outline": str(root / "outline")},
        "domain": "colour",
        "validation_share": 0.2,
        "test_share": 0.2,
    }


@pytest.fixture(scope="session")
def tiny_recipe(tiny_model: Path, tiny_data: dict[str, Any]) -> dict[str, Any]:
    """Options of an R-Adapter run of 12 steps with everything on that a resumed run could get wrong."""
    return {
        "name": "tiny",
        "model": str(tiny_model),
        "data": tiny_data,
        "adapter": {"method": "r_adapter", "drop": 0.3},
        "objective": {"method": "mpm_nce"},
        "optimizer": {"lr": 0.02},
        "schedule": {"warmup": 2},
        "accumulation": {"momentum": 0.9, "correction": "run_length"},
        "augmentation": {"flip": True, "color_jitter": 0.2},
        "training": {"epochs": 4, "batch_size": 6, "clip_norm": 1.0, "seed": 3},
        "alpha": {"value": 0.5, "grid": [0.0, 0.5, 1.0]},
    }


@pytest.fixture(scope="session")
def pixel_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options of pairs of pictures and masks: red, green and blue blocks, on light ground and, shifted, on dark."""
    root = tmp_path_factory.mktemp("pixels")
    save_pairs(root / "light", 30, ground=215, seed=0)
    save_pairs(root / "dark", 6, ground=70, seed=1)
    (root / "classes.txt").write_text("0 red\n1 green\n2 blue\n3 ground\n255 void\n")
    return {
        "method": "mask_folders",
        "train": str(root / "light"),
        "classes": str(root / "classes.txt"),
        "background": "ground",
        "shifted": {"dark": str(root / "dark")},
        "domain": "light",
        "validation_share": 0.2,
        "test_share": 0.2,
    }


def blocks(count: int, *, ground: int, seed: int) -> Iterator[tuple[Any, list[tuple[int, int, int]]]]:
    """Pictures of 48 × 40 pixels with two blocks of 16 × 16 each; of these the label, left and top."""
    import numpy as np
    from PIL import Image

    chance = np.random.default_rng(seed)
    for _ in range(count):
        picture, there = chance.normal(ground, 12, (40, 48, 3)), []
        for left in (0, 24):
            label, x, y = int(chance.integers(3)), left + int(chance.integers(8)), int(chance.integers(22))
            picture[y : y + 16, x : x + 16] = 30
            picture[y : y + 16, x : x + 16, label] = 220
            there.append((label, x, y))
        yield Image.fromarray(picture.clip(0, 255).astype(np.uint8)), there


def save_pairs(root: Path, count: int, *, ground: int, seed: int) -> None:
    """Pictures of `blocks`, and masks of indices, the upper left pixel void."""
    import numpy as np
    from PIL import Image

    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number, (picture, there) in enumerate(blocks(count, ground=ground, seed=seed)):
        mask = np.full((40, 48), 3, np.uint8)
        for label, x, y in there:
            mask[y : y + 16, x : x + 16] = label
        mask[0, 0] = 255
        picture.save(root / "images" / f"{number:02}.png")
        Image.fromarray(mask).save(root / "masks" / f"{number:02}.png")


@pytest.fixture(scope="session")
def object_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options of pictures and objects in COCO's layout: the blocks of `pixel_data`, with outlines."""
    root = tmp_path_factory.mktemp("objects")
    sets = {"train": (24, 215, 0), "test": (6, 215, 2), "dark": (6, 70, 1)}
    for name, (count, ground, seed) in sets.items():
        save_objects(root / name, count, ground=ground, seed=seed)
    places = {
        name: {"annotations": str(root / name / "objects.json"), "pictures": str(root / name)}
        for name in sets
    }
    return {
        "method": "coco",
        "train": places["train"],
        "test": places["test"],
        "shifted": {"dark": places["dark"]},
        "domain": "light",
        "validation_share": 0.25,
    }


def save_objects(root: Path, count: int, *, ground: int, seed: int) -> None:
    """Pictures of `blocks`, and a file of annotations."""
    root.mkdir(parents=True)
    images, annotations = [], []
    for number, (picture, there) in enumerate(blocks(count, ground=ground, seed=seed)):
        picture.save(root / f"{number:02}.png")
        images.append({"id": number, "file_name": f"{number:02}.png", "width": 48, "height": 40})
        for label, x, y in there:
            outline = [x, y, x + 16, y, x + 16, y + 16, x, y + 16]
            of = {"id": len(annotations) + 1, "image_id": number, "category_id": label + 1, "iscrowd": 0}
            annotations.append({**of, "bbox": [x, y, 16, 16], "area": 256, "segmentation": [outline]})
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(("red", "green", "blue"))]
    text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
    (root / "objects.json").write_text(text)


@pytest.fixture(scope="session")
def detection_options(tiny_model: Path, object_data: dict[str, Any]) -> dict[str, Any]:
    """Options of a detection run with everything on that a resumed run could get wrong."""
    head = {"method": "mask_rcnn", "masks": False, "channels": 16, "strides": [4, 8], "anchor_scale": 2.0}
    head |= {"box_width": 32, "proposals": 20}  # two stages learn in few steps
    return {
        "name": "objects",
        "model": str(tiny_model),
        "task": {"method": "detection", "head": head, "augmentation": {"scale": [0.9, 1.1]}},
        "data": object_data,
        "adapter": {"method": "mona", "hidden": 4, "drop": 0.3},
        "objective": {"method": "head"},
        "optimizer": {"lr": 0.005},
        "schedule": {"warmup": 2},
        "accumulation": {"momentum": 0.8, "correction": "run_length"},
        "training": {"epochs": 16, "batch_size": 9, "clip_norm": 1.0, "seed": 3},
        "alpha": {"value": 1.0, "curve": False},
    }


@pytest.fixture(scope="session")
def segmentation_options(tiny_model: Path, pixel_data: dict[str, Any]) -> dict[str, Any]:
    """Options of a segmentation run of 42 steps with everything on that a resumed run could get wrong."""
    return {
        "name": "pixels",
        "model": str(tiny_model),
        "task": {"method": "segmentation", "hidden": 16, "pool_scales": [1, 2], "auxiliary_hidden": 8},
        "data": pixel_data,
        "adapter": {"method": "mona", "hidden": 4, "drop": 0.3},
        "objective": {"method": "cross_entropy", "smoothing": 0.05},
        "optimizer": {"lr": 0.01},
        "schedule": {"warmup": 2},
        "accumulation": {"momentum": 0.8, "correction": "run_length"},
        "training": {"epochs": 14, "batch_size": 8, "clip_norm": 1.0, "seed": 3},
        "alpha": {"value": 1.0, "grid": [0.0, 0.5, 1.0]},
    }


def save_pictures(root: Path, domain: str, count: int) -> None:
    """`count` pictures of each of three shapes, of sizes, places and colours that depend on nothing else."""
    from PIL import Image, ImageDraw

    for label, shape in enumerate(("circle", "square", "cross")):
        (root / shape).mkdir(parents=True)
        for number in range(count):
            grey = domain == "outline"
            hue = "black" if grey else f"hsl({(97 * number + 120 * label) % 360}, 80%, 45%)"
            image = Image.new("RGB", (40, 40), "white" if grey else f"hsl({(53 * number) % 360}, 30%, 90%)")
            draw, left, size = ImageDraw.Draw(image), 3 + number % 5, 22 + number % 7
            box = (left, 5, left + size, 5 + size)
            style = {"outline": hue, "width": 2} if grey else {"fill": hue}
            if shape == "cross":
                draw.line(box, fill=hue, width=2 if grey else 6)
                draw.line((box[0], box[3], box[2], box[1]), fill=hue, width=2 if grey else 6)
            else:
                (draw.ellipse if shape == "circle" else draw.rectangle)(box, **style)
            image.save(root / shape / f"{number}.png")


def _save_model(folder: Path, seed: int) -> None:
    from open_clip.model import CLIP
    from open_clip.tokenizer import SimpleTokenizer, bytes_to_unicode
    from safetensors.torch import save_file
    from transformers import CLIPTokenizer

    letters = list(bytes_to_unicode().values())
    merges = list(SimpleTokenizer().bpe_ranks)[:100]
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge) for merge in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    config = {
        "embed_dim": 16,
        "quick_gelu": False,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 8},
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": len(words),
            "hf_tokenizer_name": "own",
            "width": 32,
            "heads": 4,
            "layers": 2,
        },
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = CLIP(**config)
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.ndim > 0:
                    parameter.add_(0.02 * torch.randn_like(parameter))
    folder.mkdir()
    described = {"model_cfg": config, "preprocess_cfg": {"size": 32}}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    save_file(module.state_dict(), folder / "open_clip_model.safetensors")
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT)
    tokenizer.save_pretrained(folder)


@pytest.fixture
def alone_and_shared(
    tmp_path: Path,
) -> Callable[[Path], tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]]:
    """Start a script that calls `alone_and_together`; gives what one process found, and what each of two did."""

    def start(script: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
        from safetensors.torch import load_file

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        environment = {**os.environ, "MASTER_PORT": port, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [sys.executable, script, tmp_path], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        found = [load_file(tmp_path / f"{name}.safetensors") for name in ("alone", "0", "1")]
        return found[0], found[1:]

    return start


@pytest.fixture(scope="session")
def tether_processes(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """Play a scenario of `tether_processes.py` with a recipe's options; gives its folder and report."""

    def play(scenario: str, options: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
        folder = tmp_path_factory.mktemp(scenario)
        (folder / "recipe.yaml").write_text(json.dumps(options))  # JSON is YAML
        script = Path(__file__).parent / "tether_processes.py"
        done = subprocess.run(
            [sys.executable, str(script), scenario, str(folder)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return folder, json.loads((folder / "report.json").read_text())

    return play


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own answer to Ctrl-C, which a test run in the background of a shell has not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
