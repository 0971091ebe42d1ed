"""The slots against a naive model of one Python object per sequence, driven by random step batches."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from gpu_worker.execution.device_slots import DeviceSlots
from gpu_worker.input_batch import InputBatch, StepBatchError
from gpu_worker.step_inputs import SlotShape, StepInputs
from pagewire.ipc.requests import Penalties, Sampling, TokenRules
from pagewire.ipc.steps import AddedSequence, StepBatch

CPU = torch.device("cpu")
MAX_NUM_SEQS, MAX_MODEL_LEN, NUM_BLOCKS = 5, 23, 40


def int_bytes(numbers: list[int]) -> bytes:
    return np.array(numbers, dtype="<i4").tobytes()


def step(
    slots: list[int] = (),
    num_tokens: list[int] = (),
    sampled: list[int] = (),
    removed: list[int] = (),
    added: list[AddedSequence] = (),
    new_blocks: list[tuple[int, int]] = (),
) -> StepBatch:
    return StepBatch(
        0,
        int_bytes(removed),
        list(added),
        int_bytes([slot for slot, _ in new_blocks]),
        int_bytes([block for _, block in new_blocks]),
        int_bytes(slots),
        int_bytes(num_tokens),
        bytes(sampled),
    )


def added(
    slot: int,
    tokens: list[int],
    blocks: list[int],
    num_prompt: int | None = None,
    num_computed: int = 0,
    sampling: Sampling | None = None,
) -> AddedSequence:
    return AddedSequence(
        slot,
        f"request-{slot}",
        int_bytes(tokens),
        len(tokens) if num_prompt is None else num_prompt,
        num_computed,
        int_bytes(blocks),
        sampling or Sampling(0.0, 0, 1.0, 0.0, 0),
    )


@dataclass
class Sequence:
    """What the naive model knows of one sequence."""

    tokens: list[int]
    num_prompt: int
    num_computed: int
    sampling: Sampling
    blocks: list[int] = field(default_factory=list)


class Slots:
    """An InputBatch, and the device's half of the slots, on the CPU."""

    def __init__(self, max_num_seqs: int, max_model_len: int, block_size: int) -> None:
        shape = SlotShape(max_num_seqs, max_model_len, block_size)
        self.batch = InputBatch(shape, NUM_BLOCKS)
        self.device = DeviceSlots(shape, CPU)

    def apply(self, message: StepBatch) -> StepInputs:
        inputs = self.batch.apply(message)
        self.device.write(inputs)
        return inputs

    def input_ids(self, inputs: StepInputs) -> list[int]:
        return self.device.token_ids[torch.from_numpy(inputs.token_places)].tolist()

    def tables(self, inputs: StepInputs) -> torch.Tensor:
        return self.device.block_tables[torch.from_numpy(inputs.slots)]

    def store(self, inputs: StepInputs, token_ids: list[int]) -> None:
        self.device.token_ids[torch.from_numpy(inputs.drawn_places)] = torch.tensor(token_ids, dtype=torch.int32)


