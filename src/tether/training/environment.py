"""What a run was made with."""

import platform
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from tether._distributed import world_size

_PACKAGES = (
    "tether",
    "torch",
    "torchvision",
    "timm",
    "open_clip_torch",
    "transformers",
    "safetensors",
    "numpy",
)


def environment() -> dict[str, Any]:
    """Versions, platform, devices, threads, processes; the commit of this library where it is a checkout."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": package_versions(),
        "commit": _commit(Path(__file__).parent),
        "threads": torch.get_num_threads(),
        "processes": world_size(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def package_versions() -> dict[str, str]:
    """Versions of this library and of those that decide numbers, where they are installed."""
    found = {}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _commit(folder: Path) -> str | None:
    """Git commit of this library's working tree, with "+changes" where it differs from that commit.

    None where the library is installed, also where that is inside somebody's own repository.
    """
    if not (folder.parents[2] / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()
