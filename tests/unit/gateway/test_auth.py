"""Are keys, roles, salts and quotas what the key file says? Is a wrong file refused, and nothing in it shown?"""

import asyncio
import hashlib
import logging
from pathlib import Path

import pytest

from scheduler_service.gateway.auth import __main__ as keys_new
from scheduler_service.gateway.auth.caller import ANYONE, Caller, CallerLimits, Role
from scheduler_service.gateway.auth.key_file import KeyFileError, read_key_file
from scheduler_service.gateway.auth.keyring import Keyring
from scheduler_service.gateway.auth.methods import is_open, role_for
from scheduler_service.gateway.auth.quotas import Quotas
from scheduler_service.gateway.exceptions import (
    NotAllowedError,
    QuotaExceededError,
    StartError,
    UnauthenticatedError,
)
from tests.fakes.api_keys import write_keys

HASH = "sha256:" + hashlib.sha256(b"key").hexdigest()
TABLE = f'[[keys]]\nname = "ana"\nhash = "{HASH}"\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def caller(**limits: int) -> Caller:
    return Caller("ana", frozenset({Role.GENERATE}), CallerLimits(**limits), "ana")


def test_a_key_file_says_who_calls(path: Path) -> None:
    path.write_text(f'{TABLE}tenant = "team"\nroles = ["admin"]\ncache_salt = "s"\nrequests_per_minute = 5\n')
    found = Keyring(path).authenticate("Bearer key")
    assert found == Caller("team", frozenset({Role.ADMIN}), CallerLimits(requests_per_minute=5), "s")


def test_a_key_is_for_generation_and_has_a_cache_of_its_own_by_default(path: Path) -> None:
    path.write_text(TABLE)
    assert Keyring(path).authenticate("bearer  key ") == caller()


@pytest.mark.parametrize(
    "authorization",
    [None, "", "key", "Bearer", "Bearer ", "Basic key", "Bearer other", "Bearer key key", "Bearer \udcff"],
)
def test_what_is_no_valid_key_is_refused_and_never_repeated(path: Path, authorization: str | None) -> None:
    path.write_text(TABLE)
    with pytest.raises(UnauthenticatedError) as caught:
        Keyring(path).authenticate(authorization)
    assert "other" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "is empty"),
        ("secret = [", "is no TOML"),
        ("secret = 1", r"must have \[\[keys\]\] tables and nothing else"),
        ("keys = 1", "must have"),
        ("keys = [1]", "must have"),
        ('[[keys]]\nhash = "x"', "key 1 of .* needs a name"),
        ('[[keys]]\nname = "ana"', "needs a hash"),
        ('[[keys]]\nname = "ana"\nhash = "secret"', "hash that is not sha256: and 64"),
        ('[[keys]]\nname = "a b"\nhash = "secret"', "a name that is not"),
        (f'{TABLE}key = "secret"', "a field 'key', which is not known"),
        (f'{TABLE}roles = ["root"]', "roles that are not a list of generate, admin"),
        (f"{TABLE}tokens_per_minute = 0", "tokens_per_minute = 0: it must be 1 or more"),
        (f"{TABLE}tokens_per_minute = 1.5", "tokens_per_minute that is no whole number"),
        (f"{TABLE}max_priority = 1001", "max_priority = 1001: it must be -1000 to 1000"),
        (f'{TABLE}cache_salt = ""', "a cache_salt that is empty"),
        (TABLE + TABLE, "two keys with the same name"),
        (TABLE + TABLE.replace("ana", "bob"), "two keys with the same hash"),
    ],
)
def test_a_wrong_key_file_is_refused(path: Path, content: str, problem: str) -> None:
    path.write_text(content)
    with pytest.raises(KeyFileError, match=problem) as caught:
        read_key_file(path)
    assert "secret" not in str(caught.value)
    assert HASH not in str(caught.value)


def test_a_gateway_does_not_start_without_its_key_file(path: Path) -> None:
    with pytest.raises(StartError, match=r"cannot read the key file .*: No such file"):
        Keyring(path)


def test_keys_are_taken_and_dropped_with_the_file(path: Path) -> None:
    write_keys(path, ana={}, bob={})
    keyring = Keyring(path)
    write_keys(path, bob={}, cem={})
    assert keyring.authenticate("Bearer key-of-ana").tenant == "ana"
    keyring.reload_if_changed()
    with pytest.raises(UnauthenticatedError, match="revoked"):
        keyring.authenticate("Bearer key-of-ana")
    assert keyring.authenticate("Bearer key-of-cem").tenant == "cem"


@pytest.mark.parametrize("content", ["", "[[keys]", None])
def test_a_file_that_became_wrong_changes_nothing(path: Path, content: str | None, caplog) -> None:
    write_keys(path, ana={})
    keyring = Keyring(path)
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    with caplog.at_level(logging.ERROR):
        keyring.reload_if_changed()
        keyring.reload_if_changed()
    assert [record.message.partition(" error=")[0] for record in caplog.records] == [
        "keys not reloaded, the old ones stay valid"
    ]
    assert keyring.authenticate("Bearer key-of-ana").tenant == "ana"


