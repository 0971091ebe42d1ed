"""Does a recorder write what happened, in the form of a Chrome trace, and nothing when it is off?"""

import json
import os

from pagewire.ipc.trace import NO_TRACE, Recorder


def test_recorder_writes_complete_events_in_microseconds(tmp_path):
    recorder = Recorder("worker-0", tmp_path / "new")
    start = recorder.now()
    recorder.add("launch", start, 7)
    recorder.add("turn", start)
    recorder.close()
    (file,) = (tmp_path / "new").iterdir()
    name, launch, turn = json.loads(file.read_text())
    pid = os.getpid()
    assert name == {"name": "process_name", "ph": "M", "pid": pid, "args": {"name": "worker-0"}}
    assert launch["ts"] == turn["ts"] == start / 1000
    assert 0 <= launch["dur"] <= turn["dur"] < 1e6
    assert (launch["ph"], launch["pid"], launch["args"]) == ("X", pid, {"step_id": 7})
    assert "args" not in turn


def test_recorder_without_a_directory_does_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    NO_TRACE.add("launch", NO_TRACE.now(), 7)
    NO_TRACE.close()
    assert NO_TRACE.now() == 0
    assert list(tmp_path.iterdir()) == []
