"""Does the command line do what it says? Each command as a process of its own, against a fake service."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pagewire.v1 import inference_pb2
from tests.fakes import fake_gateway as fake
from tests.fakes.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]


def pagewire(*arguments, stdin="", **environment):
    """Run one command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "pagewire_client", *arguments],
        cwd=ROOT,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, "TERM": "dumb", "COLUMNS": "120", **environment},
    )


@pytest.fixture
def gateway():
    with fake.FakeGateway(fake.FakeService()) as running:
        yield running


def test_generate_prints_the_answer(gateway):
    done = pagewire("generate", "hello", "--address", gateway.address, "-n", "4", "-t", "0", "--stop", "END")
    assert (done.returncode, done.stdout, done.stderr) == (0, "t0 t1 t2 t3 \n", "")
    (request,) = gateway.service.requests
    assert request.chat.messages[0].content == "hello"
    assert (request.sampling.temperature, list(request.stopping.stop)) == (0.0, ["END"])


def test_generate_raw_reads_standard_input_and_the_environment(gateway):
    done = pagewire("generate", "-", "--raw", stdin="from a pipe", PAGEWIRE_ADDRESS=gateway.address)
    assert done.returncode == 0
    assert gateway.service.requests[0].text == "from a pipe"


def test_generate_json_is_the_whole_completion(gateway):
    done = pagewire("generate", "hello", "-a", gateway.address, "--json")
    answer = json.loads(done.stdout)
    assert answer["choices"][0]["text"] == "t0 t1 t2 "
    assert answer["choices"][0]["finish_reason"] == "length"


def test_generate_waits_for_a_service_that_is_starting():
    with fake.FakeGateway(fake.FakeService(num_starting_answers=3)) as gateway:
        done = pagewire("generate", "hello", "-a", gateway.address)
    assert (done.returncode, done.stdout) == (0, "t0 t1 t2 \n")


def test_chat_keeps_the_history_until_cleared(gateway):
    done = pagewire(
        "chat", "-a", gateway.address, "--system", "be kind", stdin="one\ntwo\n/clear\nthree\n/exit\nfour\n"
    )
    assert done.returncode == 0
    turns = [[message.content for message in request.chat.messages] for request in gateway.service.requests]
    assert turns == [["be kind", "one"], ["be kind", "one", "t0 t1 t2 ", "two"], ["be kind", "three"]]


def test_models_shows_what_is_served(gateway):
    done = pagewire("models", "-a", gateway.address)
    assert done.returncode == 0
    assert "fake" in done.stdout
    assert "engine ready" in done.stdout
    assert json.loads(pagewire("models", "-a", gateway.address, "--json").stdout)["models"][0]["vocab_size"] == 256


@pytest.mark.parametrize("command", [["generate", "x"], ["chat"], ["models"], ["bench", "serve"]])
def test_no_service_is_one_clear_line(command):
    done = pagewire(*command, "-a", "127.0.0.1:1")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("pagewire: no service answers at 127.0.0.1:1: start one with")


def test_an_engine_that_is_down_is_one_clear_line():
    class Down(fake.FakeService):
        def GetServerInfo(self, request, context):
            return inference_pb2.GetServerInfoResponse(
                engine_state=inference_pb2.ENGINE_STATE_UNAVAILABLE, detail="worker 0 is gone"
            )

    with fake.FakeGateway(Down()) as gateway:
        done = pagewire("generate", "x", "-a", gateway.address)
    assert done.returncode == 1
    assert done.stderr == f"pagewire: the service at {gateway.address} cannot run requests: worker 0 is gone\n"


def test_a_refused_request_is_one_clear_line(gateway):
    done = pagewire("generate", "x", "-a", gateway.address, "-n", "999")
    assert done.returncode == 1
    assert done.stderr == "pagewire: INVALID_ARGUMENT: max_tokens is over the limit\n"


