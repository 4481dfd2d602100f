"""Batches of pictures for an evaluation, read while the model computes on those before."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch.utils.data import Dataset, default_collate

from tether.training.loading import load

_AHEAD = 2  # batches that wait for the model


def read_ahead(
    data: Dataset,
    indices: Sequence[int],
    *,
    batch_size: int,
    workers: int = 0,
    collate: Callable[[list[Any]], Any] | None = None,
) -> Iterator[dict[str, Any]]:
    """Batches of `data[index]` in the order of `indices`, the coming ones read while the caller works.

    Without workers a thread of this process reads; reading pictures and computing on tensors both leave Python
    to the other. Nothing is drawn from the global random streams but by `data`, and a data set that puts them
    back after each item, as `ImageDataset` does, leaves them as they were; the caller must not draw from them
    between two batches.

    Args:
        collate: makes a batch of items; None for torch's own.

    Raises:
        TetherError: a picture cannot be read, with the error of the data set, when its batch's turn comes.
    """
    parts = [list(indices[start : start + batch_size]) for start in range(0, len(indices), batch_size)]
    if workers:
        yield from load(data, lambda done: iter(parts[done:]), workers=workers, collate=collate)
        return
    left = threading.Event()

    def read(part: list[int]) -> Any:
        items = []
        for index in part:
            if left.is_set():  # by Ctrl-C or an error: nobody waits for these pictures
                return None
            items.append(data[index])
        return (collate or default_collate)(items)

    with ThreadPoolExecutor(1, "tether-reader") as reader:
        coming: deque[Future[Any]] = deque()
        try:
            for part in parts:
                coming.append(reader.submit(read, part))
                if len(coming) > _AHEAD:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            left.set()
