"""Data sets: the built-in one, users' own, the standard robustness sets; transforms, prompts, corruptions.

Names are imported when they are first used, so that reading a listing does not load torchvision.
"""

from importlib import import_module
from typing import Any

from tether.config import methods_of
from tether.data.corrupted_tests import with_corrupted_tests
from tether.data.records import Benchmark, Example, ImageRef, PictureBenchmark, Split
from tether.errors import TetherError
from tether.families import DataConfig

_HOME = {
    "Ade20kConfig": "ade20k",
    "CORRUPTIONS": "corruptions",
    "CaptionBenchmark": "captions",
    "CaptionDataset": "caption_dataset",
    "CaptionSplit": "captions",
    "CaptionTableConfig": "caption_table",
    "CaptionedImage": "captions",
    "CocoConfig": "coco",
    "CocoSet": "coco",
    "DenseAugmentationConfig": "dense_transforms",
    "DenseBenchmark": "dense",
    "DenseDataset": "dense_dataset",
    "DenseExample": "dense",
    "DenseSplit": "dense",
    "DenseTarget": "targets",
    "DomainConfig": "domains",
    "EmojiCaptionsConfig": "emoji_captions",
    "EmojiShiftConfig": "emoji_shift",
    "FolderConfig": "folder",
    "IGNORE": "targets",
    "IconShiftConfig": "icon_shift",
    "ImageDataset": "dataset",
    "ImageNetConfig": "imagenet",
    "KarpathyConfig": "karpathy",
    "KarpathySource": "karpathy",
    "ManifestConfig": "manifest",
    "MaskFoldersConfig": "mask_folders",
    "Objects": "targets",
    "SIMULATED_SHIFTS": "simulated",
    "ScenesConfig": "scenes",
    "VocConfig": "voc",
    "as_rgb": "reading",
    "check": "checking",
    "collate_captions": "caption_dataset",
    "collate_dense": "dense_dataset",
    "corrupt": "corruptions",
    "corrupted": "corruptions",
    "dense_test_transform": "dense_transforms",
    "dense_train_transform": "dense_transforms",
    "drop_unreadable": "checking",
    "fill": "prompts",
    "imagenet_templates": "prompts",
    "mixed_corruptions": "corruptions",
    "normalize": "transforms",
    "problems": "dense_checking",
    "read_image": "reading",
    "require_readable": "checking",
    "require_sound": "dense_checking",
    "simulated_shifts": "simulated",
    "split_by_identity": "splitting",
    "templates": "prompts",
    "test_transform": "transforms",
    "train_transform": "transforms",
}

__all__ = ["Benchmark", "Example", "ImageRef", "Split", "load_benchmark", *_HOME]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def load_benchmark(config: DataConfig | Any) -> PictureBenchmark:
    """The benchmark that a config describes, with the corrupted tests that it asks for.

    Args:
        config: a `FolderConfig`, `CocoConfig`, `ScenesConfig` or any other `DataConfig`, also one of your own.

    Raises:
        TetherError: the data are not there, not whole or not of the described form, or of one class alone; or
            `config` is none.
    """
    if not isinstance(config, DataConfig):
        known = ", ".join(cls.__name__ for cls in methods_of(DataConfig).values())
        raise TetherError(f"Expected one of {known}, not {type(config).__name__}.")
    benchmark = config.load()
    if isinstance(benchmark, Benchmark) and len(benchmark.class_names) < 2:
        raise TetherError(
            f"{benchmark.name} has only the class {benchmark.class_names[0]!r}; there is nothing to tell apart. "
            "Pictures of two classes or more are needed, in a folder, a manifest or wherever they are described."
        )
    return benchmark if config.corruptions == "none" else with_corrupted_tests(benchmark, config.corruptions)
