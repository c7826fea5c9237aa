"""The certificate of the worker's public port: requested, checked and renewed (docs/operating.md, "TLS").

Owns the two files. The worker reads them: lib/runtime/tls.py.
"""

from __future__ import annotations

import os
import shutil
import signal
import ssl
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from lib.launch.commands import Commands
from lib.launch.errors import CannotStart, LaunchStopped
from lib.launch.log import LaunchLog
from lib.launch.settings import LaunchSettings
from lib.runtime.exit_status import EXIT_FAILED

SIGN_LIMIT_S = 30
# The longest time between two checks of the certificate's age, and the wait after an attempt to renew it.
CERTIFICATE_CHECK_S = 3600.0
# It is renewed when this part of its lifetime is left.
RENEWED_AT = 1 / 3


class InstanceCertificate:
    """The certificate for the instance's address. The processes for it are started by `commands`."""

    def __init__(self, settings: LaunchSettings, commands: Commands, log: LaunchLog) -> None:
        self._settings = settings
        self._commands = commands
        self._log = log
        self._address = settings.address
        self._cert, self._key = settings.ssl_cert, settings.ssl_key
        is_ip = ":" in self._address or not self._address.strip("0123456789.")
        self._kind, self._check = ("IP", "-checkip") if is_ip else ("DNS", "-checkhost")

    def get(self) -> None:
        """Request a certificate if it is time. If that fails, one that has not expired is used.

        Raises `CannotStart` if there is none.
        """
        if self._is_usable(self._cert) and self.renewal_in_s() > 0:
            return
        self._log.begin(f"requesting a certificate for {self._address}")
        if not self._commands.attempt(self.renew) and not self._is_usable(self._cert):
            text = f"no certificate for {self._address}: check VAST_CONSOLE_URL, or set USE_SSL=false"
            raise CannotStart(EXIT_FAILED, text, has_lines=True)

    def renewal_in_s(self) -> float:
        """Return the seconds until the certificate is to be renewed; 0 if it is for another address."""
        match = self._x509(self._cert, "-noout", self._check, self._address)
        dates = self._x509(self._cert, "-noout", "-dates")
        if match is None or dates is None or " does match " not in match:
            return 0.0
        start_s, end_s = (ssl.cert_time_to_seconds(line.partition("=")[2]) for line in dates.split("\n")[:2])
        return end_s - (end_s - start_s) * RENEWED_AT - time.time()

    def renew(self) -> bool:
        """Replace the certificate atomically by a new one for the same key, so that the two always fit."""
        try:
            with tempfile.TemporaryDirectory(prefix="pyworker-certificate-") as scratch:
                return self._renew(Path(scratch))
        except OSError as e:
            self._log.say(f"the certificate could not be written: {e}")
            return False

    def _renew(self, scratch: Path) -> bool:
        request, new = scratch / "request.pem", scratch / "certificate.pem"
        text = scratch / "request.cnf"
        text.write_text(self._request_text())
        command = ("openssl", "req", "-new", "-config", text, "-key", self._key, "-out", request)
        if not (self._make_key() and self._commands.run(*command) and self._sign(request, new)):
            return False
        if not self._is_usable(new):
            self._log.say(
                f"the signed certificate is not for {self._key}, or has expired: check VAST_CONSOLE_URL"
            )
            return False
        beside = f"{self._cert}.new"
        shutil.copyfile(new, beside)
        os.replace(beside, self._cert)
        return True

    def _request_text(self) -> str:
        """A complete configuration for OpenSSL, since small images lack its default file."""
        name = ("[req]", "prompt = no", "distinguished_name = name", "req_extensions = more", "[name]")
        more = (f"CN = {self._address}", "[more]", f"subjectAltName = {self._kind}:{self._address}", "")
        return "\n".join((*name, *more))

    def _make_key(self) -> bool:
        if (
            self._commands.output("openssl", "pkey", "-in", self._key, "-passin", "pass:", "-noout")
            is not None
        ):
            return True
        new = f"{self._key}.new"
        command = ("openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", new)
        # Its standard error has progress only.
        is_made = self._commands.run(*command, stderr=subprocess.DEVNULL, umask=0o077)
        if is_made:
            with suppress(OSError):
                os.replace(new, self._key)
                return True
        self._log.say(f"no key could be written to {self._key}: set SSL_KEY to a file that may be written")
        return False

    def _sign(self, request: Path, new: Path) -> bool:
        settings = self._settings
        url = f"{settings.console_url}/api/v0/sign_cert/?instance_id={settings.container_id}"
        options = ("-fsS", "-m", str(SIGN_LIMIT_S), "-H", "Content-Type: application/octet-stream")
        with open(new, "wb") as file:
            return self._commands.run("curl", *options, "--data-binary", f"@{request}", url, stdout=file)

    def _is_usable(self, certificate: Path) -> bool:
        """Whether the file is a PEM certificate for our key that has not expired."""
        if self._x509(certificate, "-noout", "-checkend", "0") is None:
            return False
        theirs = self._x509(certificate, "-noout", "-pubkey")
        ours = self._commands.output("openssl", "pkey", "-in", self._key, "-passin", "pass:", "-pubout")
        return theirs is not None and theirs == ours

    def _x509(self, certificate: Path, *options: str) -> str | None:
        if not os.path.exists(certificate):
            return None
        return self._commands.output("openssl", "x509", "-in", certificate, *options)


class Renewals:
    """Renews the certificate in time, in a thread, until `close`."""

    def __init__(self, settings: LaunchSettings, environ: dict[str, str], log: LaunchLog) -> None:
        self._commands = Commands(log, environ, says_waiting=False)
        self._certificate = InstanceCertificate(settings, self._commands, log)
        self._log = log
        self._thread = threading.Thread(target=self._keep, name="renewals", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread and its process."""
        self._commands.receive(signal.SIGTERM)
        self._thread.join(SIGN_LIMIT_S)

    def _keep(self) -> None:
        with suppress(LaunchStopped):
            while True:
                wait_s = self._certificate.renewal_in_s()
                if wait_s <= 0:
                    self._log.say("renewing the certificate")
                    if not self._certificate.renew():
                        self._log.say(
                            "the certificate could not be renewed: the next attempt is in"
                            f" {CERTIFICATE_CHECK_S:.0f} s"
                        )
                    wait_s = CERTIFICATE_CHECK_S
                self._commands.pause(min(wait_s, CERTIFICATE_CHECK_S))
