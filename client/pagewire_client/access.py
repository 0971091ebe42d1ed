"""What does a client show to a service, and what must the service show? API key and TLS, for both kinds of client."""

import os
from dataclasses import dataclass
from pathlib import Path

import grpc

from pagewire_client.errors import PagewireError

_UNIX_SCHEMES = ("unix:", "unix-abstract:")
_KEY_VARIABLE = "PAGEWIRE_API_KEY"
_TLS_VARIABLE = "PAGEWIRE_TLS"
_CA_VARIABLE, _CERT_VARIABLE, _CERT_KEY_VARIABLE = "PAGEWIRE_TLS_CA", "PAGEWIRE_TLS_CERT", "PAGEWIRE_TLS_KEY"


@dataclass(frozen=True, slots=True)
class Tls:
    """How a TLS connection is made. All are PEM files.

    Args:
        ca: authorities whose certificates a service may show; default: the well-known ones, as gRPC has them.
        certificate: what this client shows, where a service asks for it; with its chain.
        key: the certificate's private key.
    """

    ca: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key: give both or neither")

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files.

        Raises:
            PagewireError: one cannot be read.
        """
        return grpc.ssl_channel_credentials(_content(self.ca), _content(self.key), _content(self.certificate))


class Access:
    """The ways into one service. What is not given is taken from the environment, if it has it.

    Args:
        api_key: sent with every call.
        tls: settings of TLS; without, connections are plaintext. Unix sockets always are.
        credentials: gRPC credentials to use as they are, in place of `tls`.
    Raises:
        ValueError: the key cannot be sent, or there are two kinds of credentials.
        PagewireError: a file cannot be read.
    """

    def __init__(
        self, api_key: str | None = None, tls: Tls | None = None, credentials: grpc.ChannelCredentials | None = None
    ) -> None:
        if tls is not None and credentials is not None:
            raise ValueError("tls and credentials: give one of them")
        key = os.environ.get(_KEY_VARIABLE) if api_key is None else api_key
        self.metadata: tuple[tuple[str, str], ...] = (("authorization", f"Bearer {_checked(key)}"),) if key else ()
        tls = tls or (_tls_of_environment() if credentials is None else None)
        self._credentials = credentials
        self._tls_credentials = tls.credentials() if tls is not None else None

    def credentials_for(self, target: str) -> grpc.ChannelCredentials | None:
        """What to connect to a gRPC target with; None: in plaintext."""
        return self._credentials or (None if target.startswith(_UNIX_SCHEMES) else self._tls_credentials)


def read_api_key(path: Path) -> str:
    """The key in a file, which has nothing else in it.

    Raises:
        PagewireError: the file cannot be read, or has no key.
    """
    try:
        key = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise PagewireError(f"cannot read the API key from {path}: {reason}") from error
    if not key:
        raise PagewireError(f"{path} has no API key in it")
    return key


def _tls_of_environment() -> Tls | None:
    ca, certificate, key = (os.environ.get(name) for name in (_CA_VARIABLE, _CERT_VARIABLE, _CERT_KEY_VARIABLE))
    is_wanted = os.environ.get(_TLS_VARIABLE, "") not in ("", "0") or ca or certificate
    return Tls(ca or None, certificate or None, key or None) if is_wanted else None


def _checked(key: str) -> str:
    """The key without the space around it. What is wrong with one is said without saying the key."""
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError("the API key is empty or has characters that no key has: spaces, controls, non-ASCII ones")
    return key


def _content(path: str | Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise PagewireError(f"cannot read {path}: {error.strerror}; give a PEM file") from error
