"""Does an attempt go to another gateway than the one before it, however many calls take turns?"""

import itertools

import grpc
import pytest

from pagewire_client.gateways import Gateways


@pytest.fixture
def gateways() -> Gateways[grpc.Channel]:
    return Gateways("127.0.0.1:1,127.0.0.1:2", grpc.insecure_channel)


def test_calls_are_spread_over_the_gateways(gateways):
    first = [next(gateways.turns()) for _ in range(6)]
    assert first[:2] * 3 == first
    assert first[0] is not first[1]


@pytest.mark.parametrize("num_between", [0, 1, 2, 3])
def test_a_second_attempt_goes_to_the_other_gateway(gateways, num_between):
    turns = gateways.turns()
    first = next(turns)
    for _ in range(num_between):
        next(gateways.turns())
    assert next(turns) is not first


def test_a_single_gateway_is_tried_again():
    turns = Gateways("127.0.0.1:1", grpc.insecure_channel).turns()
    assert len(set(itertools.islice(turns, 3))) == 1
