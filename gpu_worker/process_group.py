"""How do the ranks of a group meet? Once in the life of their processes, at an address that all of them were given.

The scheduler names each group it forms, and only ranks that were told the same name meet: what another group left at
the address is not seen.
"""

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore, PrefixStore, Store, TCPStore
from torch.distributed.distributed_c10d import _set_pg_timeout

from gpu_worker.config import WorkerConfig
from gpu_worker.parallel import RanksLostError

logger = logging.getLogger(__name__)

# While ranks load, one may wait long for another whose disk is slow.
_LOADING_PATIENCE_S = 1800.0
# All were there a moment before they are sent to meet.
_MEETING_PATIENCE_S = 30.0


class ProcessGroup:
    """The group that this process is in, if it has more than one rank. `name` is empty until it has joined.

    Raises:
        RanksLostError: from every method: the others do not come, or this process is in another group.
    """

    def __init__(self, config: WorkerConfig, device: torch.device) -> None:
        self._config = config
        self._device = device
        self.name = b""

    def join(self, name: bytes) -> None:
        """Meet the other ranks; nothing to do for one that is in this group."""
        if self.name == name:
            return
        if self.name:
            raise RanksLostError("another rank was replaced, and a process can join one group only: start it again")
        config, started = self._config, time.monotonic()
        patience = timedelta(seconds=min(config.distributed_timeout_s, _MEETING_PATIENCE_S))
        try:
            with _signals_that_kill():
                store = self._store(name, patience)
                dist.init_process_group(
                    "gloo" if self._device.type == "cpu" else "nccl",
                    store=store,
                    rank=config.rank,
                    world_size=config.tensor_parallel_size,
                    timeout=patience,
                    device_id=None if self._device.type == "cpu" else self._device,
                )
        except RuntimeError as error:
            raise RanksLostError(
                f"rank {config.rank} of {config.tensor_parallel_size} did not meet the others at "
                f"{config.distributed_address} within {time.monotonic() - started:.0f} s ({first_line(error)}): "
                "do all of them run, and with the same address?"
            ) from error
        store.set_timeout(timedelta(seconds=config.distributed_timeout_s))
        self.name = name
        logger.info("group joined name=%s seconds=%.1f", name.hex(), time.monotonic() - started)

    def expect_delays(self, expected: bool) -> None:
        """Wait long for other ranks, as loading needs; otherwise they do everything at the same time.

        For ranks on GPUs only the supervisor ends a wait that lasts.
        """
        if self.name:
            patience_s = _LOADING_PATIENCE_S if expected else self._config.distributed_timeout_s
            _set_pg_timeout(timedelta(seconds=patience_s))

    def _store(self, name: bytes, timeout: timedelta) -> Store:
        config = self._config
        address = config.distributed_address
        assert address is not None
        if config.shares_host:
            path = f"{Path(address.removeprefix('file:'))}-{name.hex()}"
            store: Store = FileStore(path, config.tensor_parallel_size)
        else:
            host, _, port = address.rpartition(":")
            is_first = config.rank == 0
            tcp = TCPStore(host.strip("[]"), int(port), None, is_first, timeout, wait_for_workers=False)
            store = PrefixStore(name.hex(), tcp)
        store.set_timeout(timeout)
        return store


@contextmanager
def _signals_that_kill() -> Iterator[None]:
    """Let a stop signal end the process within a call that returns to Python only when the other ranks come."""
    handlers = {signum: signal.signal(signum, signal.SIG_DFL) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


def first_line(error: Exception) -> str:
    """What torch says before it says where in its code."""
    return (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