def test_an_impossible_option_is_a_usage_error():
    done = pagewire("generate", "x", "-t", "nan")
    assert done.returncode == 2
    assert "temperature must be a finite number" in done.stderr


@pytest.mark.parametrize(
    "arguments", [[], ["--help"], ["serve", "--help"], ["bench", "--help"], ["serve", "--engine-help"]]
)
def test_help_is_printed(arguments):
    assert "usage" in (lambda done: done.stdout + done.stderr)(pagewire(*arguments)).lower()


def test_serve_says_why_it_cannot_start(tmp_path):
    done = pagewire("serve", str(tmp_path / "none.gguf"), "--listen", "127.0.0.1:0", XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == f"pagewire: there is no model at {tmp_path}/none.gguf: check the path\n"
    asked = pagewire("serve", str(tmp_path / "none.gguf"), "--ask", "hello", XDG_CACHE_HOME=str(tmp_path))
    assert (asked.returncode, asked.stderr) == (done.returncode, done.stderr)


def test_serve_refuses_unknown_engine_flags(tmp_path):
    done = pagewire("serve", "demo", "--no-such-flag", "1")
    assert done.returncode == 2
    assert "unrecognized arguments: --no-such-flag 1" in done.stderr


class Asking:
    """`pagewire serve --ask` over fake processes."""

    def __init__(self, folder, *flags, prompt="hello"):
        (folder / "tiny.gguf").write_bytes(b"GGUF")
        program = (
            "from pagewire_client import local_service, __main__;"
            "local_service._SUPERVISOR = ('tests.fakes.supervised', '[]');"
            "__main__.main()"
        )
        command = [sys.executable, "-c", program, "serve", str(folder / "tiny.gguf"), "--listen", "127.0.0.1:0"]
        self.process = subprocess.Popen(
            [*command, "--ask", prompt, *flags],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "XDG_CACHE_HOME": str(folder)},
        )

    def read_until(self, text):
        for line in self.process.stderr:
            if text in line:
                return line
        raise AssertionError(f"{text!r} was not said")


def test_serve_ask_once_ends_after_the_answer(tmp_path):
    out, err = Asking(tmp_path, "--once").process.communicate(timeout=PATIENCE_S)
    assert out.startswith("t0 t1 t2 ")
    assert "> hello" in err
    assert "grpcurl" not in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_ask_stays_up_until_stopped(tmp_path, number):
    asking = Asking(tmp_path)
    address = asking.read_until("is served on").split("served on ")[1].split(";")[0]
    asking.read_until("grpcurl")
    assert pagewire("generate", "again", "-a", address).stdout == "t0 t1 t2 \n"
    asking.process.send_signal(number)
    assert asking.process.communicate(timeout=PATIENCE_S)[0].startswith("t0 t1 t2 ")
    assert asking.process.returncode == 0


def test_serve_ask_prints_ways_in_that_work(tmp_path):
    asking = Asking(tmp_path, "--model-name", "[bold]a[/b] :bug:", prompt="[bold]x[/nope] :bug:")
    assert asking.read_until("> ") == "> [bold]x[/nope] :bug:\n"
    assert asking.read_until("is served on").startswith("[bold]a[/b] :bug: is served on")
    line = asking.read_until(" -c ")
    done = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [f"t{number}" for number in range(16)]
    asking.process.terminate()
    asking.process.communicate(timeout=PATIENCE_S)


def test_serve_ask_stays_up_after_a_refused_prompt(tmp_path):
    asking = Asking(tmp_path, prompt="refuse")
    assert asking.read_until("pagewire: ") == "pagewire: INVALID_ARGUMENT: max_tokens is over the limit\n"
    address = asking.read_until("is served on").split("served on ")[1].split(";")[0]
    assert pagewire("generate", "again", "-a", address).stdout == "t0 t1 t2 \n"
    asking.process.terminate()
    asking.process.communicate(timeout=PATIENCE_S)
    assert asking.process.returncode == 0


