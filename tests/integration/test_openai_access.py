"""Who may call OpenAI's API when a gateway asks for keys over TLS? With the official client."""

from collections.abc import Iterator

import httpx
import openai
import pytest

from pagewire.ipc.requests import Submit
from tests.fakes.api_keys import write_keys
from tests.fakes.certificates import Authority
from tests.fakes.fake_scheduler import FakeScheduler, stop_at_length
from tests.fakes.openai_gateway import http_gateway
from tests.fakes.patience import PATIENCE_S
from tests.integration.conftest import Beside

MODEL = "tiny"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def port(scheduler: FakeScheduler, authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("g")
    write_keys(folder / "keys.toml", ana={"cache_salt": "a"}, none={"roles": []}, cem={"requests_per_minute": 1})
    pair = authority.issue("server")
    flags = ("--tls-cert", str(pair.certificate), "--tls-key", str(pair.key), "--api-keys", str(folder / "keys.toml"))
    with http_gateway(scheduler, folder, *flags, credentials=authority.channel_credentials()) as (_, port):
        yield port


@pytest.fixture(scope="module")
def transport(authority: Authority) -> Iterator[httpx.Client]:
    with httpx.Client(verify=authority.client_context()) as transport:
        yield transport


def client_of(name: str, port: int, transport: httpx.Client) -> openai.OpenAI:
    return openai.OpenAI(
        api_key=f"key-of-{name}",
        base_url=f"https://localhost:{port}/v1",
        http_client=transport,
        timeout=PATIENCE_S,
        max_retries=0,
    )


def test_a_valid_key_generates_as_its_tenant(
    scheduler: FakeScheduler, port: int, transport: httpx.Client, beside: Beside
) -> None:
    call = beside(lambda: client_of("ana", port, transport).completions.create(model=MODEL, prompt="a", max_tokens=1))
    submit = scheduler.take(Submit)
    assert (submit.tenant, submit.cache_salt) == ("ana", "a\0")
    scheduler.send_tokens([(submit.stream_id, 1)], stop_at_length(submit.stream_id))
    assert call.result(timeout=PATIENCE_S).choices[0].finish_reason == "length"


def test_a_wrong_key_gets_401_and_is_not_repeated(port: int, transport: httpx.Client) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        client_of("nobody", port, transport).models.list()
    assert caught.value.code == "invalid_api_key"
    assert caught.value.response.headers["WWW-Authenticate"] == "Bearer"
    assert "nobody" not in caught.value.response.text


def test_no_key_gets_401_on_every_path_but_those_of_probes(port: int, transport: httpx.Client) -> None:
    base = f"https://localhost:{port}"
    for path in ("/v1/models", "/v1/chat/completions", "/v1/none", "/"):
        assert transport.post(base + path).status_code == 401
    assert transport.get(base + "/healthz").status_code == 200
    assert transport.get(base + "/readyz").status_code == 200


def test_two_keys_in_one_request_get_401(port: int, transport: httpx.Client) -> None:
    headers = [("Authorization", "Bearer key-of-ana"), ("Authorization", "Bearer key-of-none")]
    assert transport.get(f"https://localhost:{port}/v1/models", headers=headers).status_code == 401


def test_a_key_without_the_role_gets_403(port: int, transport: httpx.Client) -> None:
    with pytest.raises(openai.PermissionDeniedError) as caught:
        client_of("none", port, transport).models.list()
    assert caught.value.code == "not_allowed"


def test_a_used_up_quota_gets_429_and_when_to_come_back(
    scheduler: FakeScheduler, port: int, transport: httpx.Client, beside: Beside
) -> None:
    client = client_of("cem", port, transport)
    call = beside(lambda: client.completions.create(model=MODEL, prompt="a", max_tokens=1))
    submit = scheduler.take(Submit)
    scheduler.send_tokens([(submit.stream_id, 1)], stop_at_length(submit.stream_id))
    call.result(timeout=PATIENCE_S)
    with pytest.raises(openai.RateLimitError) as caught:
        client.completions.create(model=MODEL, prompt="a", max_tokens=1)
    assert caught.value.code == "rate_limit_exceeded"
    assert 0 < int(caught.value.response.headers["Retry-After"]) <= 60


def test_plain_http_is_no_way_in(port: int) -> None:
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://localhost:{port}/healthz", timeout=PATIENCE_S)
