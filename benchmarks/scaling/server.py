"""One engine as a server of queueing theory: cheap enough to have a thousand of them.

Between two changes every running stream gets one token a step, and prompts are computed with what the step's budget
leaves, first come first. The step's time is that of the fitted model, or the scheduler's own where that is longer.
Conversations stay cached in what running streams leave of the KV cache, and the least recently used lose their ends
first. detail.py has the real thing, and agreement.py says how well the two agree.
"""

import heapq
import math
from collections import OrderedDict, deque
from dataclasses import dataclass
from math import hypot, inf

from benchmarks.scaling.detail import BLOCK_SIZE, EngineSize
from benchmarks.scaling.shapes import ModelShape
from benchmarks.scaling.step_time import SMALL_BATCH, Step, StepTimeModel, floors
from benchmarks.scaling.workload import Turn

# A request joins the step after the one that is already sent while another runs: this many steps later, on average.
_JOIN_STEPS = 1.5
_NOTHING = 1e-6


@dataclass(frozen=True, slots=True)
class StepCosts:
    """The step-time model of one shape, reduced to numbers; the scheduler's own time is `host_s` and `host_seq_s` for
    each sequence."""

    small_s: float
    large_s: float
    weights_s: float
    flops_s: float
    products: float
    kv_s: float
    activations_s: float
    host_s: float = 0.0
    host_seq_s: float = 0.0

    @classmethod
    def of(cls, model: StepTimeModel, shape: ModelShape, host_s: float = 0.0, host_seq_s: float = 0.0) -> "StepCosts":
        """The same times as the model's."""
        small, large, products, kv, activations = model.factors
        layers_s, _, weights_s, kv_s, activations_s = floors(shape, Step(1, 1)).tolist()
        many = 1 << 20
        flops_s = math.sqrt(float(floors(shape, Step(many, 0))[2]) ** 2 - weights_s**2) / many
        return cls(
            small_s=small * layers_s,
            large_s=large * layers_s,
            weights_s=weights_s,
            flops_s=flops_s,
            products=products,
            kv_s=kv * kv_s,
            activations_s=activations * activations_s,
            host_s=host_s,
            host_seq_s=host_seq_s,
        )

    def seconds(self, num_decodes: int, num_kv_tokens: float, num_prompt_tokens: float) -> float:
        """Of a step."""
        num_tokens = num_decodes + num_prompt_tokens
        gpu_s = (
            (self.small_s if num_tokens <= SMALL_BATCH else self.large_s)
            + self.products * hypot(self.weights_s, self.flops_s * num_tokens)
            + self.kv_s * num_kv_tokens
            + self.activations_s * num_tokens
        )
        return max(gpu_s, self.host_s + self.host_seq_s * num_decodes)


@dataclass(slots=True)
class Visit:
    """One request at an engine; times are seconds, `num_left` tokens of its prompt are to be computed."""

    user: int
    gateway: int
    turn: Turn
    arrived_s: float
    num_left: float = 0.0
    num_cached: int = 0
    first_s: float = 0.0
    ended_s: float = 0.0
    num_believed: float = 0.0
    """Tokens of the prompt that its gateway believes are to be computed."""