def test_serve_ask_once_fails_with_the_prompt(tmp_path):
    asking = Asking(tmp_path, "--once", prompt="refuse")
    _, err = asking.process.communicate(timeout=PATIENCE_S)
    assert asking.process.returncode == 1
    assert err.splitlines()[-1] == "pagewire: INVALID_ARGUMENT: max_tokens is over the limit"


def test_markup_in_what_a_person_or_a_server_says_is_plain_text():
    class Marked(fake.FakeService):
        def ListModels(self, request, context):
            answer = super().ListModels(request, context)
            answer.models[0].name = answer.models[0].architecture = "[bold]a[/b]"
            return answer

        def GetServerInfo(self, request, context):
            info = super().GetServerInfo(request, context)
            info.version = "[/v]"
            info.progress.stage = "[/s]"
            return info

    def refuse(request, context, call):
        fake.abort_with_details(context, fake.grpc.StatusCode.INVALID_ARGUMENT, "[/no]")
        yield from ()

    with fake.FakeGateway(Marked(refuse, num_starting_answers=2)) as gateway:
        said = pagewire("chat", "-a", gateway.address, stdin="[bold]x[/nope]\n").stderr
        shown = pagewire("models", "-a", gateway.address).stdout
    assert "[bold]a[/b]" in said
    assert "[/no]" in said
    assert "[bold]a[/b]" in shown
    assert "version [/v]" in shown


def test_keys_are_made(tmp_path):
    made = pagewire("keys", "new", "--name", "ana", "--file", str(tmp_path / "keys.toml"))
    assert made.returncode == 0
    assert 'name = "ana"' in (tmp_path / "keys.toml").read_text()
    (key,) = made.stdout.split()
    assert key.startswith("pw-")
    again = pagewire("keys", "new", "--name", "ana", "--file", str(tmp_path / "keys.toml"))
    assert (again.returncode, again.stdout) == (1, "")
    assert pagewire("keys", "curve", "--dir", str(tmp_path / "curve")).returncode == 0
    assert len(list((tmp_path / "curve").iterdir())) == 6


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--api-key-file", "/no/such/file"], "cannot read the API key from /no/such/file: No such file or directory"),
        (["--api-key-file", "/dev/null"], "/dev/null has no API key in it"),
        (["--tls-ca", "/no/such/file"], "cannot read /no/such/file: No such file or directory; give a PEM file"),
    ],
)
def test_a_key_or_certificate_that_is_not_there_is_one_clear_line(flags, message):
    done = pagewire("generate", "x", "-a", "127.0.0.1:1", *flags)
    assert (done.returncode, done.stderr) == (1, f"pagewire: {message}\n")


NO_TEXT = b"a\xff"


@pytest.mark.parametrize(
    "command", [["generate", NO_TEXT], ["serve", "m", "--ask", NO_TEXT], ["chat", "--system", NO_TEXT]]
)
def test_an_argument_that_is_no_text_is_one_clear_line(command):
    done = pagewire(*command)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "is not valid text: '\\udcff' at position 1 cannot be sent as UTF-8" in line


@pytest.mark.parametrize("command", [["generate", "-"], ["chat"]])
def test_standard_input_that_is_no_text_is_one_clear_line(gateway, command):
    done = subprocess.run(
        [sys.executable, "-m", "pagewire_client", *command, "-a", gateway.address],
        cwd=ROOT,
        input=NO_TEXT + b"\n",
        capture_output=True,
        timeout=PATIENCE_S,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
    )
    assert done.returncode == 1
    assert b"pagewire: standard input is not utf-8 text: invalid start byte; convert it first" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("command", [["generate", "x"], ["generate", "x", "--json"], ["models"], ["models", "--json"]])
def test_output_that_cannot_be_written_is_one_clear_line(gateway, command):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pagewire_client", *command, "-a", gateway.address],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE_S,
        )
    assert done.returncode == 1
    assert done.stderr == "pagewire: cannot write to standard output: No space left on device; check where it leads\n"
