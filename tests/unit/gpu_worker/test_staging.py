"""A step's numbers as the captured programs find them: in place, padded, aligned."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from gpu_worker.execution.staging import DrawInputs, LayerInputs, PaddedShape, Staging
from gpu_worker.execution.worst_case import NO_INPUTS, worst_case
from gpu_worker.step_inputs import SlotShape, StepInputs

SLOTS = SlotShape(max_num_seqs=6, max_model_len=20, block_size=4)
PADDING_SLOT, PADDING_PLACE = 6, 126


def new_staging() -> Staging:
    return Staging(8, 64, PADDING_SLOT, PADDING_PLACE, torch.device("cpu"))


def check(view: torch.Tensor, values: np.ndarray, padding: float) -> None:
    assert view[: len(values)].tolist() == values.tolist()
    assert set(view[len(values) :].tolist()) <= {padding}


def check_all(staging: Staging, inputs: StepInputs, shape: PaddedShape, num_sampled: int) -> None:
    layers, draw = staging.layer_inputs(shape), staging.draw_inputs(num_sampled)
    assert [len(getattr(layers, field.name)) for field in fields(LayerInputs)] == [
        shape.num_seqs + 1,
        *[shape.num_seqs] * 3,
        *[shape.num_tokens] * 3,
    ]
    assert {len(getattr(draw, field.name)) for field in fields(DrawInputs)} == {num_sampled}
    check(layers.query_start, inputs.query_start, float(inputs.query_start[-1]))
    check(layers.seq_lens, inputs.seq_lens, 0)
    check(layers.slots, inputs.slots, PADDING_SLOT)
    check(layers.sampled_rows, inputs.sampled_rows, 0)
    check(layers.positions, inputs.positions, 0)
    check(layers.slot_mapping, inputs.slot_mapping, -1)
    check(layers.token_places, inputs.token_places, PADDING_PLACE)
    check(draw.drawn_places, inputs.drawn_places, PADDING_PLACE)
    sampling = inputs.sampling
    for name, padding in (("temperature", 0), ("top_k", 0), ("top_p", 1), ("min_p", 0), ("seeds", 0), ("positions", 0)):
        check(getattr(draw, name), getattr(sampling, name), padding)


@pytest.mark.parametrize("num_tokens", [3, 6, 50])
@pytest.mark.parametrize(("num_seqs", "num_padded", "num_sampled"), [(6, 50, 6), (8, 64, 8)])
def test_numbers_and_padding_are_where_programs_look(
    num_tokens: int, num_seqs: int, num_padded: int, num_sampled: int
) -> None:
    staging, inputs = new_staging(), worst_case(SLOTS, num_tokens)
    shape = PaddedShape(num_seqs, num_padded, mixed=num_tokens > 6)
    # What another step left there is overwritten.
    staging.send(worst_case(SLOTS, 64), PaddedShape(8, 64, mixed=True), 8)
    staging.send(inputs, shape, num_sampled)
    check_all(staging, inputs, shape, num_sampled)


def test_a_step_of_no_sequence_is_all_padding() -> None:
    staging, shape = new_staging(), PaddedShape(4, 16, mixed=True)
    staging.send(worst_case(SLOTS, 64), PaddedShape(8, 64, mixed=True), 8)
    staging.send(NO_INPUTS, shape, 2)
    check_all(staging, NO_INPUTS, shape, 2)


def test_every_view_is_aligned_for_the_kernels() -> None:
    staging = new_staging()
    base = staging.draw_inputs(1).temperature.data_ptr()
    for num in range(1, 9):
        layers, draw = staging.layer_inputs(PaddedShape(num, 8 * num, mixed=True)), staging.draw_inputs(num)
        views = [getattr(layers, field.name) for field in fields(LayerInputs)]
        views += [getattr(draw, field.name) for field in fields(DrawInputs)]
        assert all((view.data_ptr() - base) % 16 == 0 for view in views)
