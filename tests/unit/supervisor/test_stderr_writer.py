"""Does text reach a file descriptor in order, and does a reader that does not read hold nobody up?"""

import os
import re

import pytest

from scheduler_service.supervisor.stderr_writer import StderrWriter, guarded_stderr
from tests.fakes.patience import PATIENCE_S


@pytest.fixture
def pipe():
    """Descriptors of a pipe. The reading end is closed at the end; a writer's thread may still use the other one."""
    reader, fd = os.pipe()
    yield reader, fd
    os.close(reader)


def read_lines(fd: int, count: int) -> list[str]:
    """Read until that many lines have come."""
    data = b""
    while data.count(b"\n") < count:
        data += os.read(fd, 1 << 16)
    return data.decode().splitlines()


def test_text_arrives_in_order_and_whole(pipe):
    reader, fd = pipe
    writer = StderrWriter(fd)
    for number in range(100):
        writer.write(f"{number} ü \udcff\n")
    assert writer.finish(patience_s=PATIENCE_S)
    assert read_lines(reader, 100) == [f"{number} ü \\udcff" for number in range(100)]


def test_lines_that_nobody_reads_are_dropped_and_counted(pipe):
    reader, fd = pipe
    writer = StderrWriter(fd, max_queued_writes=4)
    num_lines, line = 1000, "x" * 1000 + "\n"
    writer.write("y" * (1 << 20))
    for _ in range(num_lines):
        writer.write(line)
    text, num_dropped = "", 0
    # While the first report is written, the queue may fill again: then another one follows.
    while num_dropped == 0 or text.count(line) + num_dropped < num_lines:
        text += os.read(reader, 1 << 16).decode()
        num_dropped = sum(map(int, re.findall(r"(\d+) lines dropped, standard error was not read", text)))
        writer.write("")
    writer.finish()
    assert text.count(line) + num_dropped == num_lines


def test_finish_gives_up_on_a_reader_that_does_not_read(pipe):
    _, fd = pipe
    writer = StderrWriter(fd, max_queued_writes=4)
    writer.write("x" * (1 << 20))
    assert not writer.finish(patience_s=0.05)


def test_what_others_write_to_the_descriptor_goes_the_same_way(pipe):
    reader, fd = pipe
    real = os.dup(2)
    os.dup2(fd, 2)
    try:
        with guarded_stderr(PATIENCE_S) as writer:
            writer.write("one\n")
            os.write(2, b"two\n")
        os.write(2, b"three\n")
    finally:
        os.dup2(real, 2)
        os.close(real)
    assert sorted(read_lines(reader, 3)[:2]) == ["one", "two"]
