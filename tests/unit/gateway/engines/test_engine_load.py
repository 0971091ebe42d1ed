"""Does the gateway know the load of an engine, of which it sends a part and others the rest?"""

from pagewire.ipc.requests import Load
from scheduler_service.gateway.engines.engine_load import EngineLoad, LoadEstimate


def test_what_is_sent_counts_at_once_and_until_it_is_done() -> None:
    estimate = LoadEstimate()
    first, second = estimate.enter(100), estimate.enter(50)
    assert estimate.now == EngineLoad(2, 150)
    first.note_output()
    first.note_output()
    assert estimate.now == EngineLoad(2, 50)
    first.end()
    first.end()
    assert estimate.now == EngineLoad(1, 50)
    second.end()
    second.note_output()
    assert estimate.now == EngineLoad(0, 0)


def test_what_others_sent_is_the_rest_of_what_the_scheduler_tells() -> None:
    estimate = LoadEstimate()
    share = estimate.enter(100)
    estimate.take(Load(num_running=3, num_waiting=2, num_free_blocks=0, num_tokens_to_compute=400))
    assert estimate.now == EngineLoad(5, 400)
    share.end()
    assert estimate.now == EngineLoad(4, 300)
    estimate.take(Load(1, 0, 0, 0))
    assert estimate.now == EngineLoad(1, 0)


def test_a_scheduler_that_does_not_know_of_the_newest_request_has_no_negative_load() -> None:
    estimate = LoadEstimate()
    estimate.enter(100)
    estimate.take(Load(0, 0, 0, 0))
    assert estimate.now == EngineLoad(1, 100)
