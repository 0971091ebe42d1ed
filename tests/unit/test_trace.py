"""Does a recorder write what happened, in the form of a Chrome trace, and nothing when it is off?"""

import json
import os
import time

from pagewire.ipc.chrome_trace import DEVICE_STEP, NO_TRACE, Recorder
from pagewire_client.bench.chrome_trace import RUN, device_busy


def test_recorder_writes_complete_events_in_microseconds(tmp_path):
    recorder = Recorder("worker-0", tmp_path / "new")
    start = recorder.now()
    recorder.add("launch", start, 7)
    recorder.add("turn", start)
    most_us = (time.monotonic_ns() - start) / 1000
    recorder.close()
    (file,) = (tmp_path / "new").iterdir()
    name, launch, turn = json.loads(file.read_text())
    pid = os.getpid()
    assert name == {"name": "process_name", "ph": "M", "pid": pid, "args": {"name": "worker-0"}}
    assert launch["ts"] == turn["ts"] == start / 1000
    assert 0 <= launch["dur"] <= turn["dur"] <= most_us
    assert (launch["ph"], launch["pid"], launch["args"]) == ("X", pid, {"step_id": 7})
    assert "args" not in turn


def test_recorder_without_a_directory_does_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    NO_TRACE.add("launch", NO_TRACE.now(), 7)
    NO_TRACE.close()
    assert NO_TRACE.now() == 0
    assert list(tmp_path.iterdir()) == []


def test_device_steps_have_a_track_of_their_own(tmp_path):
    recorder = Recorder("worker-0", tmp_path)
    recorder.add("launch", recorder.now(), 7)
    recorder.add_device_step((5_000, 8_000), 7)
    recorder.close()
    (file,) = tmp_path.iterdir()
    _, launch, step = json.loads(file.read_text())
    assert (step["name"], step["ts"], step["dur"], step["args"]) == (DEVICE_STEP, 5, 3, {"step_id": 7})
    assert step["tid"] != launch["tid"]


def test_device_busy_is_of_the_last_run_and_the_idlest_device():
    def step(pid, begin, end):
        return {"name": DEVICE_STEP, "pid": pid, "ts": begin, "dur": end - begin}

    runs = [{"name": RUN, "ts": 0, "dur": 50}, {"name": RUN, "ts": 100, "dur": 100}]
    first = [step(1, 0, 1), step(1, 40, 41)]
    busy = [step(1, 100, 120), step(1, 115, 150)]
    idle = [step(2, 100, 110), step(2, 130, 140)]
    assert device_busy([*runs, *first, *busy]) == 1.0
    assert device_busy([*runs, *first, *busy, *idle]) == 0.5
    assert device_busy(runs) is None
