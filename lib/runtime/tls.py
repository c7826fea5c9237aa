"""TLS on the public port: the worker's certificate, which may be renewed while the worker runs.

Owns reading the certificate and its key (docs/operating.md, "TLS"). It does not renew them: `start_server.sh`
does.
"""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from anyio.to_thread import run_sync as in_thread

from lib.errors import SettingsError
from lib.runtime.clock import Clock, sleep

log = logging.getLogger(__name__)

# Interval in seconds at which the two files are read again.
CHECK_INTERVAL_S = 5.0


class Certificate:
    """The certificate of the public port, with its key. Raises `SettingsError` if they can't be used.

    `context` is for the listening socket, and is never replaced. A new handshake takes its certificate from
    the newest context that was loaded completely: `load_cert_chain` on a context in use would leave it with
    a certificate and a key that don't match, if the files don't.
    """

    def __init__(self, cert: Path, key: Path, clock: Clock) -> None:
        self._cert, self._key, self._clock = cert, key, clock
        self._loaded = self._read()
        try:
            self.context = self._newest = self._load()
        except OSError as e:
            raise SettingsError([f"USE_SSL: {cert} (SSL_CERT) and {key} (SSL_KEY) can't be used: {e}"]) from e
        self.context.sni_callback = self._use_newest

    async def follow(self) -> None:
        """Load the files again whenever they change. Never returns."""
        while True:
            await sleep(self._clock, CHECK_INTERVAL_S)
            await in_thread(self._reload_if_changed)

    def _reload_if_changed(self) -> None:
        """Load changed files; if they can't be used, log that once and keep the old pair."""
        found = self._read()
        if found == self._loaded:
            return
        self._loaded = found
        try:
            self._newest = self._load()
        except OSError as e:
            log.warning("%s and %s can't be used, the old pair stays in use: %s", self._cert, self._key, e)
        else:
            log.info("a new certificate is in use: %s", self._cert)

    def _use_newest(self, connection: ssl.SSLObject, name: str | None, initial: ssl.SSLContext) -> None:
        """Select the certificate; called in every handshake, with or without a server name."""
        connection.context = self._newest

    def _load(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(
            self._cert, self._key, password=""
        )  # without this, an encrypted key would ask the terminal for one
        return context

    def _read(self) -> tuple[bytes, ...]:
        """The contents of both files; empty for one that can't be read."""
        return tuple(_content(path) for path in (self._cert, self._key))


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
