"""Where do clients take keys and TLS settings from, and what do they say when these cannot be used?"""

import grpc
import pytest

from pagewire_client import Client, PagewireError, Tls
from pagewire_client.access import Access

METADATA = (("authorization", "Bearer k"),)


def test_nothing_is_sent_unless_it_is_given():
    access = Access()
    assert access.metadata == ()
    assert access.credentials_for("127.0.0.1:1") is None


def test_a_key_is_sent_without_the_line_end_of_its_file():
    assert Access("k\n").metadata == METADATA


def test_the_environment_fills_in_what_is_not_given(monkeypatch):
    monkeypatch.setenv("PAGEWIRE_API_KEY", "k")
    monkeypatch.setenv("PAGEWIRE_TLS", "1")
    access = Access()
    assert access.metadata == METADATA
    assert access.credentials_for("127.0.0.1:1") is not None
    assert Access("other").metadata == (("authorization", "Bearer other"),)
    monkeypatch.setenv("PAGEWIRE_TLS", "0")
    assert Access().credentials_for("127.0.0.1:1") is None


@pytest.mark.parametrize("key", [" ", "a b", "a\nb", "é"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(key):
    with pytest.raises(ValueError, match="the API key is empty or has characters") as caught:
        Client(api_key=key)
    assert key.strip() == "" or key not in str(caught.value)


def test_unix_sockets_are_plaintext_unless_credentials_are_given_as_they_are():
    assert Access(tls=Tls()).credentials_for("unix:/x") is None
    credentials = grpc.ssl_channel_credentials()
    assert Access(credentials=credentials).credentials_for("unix:/x") is credentials


def test_settings_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="give both or neither"):
        Tls(certificate="x")
    with pytest.raises(ValueError, match="give one of them"):
        Access(tls=Tls(), credentials=grpc.ssl_channel_credentials())
    with pytest.raises(PagewireError, match=r"cannot read .*none.pem: No such file"):
        Access(tls=Tls(ca=tmp_path / "none.pem"))
