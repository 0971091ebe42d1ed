"""Are workloads what they are said to be, and the same every time?"""

from pagewire_client.bench.workload import nano_workload, random_workload


def random_prompts(num_requests=2, vocab_size=1000):
    workload = random_workload(num_requests, 4, 5, temperature=0.0, seed=0, vocab_size=vocab_size)
    assert {request.output_len for request in workload.requests} == {5}
    return [request.prompt for request in workload.requests]


def test_random_prompts_are_of_the_asked_size_and_repeatable():
    prompts = random_prompts(num_requests=3)
    assert [len(prompt) for prompt in prompts] == [4, 4, 4]
    assert all(64 <= token < 936 for prompt in prompts for token in prompt)
    assert prompts == random_prompts(num_requests=3)
    assert all(0 <= token < 10 for prompt in random_prompts(vocab_size=10) for token in prompt)


def test_nano_is_the_published_workload():
    workload = nano_workload()
    summary = workload.summary
    assert (summary.num_requests, summary.num_input_tokens, summary.num_output_tokens) == (256, 142_827, 133_966)
    assert max(token for request in workload.requests for token in request.prompt) == 10_000
    params = workload.params(workload.requests[0])
    assert (params.temperature, params.ignore_eos, params.seed) == (0.6, True, None)
    assert params.max_tokens == workload.requests[0].output_len


def test_a_part_of_nano_is_its_first_requests():
    assert nano_workload(3).requests == nano_workload().requests[:3]