class EngineServer:
    """One engine. Time goes on when `advance` is called; who has got the first token meanwhile
    is in `started`, who has ended in `ended`.

    Attributes:
        num_tokens, num_steps: so far.
        num_open: streams that have not ended.
        num_to_compute: tokens of prompts that are not computed, of those who wait as well.
    """

    def __init__(self, costs: StepCosts, size: EngineSize) -> None:
        self._costs = costs
        self._max_num_seqs = size.max_num_seqs
        self._budget = size.max_num_batched_tokens
        self._capacity = size.num_blocks * BLOCK_SIZE
        self.now_s = 0.0
        self.num_tokens = self.num_steps = 0.0
        self.num_open = 0
        self.num_to_compute = 0.0
        self.started: list[Visit] = []
        self.ended: list[Visit] = []
        self._progress = 0.0
        self._num_decodes = 0
        self._kv = 0.0
        self._held = 0.0
        self._decoding: list[tuple[float, int, Visit]] = []
        self._prefilling: deque[Visit] = deque()
        self._waiting: deque[Visit] = deque()
        self._cached: OrderedDict[int, int] = OrderedDict()
        self._num_cached = 0
        self._num_in_prefill = 0.0
        # Tokens of prompts in the current step, and how many of them are not computed yet.
        self._chunk = self._chunk_left = 0.0
        self._num_visits = 0
        self._step_s = inf

    @property
    def step_s(self) -> float:
        """What a step takes now; infinite while there is nothing to do."""
        return self._step_s

    def cached_tokens(self, conversation: int) -> int:
        """How much of a conversation is cached."""
        return self._cached.get(conversation, 0)

    def arrive(self, visit: Visit) -> None:
        """A request comes now: `advance` was called for this time."""
        self.num_open += 1
        visit.num_left = visit.turn.num_prompt
        self.num_to_compute += visit.num_left
        self._waiting.append(visit)
        self._admit()

    def advance(self, until_s: float) -> None:
        """Let time pass."""
        while self.now_s < until_s:
            if not self._num_decodes and not self._prefilling:
                self.now_s, self._step_s = until_s, inf
                return
            self._pass_until(until_s)

    def _pass_until(self, until_s: float) -> None:
        """Until this time, or until a stream ends, or a prompt or the step's part of prompts is computed before."""
        if self._prefilling and self._chunk_left <= _NOTHING:
            # What is left of the first prompt counts, whatever rounding made of the sum.
            wanted = max(self._num_in_prefill, self._prefilling[0].num_left, _NOTHING)
            self._chunk = self._chunk_left = min(self._budget - self._num_decodes, wanted)
        chunk = self._chunk if self._prefilling else 0.0
        self._step_s = step_s = self._costs.seconds(self._num_decodes, self._kv, chunk)
        num_steps = (until_s - self.now_s) / step_s
        end_steps = self._decoding[0][0] - self._progress if self._decoding else inf
        prompt_steps = self._prefilling[0].num_left / chunk if chunk else inf
        chunk_steps = self._chunk_left / chunk if chunk else inf
        first = min(end_steps, prompt_steps, chunk_steps)
        if first > num_steps:
            self._account(num_steps, chunk)
            self.now_s = until_s
            return
        first = max(first, 0.0)
        self._account(first, chunk)
        self.now_s += first * step_s
        if end_steps <= first:
            self._end(heapq.heappop(self._decoding)[2])
        elif self._prefilling and self._prefilling[0].num_left <= _NOTHING:
            self._begin_to_decode(self._prefilling.popleft())

    def _account(self, num_steps: float, chunk: float) -> None:
        grown = num_steps * self._num_decodes
        self._progress += num_steps
        self._kv += grown
        self._held += grown
        self.num_tokens += grown
        self.num_steps += num_steps
        if chunk:
            computed = num_steps * chunk
            self._num_in_prefill -= computed
            self.num_to_compute -= computed
            self._chunk_left -= computed
            # All of it is spent on the first prompt; the next ones begin when that is done.
            self._prefilling[0].num_left -= computed

    def _admit(self) -> None:
        """Let those who wait in while there are slots and room."""
        while self._waiting and self._num_decodes + len(self._prefilling) < self._max_num_seqs:
            visit = self._waiting[0]
            num_prompt = visit.turn.num_prompt
            is_alone = not self._num_decodes and not self._prefilling
            if self._held + num_prompt > self._capacity and not is_alone:
                return
            self._waiting.popleft()
            conversation = visit.turn.conversation
            cached = self._cached.pop(conversation, 0)
            self._num_cached -= cached
            visit.num_cached = min(cached, (num_prompt - 1) // BLOCK_SIZE * BLOCK_SIZE)
            visit.num_left = num_prompt - visit.num_cached
            self.num_to_compute -= visit.num_cached
            self._num_in_prefill += visit.num_left
            self._held += num_prompt
            self._make_room()
            self._prefilling.append(visit)

    def _begin_to_decode(self, visit: Visit) -> None:
        self._num_in_prefill -= visit.num_left
        self.num_to_compute -= visit.num_left
        visit.num_left = 0.0
        self._num_decodes += 1
        self._num_visits += 1
        self._kv += visit.turn.num_prompt
        visit.first_s = self.now_s + _JOIN_STEPS * self._costs.seconds(self._num_decodes, self._kv, 0)
        self.num_tokens += 1 - _JOIN_STEPS
        end = self._progress + _JOIN_STEPS + visit.turn.num_answered - 1
        self.started.append(visit)
        heapq.heappush(self._decoding, (end, self._num_visits, visit))

    def _end(self, visit: Visit) -> None:
        turn = visit.turn
        visit.ended_s = self.now_s
        self.num_open -= 1
        self._num_decodes -= 1
        # What it was counted to hold: its prompt, and a token for each step since.
        held = turn.num_prompt + _JOIN_STEPS + turn.num_answered - 1
        self._kv -= held
        self._held -= held
        kept = (turn.num_total - 1) // BLOCK_SIZE * BLOCK_SIZE
        self._cached[turn.conversation] = kept
        self._num_cached += kept
        self._make_room()
        self.ended.append(visit)
        self._admit()

    def _make_room(self) -> None:
        """Evict what no longer fits beside the running streams."""
        excess = self._num_cached + self._held - self._capacity
        while excess > 0 and self._cached:
            conversation = next(iter(self._cached))
            lost = min(self._cached[conversation], math.ceil(excess))
            self._cached[conversation] -= lost
            if not self._cached[conversation]:
                del self._cached[conversation]
            self._num_cached -= lost
            excess -= lost
