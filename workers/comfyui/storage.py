"""S3-compatible storage for outputs: a request's bucket or the worker's, and uploads to it.

Owns the use of boto3, an optional dependency (`pip install 'pyworker[s3]'`), which is imported for the first
upload. boto3 blocks, so that uploads run in threads.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import urlsplit

from anyio.to_thread import run_sync as in_thread

from lib.model_settings import is_http_url

FIELDS = ("access_key_id", "secret_access_key", "endpoint_url", "bucket_name", "region")
REQUIRED = FIELDS[:4]
NOT_INSTALLED = "uploads to S3 need boto3 on the worker: pip install 'pyworker[s3]'"
# Seconds for which a link to an uploaded file is valid: 7 days, the maximum of S3.
LINK_LIFETIME_S = 7 * 24 * 3600
CONNECT_LIMIT_S = 10
READ_LIMIT_S = 60


class UploadFailed(Exception):
    """Uploading a file failed. The message says why and contains no keys."""


@dataclass(frozen=True)
class Bucket:
    """A bucket and its credentials. `region` may be empty. Its `repr` contains no credentials."""

    access_key_id: str
    secret_access_key: str
    endpoint_url: str
    bucket_name: str
    region: str = ""

    def __repr__(self) -> str:
        return f"Bucket({self.endpoint_url}/{self.bucket_name})"

    async def upload(self, file: IO[bytes], key: str, mimetype: str) -> str:
        """Upload the rest of `file` as `key`; return a link to it. Raises `UploadFailed`."""
        return await in_thread(self._upload, file, key, mimetype)

    def _upload(self, file: IO[bytes], key: str, mimetype: str) -> str:
        boto3: Any = importlib.import_module("boto3")
        config: Any = importlib.import_module("botocore.config").Config
        exceptions: Any = importlib.import_module("botocore.exceptions")
        s3_exceptions: Any = importlib.import_module("boto3.exceptions")
        try:
            s3 = boto3.session.Session(
                self.access_key_id, self.secret_access_key, region_name=self.region or "us-east-1"
            ).client("s3", endpoint_url=self.endpoint_url, config=config(**self._options()))
            try:
                s3.upload_fileobj(file, self.bucket_name, key, ExtraArgs={"ContentType": mimetype})
                return s3.generate_presigned_url(
                    "get_object", {"Bucket": self.bucket_name, "Key": key}, ExpiresIn=LINK_LIFETIME_S
                )
            finally:
                s3.close()
        except (
            exceptions.BotoCoreError,
            exceptions.ClientError,
            s3_exceptions.Boto3Error,
            ValueError,  # an endpoint or bucket from which boto3 can make no URL
        ) as e:
            raise UploadFailed(f"upload to {self.endpoint_url}/{self.bucket_name} failed: {e}") from e

    def _options(self) -> dict[str, Any]:
        is_aws = (urlsplit(self.endpoint_url).hostname or "").endswith(".amazonaws.com")
        return {
            "signature_version": "s3v4",
            "connect_timeout": CONNECT_LIMIT_S,
            "read_timeout": READ_LIMIT_S,
            "retries": {"total_max_attempts": 3},
            # Storage other than AWS doesn't support its newer checksums and, often, bucket names in host
            # names.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            "s3": {"addressing_style": "auto" if is_aws else "path"},
        }


def is_installed() -> bool:
    """Whether boto3 is installed."""
    return importlib.util.find_spec("boto3") is not None


def problems(given: Mapping[str, Any]) -> dict[str, str]:
    """The problem of each wrong field of a bucket; {} if `Bucket(**given)` works."""
    wrong = {name: "missing parameter" for name in REQUIRED if given.get(name) in (None, "")}
    for name, value in given.items():
        if name not in FIELDS:
            wrong[name] = "unknown parameter"
        elif value is not None and not isinstance(value, str):
            wrong[name] = "must be a string"
    url = given.get("endpoint_url")
    if isinstance(url, str) and url and not is_http_url(url):
        wrong["endpoint_url"] = "must be an http(s) URL"
    return wrong


def bucket_in(given: Mapping[str, Any]) -> Bucket:
    """The bucket in a request's `s3`, for which `problems` returned {}."""
    return Bucket(**{name: value for name, value in given.items() if value is not None})
