"""Do lines and progress come out as a terminal, or a file, wants them?"""

import io
import json
import logging

from rich.console import Console

from pagewire.ipc.logs import LogFormat
from scheduler_service.supervisor.output import Output, OutputHandler


def plain():
    return Console(file=io.StringIO(), width=40)


def terminal():
    return Console(file=io.StringIO(), width=80, force_terminal=True, color_system="standard")


def test_lines_carry_the_name_and_are_never_wrapped_or_styled():
    console = plain()
    Output(console).line("worker-0", "[bold]a long line[/] " + "x" * 60)
    assert console.file.getvalue() == "worker-0   | [bold]a long line[/] " + "x" * 60 + "\n"


def test_names_have_colours_of_their_own_on_a_terminal():
    console = terminal()
    output = Output(console)
    for name in ("scheduler", "worker-0", "scheduler"):
        output.line(name, "text")
    first, second, third = (line.split("|")[0] for line in console.file.getvalue().splitlines())
    assert first == third
    assert first.split("m")[0] != second.split("m")[0]
    assert "text" in console.file.getvalue()


def test_plain_progress_is_one_line_per_stage_and_some_seconds(monkeypatch):
    console = plain()
    output = Output(console)
    monkeypatch.setattr("scheduler_service.supervisor.output.time.monotonic", lambda: 100.0 + done)
    for done in range(10):
        output.progress("loading weights", done, 20)
    output.progress("allocating", 0, 0)
    assert console.file.getvalue() == "loading weights: 0 %\nloading weights: 25 %\nallocating ...\n"


def test_progress_can_be_turned_off():
    console = plain()
    Output(console, show_progress=False).progress("loading weights", 1, 2)
    assert console.file.getvalue() == ""


def test_a_new_stage_completes_the_one_before():
    console = terminal()
    output = Output(console)
    output.progress("loading weights", 1, 4)
    output.progress("allocating", 0, 0)
    output.end_progress(is_done=True)
    shown = console.file.getvalue().splitlines()
    assert ["done" in line for line in shown if "loading weights" in line][-1]


def test_a_stage_that_was_cut_off_is_not_done():
    console = terminal()
    output = Output(console)
    output.progress("loading weights", 1, 4)
    output.end_progress(is_done=False)
    assert "25%" in console.file.getvalue()
    assert "done" not in console.file.getvalue()


def json_output(console):
    return Output(console, log_format=LogFormat.JSON)


def test_json_of_a_process_is_passed_on_as_it_is():
    console = plain()
    line = '{"message": "[bold]ready[/] ' + "x" * 100 + '", "n": 1.50}'
    json_output(console).line("worker-0", line)
    assert console.file.getvalue() == line + "\n"


def test_other_lines_become_the_messages_of_json_lines():
    console = terminal()
    output = json_output(console)
    output.line("worker-0", 'Segmentation fault in "x"')
    output.progress("loading weights", 1, 2)
    output.say("pagewire: no such model")
    OutputHandler(output).emit(logging.LogRecord("a", logging.INFO, "f", 1, "child died name=%s", ("worker-0",), None))
    entries = [json.loads(line) for line in console.file.getvalue().splitlines()]
    assert [(entry["process"], entry["message"]) for entry in entries] == [
        ("worker-0", 'Segmentation fault in "x"'),
        ("supervisor", "loading weights: 50 %"),
        ("supervisor", "pagewire: no such model"),
        ("supervisor", "child died name=worker-0"),
    ]
    assert entries[3]["name"] == "worker-0"
