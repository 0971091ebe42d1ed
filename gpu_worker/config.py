"""What can be set about a worker process, checked once."""

from dataclasses import dataclass
from pathlib import Path

DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "float32", "float16", "bfloat16")
ATTENTION_BACKENDS = ("auto", "triton", "flash_attn", "torch", "cpu")
LOAD_FORMATS = ("auto", "dummy")


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """Settings of one worker.

    Attributes:
        cache_dir: where compiled kernels are kept.
        threads: of torch and of the C kernels on a CPU.
        device: "auto" is the first GPU where there is one.
        dtype: of the weights; "auto" is float32 on a CPU and bfloat16 on a GPU.
        gpu_memory_utilization: share of the GPU's memory for weights, activations and KV cache together.
        cpu_memory_gib: of KV cache on a CPU; None takes half of what is available.
        enforce_eager: run every step operation by operation; otherwise a GPU captures graphs.
        seed: of the dummy load format's weights.
        trace_dir: where to write at the end what was done when; None records nothing.

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
    seed: int = 0
    trace_dir: Path | None = None

    def __post_init__(self) -> None:
        _require_known("device", self.device, DEVICES)
        _require_known("dtype", self.dtype, DTYPES)
        _require_known("attention backend", self.attention_backend, ATTENTION_BACKENDS)
        _require_known("load format", self.load_format, LOAD_FORMATS)
        if self.tensor_parallel_size != 1 or self.rank != 0:
            raise ValueError(
                f"rank {self.rank} of {self.tensor_parallel_size}: tensor parallelism is not served yet, "
                "use --tensor-parallel-size 1"
            )
        if self.threads < 1:
            raise ValueError(f"threads is {self.threads}: it must be at least 1")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(f"gpu memory utilization is {self.gpu_memory_utilization}: it must be above 0, at most 1")
        if self.cpu_memory_gib is not None and not 0 < self.cpu_memory_gib < float("inf"):
            raise ValueError(f"cpu memory is {self.cpu_memory_gib} GiB: it must be above 0")


def _require_known(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{what} {value!r} is not known; known: {', '.join(known)}")