def test_a_new_key_is_shown_once_and_known_by_its_hash(path: Path, capsys) -> None:
    for name in ("ana", "bob"):
        assert keys_new.main(["--name", name, "--file", str(path), "--role", "admin", "--max-priority", "-3"]) == 0
    first, second = capsys.readouterr().out.split()
    assert first != second
    assert first not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    found = Keyring(path).authenticate(f"Bearer {second}")
    assert found == Caller("bob", frozenset({Role.ADMIN}), CallerLimits(max_priority=-3), "bob")


def test_a_key_that_cannot_be_added_leaves_the_file_alone(path: Path, capsys) -> None:
    path.write_text(TABLE)
    assert keys_new.main(["--name", "ana", "--file", str(path)]) == 1
    assert capsys.readouterr() == (
        "",
        f"pagewire: the key is not added: the key file {path} has two keys with the same name: remove one\n",
    )
    assert path.read_text() == TABLE
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_salts_keep_tenants_apart_whatever_their_requests_say() -> None:
    assert ANYONE.salted("x") == "x"
    ana, bob = Caller("a", frozenset(), cache_salt="a"), Caller("ab", frozenset(), cache_salt="ab")
    assert ana.salted("b") != bob.salted("")
    assert ana.salted("x") == Caller("c", frozenset(), cache_salt="a").salted("x")


def test_priority_is_bounded_by_the_key() -> None:
    assert [ANYONE.allowed_priority(value) for value in (-5, 0, 1000)] == [-5, 0, 1000]
    low = caller(max_priority=-2)
    assert [low.allowed_priority(value) for value in (-5, -2, 0)] == [-5, -2, -2]
    with pytest.raises(NotAllowedError, match="priority: is 1, and the key 'ana' allows at most -2"):
        low.allowed_priority(1)


def test_only_health_is_open_and_a_method_that_nobody_named_needs_a_role() -> None:
    assert is_open("/grpc.health.v1.Health/Check")
    assert is_open("/inference.GRPCInferenceService/ServerLive")
    assert not is_open("/inference.GRPCInferenceService/ModelInfer")
    assert not is_open("/grpc.health.v1.HealthX/Check")
    assert not is_open("/new.Service/Method")
    assert role_for("/new.Service/Method") is Role.GENERATE
    assert role_for("/grpc.channelz.v1.Channelz/GetServers") is Role.ADMIN
    assert role_for("/vllm.grpc.engine.VllmEngine/SubscribeKvEvents") is Role.ADMIN
    assert role_for("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo") is None


class Clock:
    """Time that a test moves."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_requests_at_once_are_bounded() -> None:
    quotas, ana = Quotas(), caller(max_concurrent_requests=2)
    with quotas.one(ana), quotas.one(ana), pytest.raises(QuotaExceededError, match="max_concurrent_requests of 2"):
        quotas.one(ana).__enter__()
    with quotas.one(ana), quotas.one(Caller("bob", frozenset(), ana.limits)), quotas.one(ana):
        pass


def test_a_request_that_fails_or_is_cancelled_gives_its_place_back() -> None:
    quotas, ana = Quotas(), caller(max_concurrent_requests=1)
    for error in (ValueError, asyncio.CancelledError):
        with pytest.raises(error), quotas.one(ana):
            raise error


def test_requests_per_minute_come_back_with_time() -> None:
    clock = Clock()
    quotas, ana = Quotas(clock), caller(requests_per_minute=3)
    for _ in range(3):
        with quotas.one(ana):
            pass
    with pytest.raises(QuotaExceededError) as caught:
        quotas.one(ana).__enter__()
    assert caught.value.retry_after_s == pytest.approx(20)
    clock.now_s += 20.01
    with quotas.one(ana):
        pass
    with pytest.raises(QuotaExceededError):
        quotas.one(ana).__enter__()


def test_tokens_may_run_into_debt_that_later_requests_wait_out() -> None:
    clock = Clock()
    quotas, ana = Quotas(clock), caller(tokens_per_minute=60)
    with quotas.one(ana) as use:
        use(100)
        use(19)
    with pytest.raises(QuotaExceededError, match="tokens_per_minute of 60") as caught:
        quotas.one(ana).__enter__()
    assert caught.value.retry_after_s == pytest.approx(60)
    clock.now_s += 3600
    with quotas.one(ana) as use:
        use(60)
    with pytest.raises(QuotaExceededError):
        quotas.one(ana).__enter__()


def test_limits_follow_the_key_file() -> None:
    clock = Clock()
    quotas = Quotas(clock)
    with quotas.one(caller(tokens_per_minute=10)) as use:
        use(50)
    with quotas.one(caller()) as use:
        use(1000)
    with quotas.one(caller(tokens_per_minute=600)):
        pass
