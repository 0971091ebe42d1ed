"""What does an open stream cost its gateway? CPU time for each token, message and request, and memory.

Measured of a real gateway, between a fake scheduler and real clients.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.overload import measure_streams as measure_open_streams
from scheduler_service.bench.gateway import measure
from scheduler_service.supervisor.dummy_model import write_dummy

# Streams, tokens of each, tokens a second in all: from a message for each token to many tokens in one.
_RUNS = ((400, 100, 3_000.0), (400, 100, 8_000.0), (1000, 60, 30_000.0), (1000, 100, 60_000.0), (1500, 4, 3_000.0))
_FEW, _MANY = 250, 1500


def measure_streams() -> dict[str, float]:
    """Microseconds of CPU time by least squares over runs of different rates, and KiB of a stream."""
    rows, costs = [], []
    with tempfile.TemporaryDirectory() as folder:
        model = write_dummy("tiny", Path(folder))
        for num_streams, num_tokens, rate in _RUNS:
            run = measure(model, num_streams, num_tokens, rate, 1)
            rows.append([1.0, 1.0 / run["tokens_per_message"], 1.0 / num_tokens])
            costs.append(run["cpu_us_per_token"])
    # Of the relative errors: the costs of a token differ tenfold.
    token, message, request = np.linalg.lstsq(
        np.array(rows) / np.array(costs)[:, None], np.ones(len(rows)), rcond=None
    )[0]
    few, many = _peak_mib(_FEW), _peak_mib(_MANY)
    return {
        "gateway_token_us": float(token),
        "gateway_write_us": float(message),
        "gateway_request_us": float(request),
        "gateway_stream_kib": 1024 * (many - few) / (_MANY - _FEW),
        "gateway_base_mib": few - _FEW * (many - few) / (_MANY - _FEW),
    }


def _peak_mib(num_streams: int) -> float:
    flags = argparse.Namespace(streams=num_streams, tokens=30, gateways=1, steps_per_s=2000.0, clients=1)
    return float(measure_open_streams(flags)["gateway_peak_mib"][0])
