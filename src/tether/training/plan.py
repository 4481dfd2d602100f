"""What happens when in a run: the examples of every step, and what is due after it."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

from torch.utils.data import Dataset

from tether._distributed import rank, world_size
from tether.errors import TetherError
from tether.training.config import FitConfig
from tether.training.loading import Key, parts
from tether.training.sampler import Batches, Order, balanced, shuffled


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of a run, and what is due after it."""

    number: int
    """Counted from 0."""
    epoch: int
    """Counted from 0."""
    ends_epoch: bool
    ends_run: bool
    logs: bool
    saves: bool

    @property
    def done(self) -> int:
        """Steps that are done after this one."""
        return self.number + 1


class Plan:
    """The steps of a run: a pure function of its config, the number of examples and their order in an epoch.

    Raises:
        TetherError: there are no examples, too many steps, or a batch that the processes cannot share equally.
    """

    def __init__(self, data: Dataset, config: FitConfig, order: Order | None = None) -> None:
        count = len(data)
        self.batches = Batches(
            _order(data, config, order), count, config.batch_size, drop_last=config.drop_last
        )
        self.batches.check_shares(world_size())
        self.total = config.total_steps(count)
        self._micro_batch = config.micro_batch
        self._log_every = config.log_interval(self.total)
        self._save_every = config.checkpoint_every or self.batches.per_epoch

    @property
    def epochs(self) -> int:
        """Whole passes over the examples."""
        return self.total // self.batches.per_epoch

    def steps(self, start: int) -> Iterator[Step]:
        """Those from number `start` to the end of the run."""
        for number in range(start, self.total):
            done, ends_run = number + 1, number + 1 == self.total
            yield Step(
                number=number,
                epoch=number // self.batches.per_epoch,
                ends_epoch=done % self.batches.per_epoch == 0,
                ends_run=ends_run,
                logs=ends_run or done % self._log_every == 0,
                saves=ends_run or done % self._save_every == 0,
            )

    def examples(self, step: Step) -> int:
        """Examples of a step, over all processes."""
        return len(self.batches.batch(step.number)[1])

    def pieces(self, step: Step) -> list[list[Key]]:
        """This process's examples of a step, as many at a time as its memory takes."""
        epoch, share = self.batches.share(step.number, rank(), world_size())
        return parts(share, epoch, self._micro_batch)

    def pieces_from(self, start: int, skip: int) -> Iterator[list[Key]]:
        """The pieces of all steps from number `start` on, without the first `skip` of them."""
        return islice((piece for step in self.steps(start) for piece in self.pieces(step)), skip, None)


def _order(data: Dataset, config: FitConfig, order: Order | None) -> Order:
    if config.sampler == "shuffled":
        return order or partial(shuffled, len(data), config.seed)
    if order is not None or not hasattr(data, "labels"):
        raise TetherError(
            f"sampler={config.sampler!r} is for examples of classes (a data set with a method `labels()`) that have no "
            "order of their own; leave it out."
        )
    return partial(balanced, data.labels(), config.seed)
