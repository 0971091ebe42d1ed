"""What can be set about a worker process, checked once."""

from dataclasses import dataclass
from pathlib import Path

from pagewire.ipc.curve import check_keys

DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "float32", "float16", "bfloat16")
ATTENTION_BACKENDS = ("auto", "triton", "flash_attn", "torch", "cpu")
LOAD_FORMATS = ("auto", "dummy")
_FILE = "file:"


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """Settings of one worker.

    Attributes:
        cache_dir: where compiled kernels are kept.
        threads: of torch and of the C kernels on a CPU.
        device: "auto" is a GPU where there is one: the first, or that of the rank's number.
        dtype: of the weights; "auto" is float32 on a CPU and bfloat16 on a GPU.
        gpu_memory_utilization: share of the GPU's memory for weights, activations and KV cache together.
        cpu_memory_gib: of this rank's KV cache on a CPU; None takes half of what is available, shared by the ranks.
        enforce_eager: run every step operation by operation; otherwise a GPU captures graphs.
        deterministic: the same tokens whatever is in the batch; slower on a GPU, on a CPU the C kernels do so anyway.
        seed: of the dummy load format's weights.
        distributed_address: where several ranks meet, HOST:PORT of rank 0 or, on one host, file:PATH.
        distributed_timeout_s: longest time that a rank waits for the others, once all are loaded.
        trace_dir: where to write at the end what was done when; None records nothing.
        curve_keys: directory with the keys for a scheduler that is reached over a network.
        drain_timeout_s: how long it goes on after SIGTERM for a scheduler that drains.

    Raises:
        ValueError: a value makes no sense; the message says which.
    """

    model: Path
    scheduler_address: str
    cache_dir: Path
    threads: int
    rank: int = 0
    tensor_parallel_size: int = 1
    device: str = "auto"
    dtype: str = "auto"
    attention_backend: str = "auto"
    gpu_memory_utilization: float = 0.9
    cpu_memory_gib: float | None = None
    load_format: str = "auto"
    enforce_eager: bool = False
    deterministic: bool = False
    seed: int = 0
    distributed_address: str | None = None
    distributed_timeout_s: float = 60.0
    trace_dir: Path | None = None
    curve_keys: Path | None = None
    drain_timeout_s: float = 0.0

    def __post_init__(self) -> None:
        check_keys(self.scheduler_address, self.curve_keys)
        _require_known("device", self.device, DEVICES)
        _require_known("dtype", self.dtype, DTYPES)
        _require_known("attention backend", self.attention_backend, ATTENTION_BACKENDS)
        _require_known("load format", self.load_format, LOAD_FORMATS)
        if not 0 <= self.rank < self.tensor_parallel_size:
            raise ValueError(f"rank {self.rank} of {self.tensor_parallel_size}: ranks count from 0")
        if self.tensor_parallel_size > 1:
            _require_meeting_place(self.rank, self.tensor_parallel_size, self.distributed_address)
        if not 0 < self.distributed_timeout_s < float("inf"):
            raise ValueError(f"distributed timeout is {self.distributed_timeout_s} s: it must be above 0")
        if self.drain_timeout_s < 0:
            raise ValueError(f"drain timeout is {self.drain_timeout_s} s: it must be at least 0")
        if self.threads < 1:
            raise ValueError(f"threads is {self.threads}: it must be at least 1")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(f"gpu memory utilization is {self.gpu_memory_utilization}: it must be above 0, at most 1")
        if self.cpu_memory_gib is not None and not 0 < self.cpu_memory_gib < float("inf"):
            raise ValueError(f"cpu memory is {self.cpu_memory_gib} GiB: it must be above 0")

    @property
    def shares_host(self) -> bool:
        """Whether all ranks are known to run on this host."""
        return self.distributed_address is None or self.distributed_address.startswith(_FILE)


def _require_meeting_place(rank: int, world_size: int, address: str | None) -> None:
    if address is None:
        raise ValueError(f"rank {rank} of {world_size}: give all of them the same --distributed-address to meet at")
    host, _, port = address.rpartition(":")
    if not address.startswith(_FILE) and not (host and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"distributed address {address!r} is neither HOST:PORT nor file:PATH")


def _require_known(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{what} {value!r} is not known; known: {', '.join(known)}")
