"""Whose API key is this? Keys are known by their hash, from a file that may change while the gateway runs.

A key is 256 random bits, so no dictionary and no search finds it from its SHA-256: a hash that is slow on purpose, as
passwords need it, would add nothing but time to every call. Keys are looked up by the first half of their digest and
compared whole, in constant time; how long that takes tells of a digest, from which no key follows.
"""

import hashlib
import hmac
import logging
from pathlib import Path

from scheduler_service.gateway.auth.caller import Caller
from scheduler_service.gateway.auth.key_file import KeyEntry, KeyFileError, read_key_file
from scheduler_service.gateway.exceptions import StartError, UnauthenticatedError
from scheduler_service.gateway.watched_files import WatchedFiles

logger = logging.getLogger(__name__)

_LOOKUP_BYTES = 16
_SCHEME = "bearer"
_HOW = "send it as 'authorization: Bearer KEY'"


class Keyring:
    """The keys that are valid now.

    Args:
        path: the key file.
    Raises:
        StartError: it cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files = WatchedFiles((path,))
        self._files.have_changed()
        try:
            self._entries = _by_lookup(read_key_file(path))
        except KeyFileError as error:
            raise StartError(str(error)) from error

    def authenticate(self, authorization: str | None) -> Caller:
        """Who sends this value of the Authorization header, or of the gRPC metadata of that name?

        Raises:
            UnauthenticatedError: nobody who is known; the message never holds what was sent.
        """
        if not authorization:
            raise UnauthenticatedError(f"this server asks for an API key: {_HOW}")
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != _SCHEME or not key.strip():
            raise UnauthenticatedError(f"the authorization is no bearer token: {_HOW}")
        digest = hashlib.sha256(key.strip().encode(errors="surrogateescape")).digest()
        entry = self._entries.get(digest[:_LOOKUP_BYTES])
        if entry is None or not hmac.compare_digest(entry.digest, digest):
            raise UnauthenticatedError("the API key is not valid here: check it, it may have been revoked")
        return entry.caller

    def reload_if_changed(self) -> None:
        """Take the file's new keys, if it has any; one that is wrong changes nothing."""
        if not self._files.have_changed():
            return
        try:
            self._entries = _by_lookup(read_key_file(self._path))
        except KeyFileError as error:
            logger.error("keys not reloaded, the old ones stay valid error=%s", error)
        else:
            logger.info("keys reloaded path=%s num_keys=%d", self._path, len(self._entries))


def _by_lookup(entries: list[KeyEntry]) -> dict[bytes, KeyEntry]:
    return {entry.digest[:_LOOKUP_BYTES]: entry for entry in entries}
