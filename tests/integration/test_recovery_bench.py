"""Does the benchmark of recovery measure deaths of real processes?"""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.recovery import Reader

ROOT = Path(__file__).parents[2]
FLAGS = ["--cpu-memory-gib", "0.1", "--threads", "1", "--max-model-len", "512"]


def test_a_stream_moves_again_after_the_longest_time_without_a_token():
    reader = Reader(client=None, seed=0, max_tokens=1, arrivals_s=[0.0, 3.0, 3.1, 3.2, 5.2, 5.4], resumed_s=[0.1, 5.2])
    assert reader.moved_again_s(death_s=3.15) == 5.2
    assert reader.moved_again_s(death_s=4.0) == 5.2
    assert reader.moved_again_s(death_s=5.3) == 5.4
    assert reader.resumed_again_s(death_s=4.0) == 5.2
    assert reader.resumed_again_s(death_s=5.3) is None


def test_deaths_of_scheduler_and_gateway_are_measured():
    command = [sys.executable, "-m", "benchmarks.recovery", "--model", "dummy:tiny", "--rounds", "1", "--streams", "8"]
    result = subprocess.run(
        [*command, "--victims", "scheduler", "gateway-0", "--json", *FLAGS], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    scheduler, gateway = json.loads(result.stdout)["deaths"]
    assert (scheduler["victim"], scheduler["others_lived"], len(scheduler["since_death_s"])) == ("scheduler", True, 8)
    assert all(
        0 < since_start < since_death
        for since_start, since_death in zip(scheduler["since_start_s"], scheduler["since_death_s"], strict=True)
    )
    assert (gateway["victim"], gateway["others_lived"], gateway["since_start_s"]) == ("gateway-0", True, None)
    assert all(since_death > 0 for since_death in gateway["since_death_s"])
