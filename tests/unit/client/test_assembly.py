"""What does a client send to go on with a stream that broke?"""

from dataclasses import replace

from pagewire.v1 import generate_pb2
from pagewire_client.assembly import Assembly
from pagewire_client.outputs import request_output
from pagewire_client.types import Completion, TokenLogprobs, Usage


def broken(*deltas: tuple[int, list[int]]) -> Assembly:
    """A stream that was accepted and gave this much, by choice."""
    assembly = Assembly()
    assembly.add(generate_pb2.GenerateResponse(accepted=generate_pb2.Accepted(request_id="r", seed=7)))
    for index, token_ids in deltas:
        delta = generate_pb2.Delta(index=index, token_ids=token_ids)
        assembly.add(generate_pb2.GenerateResponse(delta=delta))
    return assembly


def test_what_came_is_added_to_what_the_caller_had() -> None:
    request = generate_pb2.GenerateRequest(resume=generate_pb2.Resume(received_token_ids=[1, 2]))
    again = broken((0, [3]), (0, [4, 5])).continuing(request)
    assert again is not None
    assert (again.resume.request_id, again.resume.seed) == ("r", 7)
    assert list(again.resume.received_token_ids) == [1, 2, 3, 4, 5]
    assert list(request.resume.received_token_ids) == [1, 2]


def test_each_choice_goes_on_after_its_own_tokens() -> None:
    had = [generate_pb2.ReceivedChoice(index=1, received_token_ids=[9])]
    request = generate_pb2.GenerateRequest(
        sampling=generate_pb2.SamplingParams(n=3), resume=generate_pb2.Resume(choices=had)
    )
    again = broken((0, [3]), (1, [8]), (0, [4])).continuing(request)
    assert again is not None
    assert {choice.index: list(choice.received_token_ids) for choice in again.resume.choices} == {0: [3, 4], 1: [9, 8]}
    assert not again.resume.received_token_ids


def test_what_came_of_the_prompt_is_counted() -> None:
    entries = [generate_pb2.TokenLogprobs(token_id=token_id, logprob=-1.0, rank=2) for token_id in (5, 6)]
    assembly = broken()
    echo = generate_pb2.Delta(text="the prompt", prompt_token_ids=[4, 5, 6])
    for delta in (
        echo,
        generate_pb2.Delta(prompt_logprobs=entries[:1]),
        generate_pb2.Delta(prompt_logprobs=entries[1:]),
    ):
        assembly.add(generate_pb2.GenerateResponse(delta=delta))
    assembly.add(generate_pb2.GenerateResponse(delta=generate_pb2.Delta(token_ids=[7], text=" ends")))
    again = assembly.continuing(generate_pb2.GenerateRequest())
    assert again is not None
    assert (again.resume.num_received_prompt_logprobs, again.resume.num_received_echoes) == (2, 1)
    assert list(again.resume.received_token_ids) == [7]
    assembly.add(generate_pb2.GenerateResponse(finished=generate_pb2.Finished()))
    assert assembly.completion is not None
    assert [entry.token_id for entry in assembly.completion.prompt_logprobs] == [5, 6]
    assert (assembly.completion.text, assembly.completion.token_ids) == ("the prompt ends", (7,))


def test_outputs_of_vllms_shape_begin_with_no_logprobs_for_the_first_token() -> None:
    entry = TokenLogprobs(5, -1.0, 2, ())
    completion = Completion("r", 7, "m", (), Usage(2, 0, 0), prompt_logprobs=(entry,))
    assert request_output(completion, None, [4, 5]).prompt_logprobs == [None, entry]
    assert request_output(replace(completion, prompt_logprobs=()), None, [4, 5]).prompt_logprobs is None
