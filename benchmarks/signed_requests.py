"""The requests of a load, signed as the serverless engine signs them (docs/protocol.md, "Signature").

They are made and signed before the measurement, so that signing costs nothing during it.
"""

from __future__ import annotations

import base64
import itertools
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from benchmarks.jobs import LoadJob
from benchmarks.loads import ROUTE, Form
from lib.wire import full_signed_text, url_signed_text

_TEXT = "say something "


class RequestSigner:
    """Makes requests with the private key in `key_file`; no two have the same `reqnum`."""

    def __init__(self, key_file: Path) -> None:
        key = load_pem_private_key(key_file.read_bytes(), None)
        assert isinstance(key, RSAPrivateKey)
        self._key = key
        self._reqnums = itertools.count(1)
        self._sign_once = lru_cache(self._sign)

    def auth_data(self, url: str, form: Form) -> dict[str, Any]:
        """The `auth_data` of one request to the worker at `url`."""
        reqnum = next(self._reqnums)
        auth: dict[str, Any] = {"cost": 200.0, "endpoint": "bench", "reqnum": reqnum, "url": url}
        if form == "full":
            signature = self._sign(full_signed_text(auth))
        else:
            signature = self._sign_once(url_signed_text(url))
        if form == "refused":
            # The last bytes: the number must stay below the key's modulus, or it would be refused sooner.
            signature = signature[:-8] + reqnum.to_bytes(8, "big")
        return {**auth, "request_idx": reqnum, "signature": base64.b64encode(signature).decode()}

    def requests(self, job: LoadJob) -> list[bytes]:
        """The bytes of all requests of `job`, heads included. Large ones are the same object."""
        if job.prompt_bytes > len(_TEXT) * 100:
            return [self._request(job)] * job.count
        return [self._request(job) for _ in range(job.count)]

    def probe(self, job: LoadJob) -> bytes:
        """A small request, whose answer is small too."""
        return _http(job.port, self.auth_data(job.url, "url"), _payload("plain", 100))

    def _request(self, job: LoadJob) -> bytes:
        return _http(job.port, self.auth_data(job.url, job.form), _payload(job.model, job.prompt_bytes))

    def _sign(self, text: str) -> bytes:
        return self._key.sign(text.encode(), PKCS1v15(), SHA256())


def _payload(model: str, prompt_bytes: int) -> dict[str, Any]:
    """A payload. The `model` comes first, as the model server looks for it at the beginning only."""
    prompt = (_TEXT * (prompt_bytes // len(_TEXT) + 1))[:prompt_bytes]
    streams = model.startswith(("stream", "held"))
    return {"model": model, "prompt": prompt, "max_tokens": 200, "temperature": 0.7, "stream": streams}


def _http(port: int, auth: dict[str, Any], payload: dict[str, Any]) -> bytes:
    body = json.dumps({"auth_data": auth, "payload": payload}).encode()
    head = (
        f"POST {ROUTE} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
