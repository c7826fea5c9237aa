"""TLS on the public port: the worker's certificate, which may be renewed while it runs.

Owns the reading of the certificate and its key. Who renews them is `start_server.sh`.
"""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from anyio.to_thread import run_sync as in_thread

from lib.errors import SettingsError
from lib.runtime.clock import Clock, sleep

log = logging.getLogger(__name__)

# How soon a renewed certificate is used, in seconds. Two small files are read each time.
CHECK_INTERVAL_S = 5.0


class Certificate:
    """The pair of files behind the TLS of the public port. Raises `SettingsError` if it can't be used.

    `context` is for the listening socket, once and for all. A new handshake takes its certificate from
    the newest context that could be made as a whole: `load_cert_chain` on a context in use would leave it
    with half of a pair, should the files not fit each other.
    """

    def __init__(self, cert: Path, key: Path, clock: Clock) -> None:
        self._cert, self._key, self._clock = cert, key, clock
        self._seen = self._read()
        try:
            self.context = self._newest = self._load()
        except OSError as e:
            raise SettingsError([f"USE_SSL: {cert} (SSL_CERT) and {key} (SSL_KEY) can't be used: {e}"]) from e
        self.context.sni_callback = self._choose

    async def follow(self) -> None:
        """Use what the files become, for as long as the worker lives."""
        while True:
            await sleep(self._clock, CHECK_INTERVAL_S)
            await in_thread(self._look)

    def _look(self) -> None:
        """Take a changed pair into use; one that is broken is told once, and the old one stays."""
        found = self._read()
        if found == self._seen:
            return
        self._seen = found
        try:
            self._newest = self._load()
        except OSError as e:
            log.warning("%s and %s can't be used, the old pair stays in use: %s", self._cert, self._key, e)
        else:
            log.info("a new certificate is in use: %s", self._cert)

    def _choose(self, connection: ssl.SSLObject, name: str | None, initial: ssl.SSLContext) -> None:
        """Called in every handshake, whether or not the client names a server."""
        connection.context = self._newest

    def _load(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self._cert, self._key, password="")  # or it would ask a terminal for one
        return context

    def _read(self) -> tuple[bytes, ...]:
        """What is in the files; nothing in place of one that can't be read."""
        return tuple(_content(path) for path in (self._cert, self._key))


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
