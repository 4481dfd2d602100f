"""Who does the runs of a comparison: this process, further ones of this machine, or jobs of a cluster.

Any other program that starts the same command, here or on a machine that sees the folder of runs, joins as well:
`srun --ntasks 16 --gpus-per-task 1 tether compare …`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tether._distributed import world_size
from tether.errors import TetherError
from tether.runs.comparing.crew import Crew, LocalProcesses, Work
from tether.runs.comparing.slurm import SlurmJobs

LOGS = "slurm"
"""Beside the runs: the folder with the logs of submitted jobs."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Who does the runs.

    Attributes:
        device: where processes of this machine compute; on several GPUs these go round.
        workers: processes that share the runs, this one included; with `slurm` so many jobs, while this one waits.
        slurm: options of sbatch by name, such as `{"partition": "gpu", "gpus": "1", "time": "600"}`, the time in
            minutes; None to stay on this machine.
        cluster: submitit's executor: "slurm", or "local", which runs the jobs as processes of this machine.

    Raises:
        TetherError: the number of workers makes no sense.
    """

    device: torch.device | str = "cpu"
    workers: int = 1
    slurm: Mapping[str, str] | None = None
    cluster: str = "slurm"

    def __post_init__(self) -> None:
        alone = self.workers == 1 and self.slurm is None
        if self.workers < 1 or (world_size() > 1 and not alone):
            raise TetherError(
                f"Expected one worker or more, and only one, without --slurm, under torchrun; found {self.workers} "
                f"under {world_size()} processes."
            )

    def crew(self, root: Path, work: Work, *arguments: Any) -> Crew:
        """Those who work for this process, started at need.

        Args:
            root: where the runs are.
            work: a function that a new process can import; called with the arguments and a device.

        Raises:
            TetherError: jobs are wanted, and the package submitit is not installed.
        """
        if self.slurm is not None:
            return SlurmJobs(self.workers, self.slurm, root / LOGS, work, *arguments, cluster=self.cluster)
        return LocalProcesses(self.workers - 1, work, *arguments, device=self.device)
