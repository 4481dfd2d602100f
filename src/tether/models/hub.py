"""Model files of the Hugging Face hub: from the local cache where they are there, else downloaded."""

from collections.abc import Sequence
from pathlib import Path

from tether.errors import TetherError

DESCRIPTIONS = ("*.json", "*.txt", "*.model")  # configuration and tokenizer


def fetch(repository: str, patterns: Sequence[str]) -> Path:
    """The folder of the local cache that holds the files of `repository` that match any of the patterns.

    Only files that match are downloaded, and nothing is if one that matches is there already. HF_HUB_OFFLINE
    and HF_HOME are honoured by the hub's client.

    Raises:
        TetherError: nothing matches in the cache and the hub cannot be reached or has nothing that matches.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repository, allow_patterns=list(patterns), local_files_only=True))
        if _any(folder, patterns):
            return folder
    except LocalEntryNotFoundError:
        pass
    except ValueError as error:
        raise TetherError(f"{repository!r} is no hub id such as 'org/name': {error}") from error
    try:
        folder = Path(snapshot_download(repository, allow_patterns=list(patterns)))
    except Exception as error:  # the client raises errors of several HTTP libraries
        raise TetherError(
            f"{repository} is not in the local hub cache and could not be downloaded "
            f"({type(error).__name__}). Download it where there is a network (hf download {repository}), or "
            f"give the folder it was saved to."
        ) from error
    if not _any(folder, patterns):
        raise TetherError(
            f"{repository} has no file like {' or '.join(patterns)}. Only safetensors are loaded, never "
            f"pickled weights."
        )
    return folder


def _any(folder: Path, patterns: Sequence[str]) -> bool:
    return any(next(folder.glob(pattern), None) is not None for pattern in patterns)
