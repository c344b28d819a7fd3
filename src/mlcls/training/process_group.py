"""What the processes of one training tell each other; alone, a process needs none of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlcls.errors import TrainingError
from mlcls.paddle.runtime import import_paddle
from mlcls.training.settings import Device

if TYPE_CHECKING:
    import paddle


class ProcessGroup:
    """This process among those of the training.

    Attributes:
        rank: Its number, from 0.
        size: How many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size

    @classmethod
    def join(cls) -> ProcessGroup:
        """Meet the other processes that `paddle.distributed.launch` started, on the device that was set."""
        paddle = import_paddle("train")
        paddle.distributed.init_parallel_env()
        return cls(paddle.distributed.get_rank(), paddle.distributed.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether it is this process that writes files."""
        return self.rank == 0

    def wrap(self, network: paddle.nn.Layer) -> Any:
        """Return the network with gradients averaged over the processes."""
        import paddle

        if self.size == 1:
            return network
        # CLIP's backbone has a projection that the head does not use
        return paddle.DataParallel(network, find_unused_parameters=True)

    def any(self, flag: bool) -> bool:
        """Return whether it is so in any process; all have to ask."""
        if self.size == 1:
            return flag
        import paddle

        value = paddle.to_tensor(np.array([flag], np.float32))
        paddle.distributed.all_reduce(value, op=paddle.distributed.ReduceOp.MAX)
        return bool(value.item() > 0)

    def share_statistics(self, network: paddle.nn.Layer) -> None:
        """Give all processes the first one's batch-norm statistics, which each counts over its own images."""
        if self.size == 1:
            return
        import paddle

        for name, tensor in network.state_dict().items():
            if name.endswith(("._mean", "._variance")):
                paddle.distributed.broadcast(tensor, src=0)

    def gather_rows(self, rows: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.float32]:
        """Put rows together that were dealt out in turn: row i was the work of process i mod size.

        Args:
            rows: This process's, (n, columns).
            count: How many there are in all processes.

        Returns:
            (count, columns), in every process.
        """
        if self.size == 1:
            return rows
        import paddle

        padded = np.zeros((-(-count // self.size), rows.shape[1]), np.float32)
        padded[: len(rows)] = rows
        gathered: list[Any] = []
        paddle.distributed.all_gather(gathered, paddle.to_tensor(padded))
        stacked = np.stack([tensor.numpy() for tensor in gathered], axis=1)
        together: npt.NDArray[np.float32] = stacked.reshape(-1, rows.shape[1])[:count]
        return together


def set_device(device: Device) -> None:
    """Make paddle compute on the device; in one process of several, on that process's own.

    Raises:
        TrainingError: This paddle knows no GPU, or there is none of that number.
    """
    paddle = import_paddle("train")
    require_devices(device)
    if device.kind == "cpu":
        paddle.set_device("cpu")
        # an inference in this process may have left another number, and with it sums that differ in the last bit
        paddle.base.core.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0)))))
        return
    paddle.set_device("gpu" if len(device.ids) > 1 else f"gpu:{device.ids[0]}")


def require_devices(device: Device) -> None:
    """Check that the devices can be used.

    Raises:
        TrainingError: The GPUs are not there, or paddle's launcher cannot start several processes on the CPU.
    """
    paddle = import_paddle("train")
    if device.kind == "cpu":
        if len(device.ids) > 1 and paddle.device.is_compiled_with_cuda():
            raise TrainingError(
                "device: expected a paddle for the CPU for several processes on it, got one with CUDA, whose launcher "
                "deals out GPUs; train with device cpu, or with GPUs."
            )
        return
    if not paddle.device.is_compiled_with_cuda():
        raise TrainingError(
            "device: expected a paddle with CUDA for a GPU, got one for the CPU; install paddlepaddle-gpu, or train "
            "with device cpu."
        )
    count = paddle.device.cuda.device_count()
    if max(device.ids) >= count:
        raise TrainingError(f"device: expected GPUs {', '.join(map(str, device.ids))}, got {count} on this machine.")