class SlotMachine(RuleBasedStateMachine):
    """Random steps: sequences leave, arrive, grow, compute and draw, several of each in one batch."""

    @initialize(block_size=st.sampled_from([1, 3, 16]))
    def start(self, block_size: int) -> None:
        self.block_size = block_size
        self.batch = Slots(MAX_NUM_SEQS, MAX_MODEL_LEN, block_size)
        self.sequences: dict[int, Sequence] = {}

    @rule(data=st.data())
    def run_step(self, data: st.DataObject) -> None:
        removed = data.draw(
            st.lists(st.sampled_from(sorted(self.sequences)), unique=True) if self.sequences else st.just([])
        )
        for slot in removed:
            del self.sequences[slot]
        arrivals = [self._arrive(data, slot) for slot in self._free(data)]
        new_blocks = self._grow(data)
        chosen = data.draw(st.permutations(sorted(self.sequences)))
        counts = {slot: self._count(data, self.sequences[slot]) for slot in chosen}
        slots = sorted((slot for slot in chosen if counts[slot] > 0), key=lambda slot: counts[slot] > 1)
        sampled = [self._reaches_end(slot, counts[slot]) and data.draw(st.booleans()) for slot in slots]
        num_tokens = [counts[slot] for slot in slots]
        message = step(slots, num_tokens, [int(flag) for flag in sampled], removed, arrivals, new_blocks)
        inputs = self.batch.apply(message)
        self._compare(inputs, slots, num_tokens, sampled)
        drawn = [data.draw(st.integers(0, 999)) for flag in sampled if flag]
        self.batch.store(inputs, drawn)
        for slot, count in zip(slots, num_tokens, strict=True):
            self.sequences[slot].num_computed += count
        for slot, token in zip([s for s, flag in zip(slots, sampled, strict=True) if flag], drawn, strict=True):
            self.sequences[slot].tokens.append(token)

    def _free(self, data: st.DataObject) -> list[int]:
        free = [slot for slot in range(MAX_NUM_SEQS) if slot not in self.sequences]
        return data.draw(st.lists(st.sampled_from(free), unique=True)) if free else []

    def _arrive(self, data: st.DataObject, slot: int) -> AddedSequence:
        tokens = data.draw(st.lists(st.integers(0, 999), min_size=1, max_size=MAX_MODEL_LEN))
        num_prompt = data.draw(st.integers(1, len(tokens)))
        num_computed = data.draw(st.integers(0, len(tokens) - 1))
        blocks = data.draw(self._blocks(-(-num_computed // self.block_size)))
        sampling = Sampling(
            data.draw(st.sampled_from([0.0, 0.5, 1.0])),
            data.draw(st.integers(0, 50)),
            data.draw(st.sampled_from([0.25, 1.0])),
            data.draw(st.sampled_from([0.0, 0.125])),
            data.draw(st.sampled_from([0, 1, 2**63, 2**64 - 1])),
            data.draw(st.sampled_from([None, Penalties(1.5, 0.0, 0.0), Penalties(1.0, 0.25, -0.5)])),
            data.draw(st.sampled_from([None, 0, 3])),
            data.draw(st.sampled_from([None, TokenRules(banned_ids=int_bytes([5]))])),
        )
        self.sequences[slot] = Sequence(list(tokens), num_prompt, num_computed, sampling, list(blocks))
        return added(slot, tokens, blocks, num_prompt, num_computed, sampling)

    def _blocks(self, least: int) -> st.SearchStrategy[list[int]]:
        most = -(-MAX_MODEL_LEN // self.block_size)
        return st.lists(st.integers(0, NUM_BLOCKS - 1), min_size=least, max_size=most)

    def _grow(self, data: st.DataObject) -> list[tuple[int, int]]:
        """New blocks, those of different sequences mixed."""
        news: list[tuple[int, int]] = []
        for slot, sequence in self.sequences.items():
            room = -(-MAX_MODEL_LEN // self.block_size) - len(sequence.blocks)
            blocks = data.draw(st.lists(st.integers(0, NUM_BLOCKS - 1), max_size=room))
            news += [(slot, block) for block in blocks]
        mixed = data.draw(st.permutations(news))
        for slot, block in mixed:
            self.sequences[slot].blocks.append(block)
        return mixed

    def _count(self, data: st.DataObject, sequence: Sequence) -> int:
        room = min(len(sequence.blocks) * self.block_size, len(sequence.tokens), MAX_MODEL_LEN)
        return data.draw(st.integers(0, max(0, room - sequence.num_computed)))

    def _reaches_end(self, slot: int, count: int) -> bool:
        sequence = self.sequences[slot]
        return sequence.num_computed + count == len(sequence.tokens)

    def _compare(self, inputs, slots, num_tokens, sampled) -> None:  # type: ignore[no-untyped-def]
        input_ids, tables = self.batch.input_ids(inputs), self.batch.tables(inputs)
        row, sampled_rows, wanted = 0, [], []
        for index, (slot, count) in enumerate(zip(slots, num_tokens, strict=True)):
            sequence = self.sequences[slot]
            assert inputs.query_start[index] == row
            assert inputs.seq_lens[index] == sequence.num_computed + count
            for position in range(sequence.num_computed, sequence.num_computed + count):
                block = sequence.blocks[position // self.block_size]
                assert input_ids[row] == sequence.tokens[position]
                assert inputs.positions[row] == position
                assert inputs.slot_mapping[row] == block * self.block_size + position % self.block_size
                assert tables[index, position // self.block_size] == block
                row += 1
            used = -(-(sequence.num_computed + count) // self.block_size)
            assert tables[index, :used].tolist() == sequence.blocks[:used]
            if sampled[index]:
                sampled_rows.append(row - 1)
                wanted.append(sequence)
        assert inputs.query_start[len(slots)] == row == len(input_ids)
        assert inputs.num_decodes == sum(count == 1 for count in num_tokens)
        assert inputs.max_query_len == max(num_tokens, default=0)
        assert inputs.max_seq_len == max(inputs.seq_lens.tolist(), default=0)
        assert inputs.sampled_rows.tolist() == sampled_rows
        sampling = inputs.sampling
        assert sampling.temperature.tolist() == [s.sampling.temperature for s in wanted]
        penalties = [(row, s) for row, s in enumerate(wanted) if s.sampling.penalties is not None]
        assert inputs.penalties.rows.tolist() == [row for row, _ in penalties]
        assert [self.sequences[slot] for slot in inputs.penalties.slots] == [s for _, s in penalties]
        assert inputs.penalties.num_prompt.tolist() == [s.num_prompt for _, s in penalties]
        assert inputs.penalties.num_tokens.tolist() == [len(s.tokens) for _, s in penalties]
        factors = zip(inputs.penalties.repetition, inputs.penalties.frequency, inputs.penalties.presence, strict=True)
        assert [Penalties(*map(float, each)) for each in factors] == [s.sampling.penalties for _, s in penalties]
        rules = [(row, s) for row, s in enumerate(wanted) if s.sampling.rules is not None]
        assert [(ruled.row, self.sequences[ruled.slot]) for ruled in inputs.rules] == rules
        assert [(ruled.num_prompt, ruled.num_tokens) for ruled in inputs.rules] == [
            (s.num_prompt, len(s.tokens)) for _, s in rules
        ]
        logprobs = [(row, s.sampling.num_logprobs) for row, s in enumerate(wanted)]
        logprobs = [(row, count) for row, count in logprobs if count is not None]
        assert list(zip(inputs.logprobs.rows, inputs.logprobs.num_logprobs, strict=True)) == logprobs
        assert sampling.top_k.tolist() == [s.sampling.top_k for s in wanted]
        assert sampling.top_p.tolist() == [s.sampling.top_p for s in wanted]
        assert sampling.min_p.tolist() == [s.sampling.min_p for s in wanted]
        assert sampling.seeds.view(np.uint64).tolist() == [s.sampling.seed for s in wanted]
        assert sampling.positions.tolist() == [len(s.tokens) - s.num_prompt for s in wanted]


TestSlotMachine = SlotMachine.TestCase
TestSlotMachine.settings = settings(max_examples=60, stateful_step_count=20)


def new_batch() -> Slots:
    batch = Slots(MAX_NUM_SEQS, MAX_MODEL_LEN, 4)
    batch.apply(step([2], [3], [1], added=[added(2, [5, 6, 7], [9])]))
    return batch


def test_apply_reads_a_token_that_was_stored_on_the_device() -> None:
    batch = Slots(MAX_NUM_SEQS, MAX_MODEL_LEN, 4)
    inputs = batch.apply(step([2], [3], [1], added=[added(2, [5, 6, 7], [9])]))
    batch.store(inputs, [123])
    after = batch.apply(step([2], [1], [1]))
    assert batch.input_ids(after) == [123]
    assert after.positions.tolist() == [3]
    assert after.slot_mapping.tolist() == [39]


def test_apply_of_a_batch_without_slots_gives_no_rows() -> None:
    inputs = new_batch().apply(step(removed=[2]))
    assert len(inputs.positions) == len(inputs.sampled_rows) == 0


def test_a_sequence_of_full_length_can_draw_one_more_token() -> None:
    batch = Slots(2, 4, 4)
    first = batch.apply(step([0], [4], [1], added=[added(0, [1, 2, 3, 4], [0]), added(1, [8], [1])]))
    batch.store(first, [77])
    assert batch.input_ids(batch.apply(step([1], [1], [0]))) == [8]


def test_clear_frees_every_slot() -> None:
    batch = new_batch()
    batch.batch.clear()
    batch.apply(step(added=[added(2, [1], [0])]))


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (step(removed=[1]), "not in use"),
        (step(removed=[99]), "not in use"),
        (step(removed=[-1]), "not in use"),
        (step(added=[added(2, [1], [0])]), "slot 2 is not free"),
        (step(added=[added(5, [1], [0])]), "slot 5 is not free"),
        (step(added=[added(-1, [1], [0])]), "slot -1 is not free"),
        (step(added=[added(0, [], [0])]), "0 tokens"),
        (step(added=[added(0, [1] * 24, [0])]), "24 tokens"),
        (step(added=[added(0, [1, 2], [0], num_computed=2)]), "2 tokens"),
        (step(added=[added(0, [1], [NUM_BLOCKS])]), "blocks of slot 0"),
        (step(added=[added(0, [1], [0] * 7)]), "blocks of slot 0"),
        (step(new_blocks=[(1, 0)]), "new blocks"),
        (step(new_blocks=[(2, -1)]), "new blocks"),
        (step(new_blocks=[(2, 0)] * 6), "more blocks"),
        (step([2], [2], [0]), "past the known tokens"),
        (step([2], [0], [0]), "past the known tokens"),
        (step([1], [1], [0]), "not in use"),
        (step([2, 2], [1, 1], [0, 0]), "twice"),
        (step([2], [1, 1], [0]), "different lengths"),
        (step([0], [1], [1], added=[added(0, [1, 2], [0])]), "a draw before"),
        (step([0], [5], [0], added=[added(0, [1] * 5, [0])]), "without blocks"),
        (step([0, 2], [2, 1], [0, 0], added=[added(0, [1, 2], [0])]), "single tokens"),
    ],
)
def test_apply_refuses_what_contradicts_the_slots(message: StepBatch, reason: str) -> None:
    with pytest.raises(StepBatchError, match=reason):
        new_batch().apply(message)
