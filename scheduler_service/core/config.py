"""What can be set about a scheduler process, checked once."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Settings of one scheduler. Counts are of tokens, sequences or blocks as named.

    `max_model_len` None: the model's own. `num_blocks` None: what the workers have room for. With
    `async_scheduling` the next step is sent while one runs. Sequences whose gateway is gone run on for
    `orphan_grace_s`, at most `max_orphans` of them with `max_orphan_tokens` when they are taken in. At most
    `max_waiting_requests` with `max_waiting_tokens` wait for their first turn; further ones are refused. Told to drain,
    it waits `drain_timeout_s` for sequences to end. `model_name` is what metrics and traces call the model.

    Raises:
        ValueError: the sizes contradict each other; the message says which and what to change.
    """

    block_size: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    max_model_len: int | None = None
    num_blocks: int | None = None
    tensor_parallel_size: int = 1
    prefix_caching: bool = True
    async_scheduling: bool = True
    orphan_grace_s: float = 10.0
    max_orphans: int = 1024
    max_orphan_tokens: int = 1 << 20
    max_waiting_requests: int = 4096
    max_waiting_tokens: int = 1 << 24
    drain_timeout_s: float = 0.0
    model_name: str = ""

    def __post_init__(self) -> None:
        for name in (
            "block_size",
            "max_num_seqs",
            "max_num_batched_tokens",
            "tensor_parallel_size",
            "max_waiting_requests",
            "max_waiting_tokens",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("max_model_len", "num_blocks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: it must be at least 1, or unset")
        for name in ("orphan_grace_s", "max_orphans", "max_orphan_tokens", "drain_timeout_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 0")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) is below max_num_seqs ({self.max_num_seqs}): "
                "a step must have room for one token of every running sequence; lower --max-num-seqs or raise "
                "--max-num-batched-tokens"
            )

    @property
    def max_steps_in_flight(self) -> int:
        """Steps that may be at the workers at once: the running one and, with async scheduling, the next."""
        return 2 if self.async_scheduling else 1
