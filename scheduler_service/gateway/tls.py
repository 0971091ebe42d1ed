"""Which certificates does a gateway show, and which of its callers' does it trust? Read from files that may change.

New connections get what is in the files now; old ones go on as they began. Files that cannot be used, such as a new
certificate whose key has not been written yet, change nothing until they can.
"""

import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from scheduler_service.gateway.exceptions import StartError
from scheduler_service.gateway.watched_files import WatchedFiles

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: the certificate with its chain, its private key, and whose certificates callers must show, if any."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """All that there are."""
        return (self.certificate, self.key, *([self.client_ca] if self.client_ca is not None else ()))


class Certificates:
    """What is in the files, for every server of this gateway.

    Args:
        files: where it is.
    Raises:
        StartError: it cannot be used; the message says why.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._watched = WatchedFiles(files.paths)
        self._watched.have_changed()
        try:
            self._configuration, self._context = self._read()
        except _UnusableError as error:
            raise StartError(str(error)) from error

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """Credentials for one port of a gRPC server. They follow the files."""
        shown = self._configuration

        def newer() -> Any:
            """What gRPC asks before each handshake, in a thread of its own: something new, or nothing."""
            nonlocal shown
            if shown is self._configuration:
                return None
            shown = self._configuration
            return shown

        return grpc.dynamic_ssl_server_credentials(
            shown, newer, require_client_authentication=self._files.client_ca is not None
        )

    def ssl_context(self) -> ssl.SSLContext:
        """A context for a server on asyncio, such as HTTP's. It follows the files."""
        return _NewestContext(lambda: self._context)

    def reload_if_changed(self) -> None:
        """Take what the files hold now, if it is new and fits together."""
        if not self._watched.have_changed():
            return
        try:
            self._configuration, self._context = self._read()
        except _UnusableError as error:
            logger.error("certificates not reloaded, the old ones stay error=%s", error)
        else:
            logger.info("certificates reloaded certificate=%s", self._files.certificate)

    def _read(self) -> tuple[Any, ssl.SSLContext]:
        """The files' content for gRPC and for others, once OpenSSL finds that certificate and key fit."""
        contents = [_content(path) for path in self._files.paths]
        context = self._load()
        if contents != [_content(path) for path in self._files.paths]:
            raise _UnusableError("the files are being written")
        certificate, key, *client_ca = contents
        trusted = client_ca[0] if client_ca else None
        return grpc.ssl_server_certificate_configuration([(key, certificate)], trusted), context

    def _load(self) -> ssl.SSLContext:
        files, context = self._files, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # Without a password given OpenSSL would ask at the terminal for that of an encrypted key.
            context.load_cert_chain(files.certificate, files.key, password="")
        except (ssl.SSLError, OSError) as error:
            raise _UnusableError(
                f"the certificate {files.certificate} cannot be used with the key {files.key}: {_reason(error)}; "
                "give PEM files that belong together, the key not encrypted"
            ) from error
        if files.client_ca is not None:
            try:
                context.load_verify_locations(files.client_ca)
            except (ssl.SSLError, OSError) as error:
                raise _UnusableError(
                    f"the client CA {files.client_ca} cannot be used: {_reason(error)}; give certificates in a PEM file"
                ) from error
            context.verify_mode = ssl.CERT_REQUIRED
        return context


class _NewestContext(ssl.SSLContext):
    """Each connection is that of the context that is the newest when it begins: what others trusted, and the sessions
    that they would resume, are of no account to it."""

    _newest: Callable[[], ssl.SSLContext]

    def __new__(cls, newest: Callable[[], ssl.SSLContext]) -> "_NewestContext":
        context = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)
        context._newest = newest
        return context

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        """See ssl.SSLContext.wrap_bio: with it asyncio begins a connection."""
        return self._newest().wrap_bio(*args, **options)


class _UnusableError(Exception):
    """The files as they are now; the message says why."""


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "no PEM").replace("_", " ").lower()
    return error.strerror or str(error)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _UnusableError(f"cannot read {path}: {error.strerror}; give PEM files") from error
