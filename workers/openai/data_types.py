"""The payloads of the OpenAI worker: a class for each kind of request.

Owns the choice of the workload's formula. The formulas are in workload.py, files in uploads.py, the routes in
handlers.py. A request is passed on unchanged, and the model server checks it. Only files that the worker
decodes are checked here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, cast

from lib.data_types import ApiPayload, JsonDataException
from lib.files import BadFile, EncodedFile
from lib.forms import FORM
from lib.uploads import Upload
from lib.words import some_words
from workers.openai import workload
from workers.openai.uploads import AUDIO, IMAGES, Types, read_files

if TYPE_CHECKING:
    from typing_extensions import Self


# Sizes of the benchmark's and the load test's requests.
TEST_PROMPT_WORDS = 100
TEST_TOKENS = 500


@dataclass
class OpenAIRequest(ApiPayload):
    """A request of OpenAI's API, unchanged in `input`. Clients send it bare or as `{"input": {…}}`."""

    input: dict[str, Any]

    @classmethod
    def from_json_msg(cls, json_msg: dict[str, Any]) -> Self:
        """Read either form. Raises `JsonDataException`, nested like the request, with every wrong field."""
        inner = json_msg.get("input")
        # Some OpenAI requests have an `input` of their own, but none where it is an object and the only
        # field.
        if not isinstance(inner, dict) or len(json_msg) > 1:
            return cls.of(json_msg)
        try:
            return cls.of(cast("dict[str, Any]", inner))
        except JsonDataException as e:
            raise JsonDataException({"input": e.message}) from e

    @classmethod
    def of(cls, request: dict[str, Any]) -> Self:
        """The payload of a bare OpenAI request. Raises `JsonDataException` for wrong files."""
        return cls(request)

    def generate_payload_json(self) -> dict[str, Any]:
        return self.input


@dataclass
class GeneratingRequest(OpenAIRequest):
    """A request for text. Its workload is the maximum number of tokens to generate."""

    def count_workload(self) -> float:
        return workload.of_generation(self.input)


@dataclass
class CompletionRequest(GeneratingRequest):
    """`/v1/completions`: continue a text, or each of a list of texts."""

    @classmethod
    def for_test(cls) -> Self:
        return cls({"prompt": some_words(TEST_PROMPT_WORDS), "max_tokens": TEST_TOKENS})


@dataclass
class ChatRequest(GeneratingRequest):
    """`/v1/chat/completions`: continue a conversation."""


@dataclass
class ResponseRequest(GeneratingRequest):
    """`/v1/responses`. A request that continues an earlier one may have no `input`."""


@dataclass
class EmbeddingRequest(OpenAIRequest):
    """`/v1/embeddings`: turn texts into vectors."""

    def count_workload(self) -> float:
        return workload.of_reading(self.input.get("input"), self.input.get("messages"))


@dataclass
class RerankRequest(OpenAIRequest):
    """`/v1/rerank`: order documents by their relevance to a query."""

    def count_workload(self) -> float:
        return workload.of_pairs(self.input.get("query"), self.input.get("documents"))


@dataclass
class ScoreRequest(OpenAIRequest):
    """`/v1/score`. Servers use different names for its fields, so that none is required here."""

    queries: ClassVar = ("text_1", "queries", "query", "data_1")
    documents: ClassVar = ("text_2", "documents", "items", "data_2")

    def count_workload(self) -> float:
        return workload.of_pairs(self._first(self.queries), self._first(self.documents))

    def _first(self, names: tuple[str, ...]) -> Any:
        return next((self.input[name] for name in names if self.input.get(name) is not None), None)


@dataclass
class SpeechRequest(OpenAIRequest):
    """`/v1/audio/speech`: read a text aloud."""

    def count_workload(self) -> float:
        return workload.of_speech(self.input.get("input"))


@dataclass
class ImageRequest(OpenAIRequest):
    """`/v1/images/generations`: make images."""

    def count_workload(self) -> float:
        return workload.of_images(self.input)


@dataclass
class FileRequest(OpenAIRequest):
    """A request with files, which the model server receives as a form (`multipart/form-data`).

    `fields` are the names of file fields, with their types. A client that authenticates by header may
    send the form itself. Then it is in `upload`, is passed on unchanged, and `input` is empty.
    """

    fields: ClassVar[Mapping[str, Types]] = {}

    # Set here, and not by clients: the load test sends the other fields.
    files: dict[str, list[EncodedFile]] = field(default_factory=dict[str, list[EncodedFile]], init=False)
    wrapped: bool = field(default=False, init=False)
    upload: Upload | None = field(default=None, init=False)

    @classmethod
    def from_json_msg(cls, json_msg: dict[str, Any]) -> Self:
        payload = super().from_json_msg(json_msg)
        payload.wrapped = payload.input is not json_msg
        return payload

    @classmethod
    def of(cls, request: dict[str, Any]) -> Self:
        payload = cls(request)
        payload.files = read_files(request, cls.fields)
        return payload

    @classmethod
    def from_upload(cls, upload: Upload) -> Self:
        """The payload of a form, unread. Raises `JsonDataException` for any other content type."""
        if upload.content_type.partition(";")[0].strip().lower() != FORM:
            kind = upload.content_type or "nothing"
            raise JsonDataException({"body": f"must be {FORM} or JSON, not {kind}"})
        payload = cls({})
        payload.upload = upload
        return payload

    def generate_payload_upload(self) -> Upload | None:
        return self.upload

    def generate_payload_multipart(self) -> dict[str, Any]:
        """The form. `[]` is appended to the name of a list, as OpenAI's clients do it.

        Decodes the files, which takes time: call it in a thread. Raises `JsonDataException` for a file that
        is not valid base64.
        """
        form: dict[str, Any] = {}
        problems: dict[str, Any] = {}
        for name, value in self.input.items():
            if name in self.files:
                try:
                    value = self._decoded(name)
                except BadFile as e:
                    problems[name] = str(e)
            if name != "filename":
                form[f"{name}[]" if isinstance(value, list) and not name.endswith("[]") else name] = value
        if problems:
            raise JsonDataException({"input": problems} if self.wrapped else problems)
        return form

    def _decoded(self, name: str) -> Any:
        """The file or the list of files in field `name`, as values of a form. Raises `BadFile`."""
        files = [file.decoded() for file in self.files[name]]
        return files if isinstance(self.input[name], list) else files[0]

    @property
    def file_bytes(self) -> int:
        """The total size of all files or, for an `upload`, the size of the form."""
        if self.upload is not None:
            return self.upload.size_bytes
        return sum(file.size_bytes for several in self.files.values() for file in several)


@dataclass
class RecordingRequest(FileRequest):
    """A recording to transcribe or to translate."""

    fields: ClassVar[Mapping[str, Types]] = {"file": AUDIO}

    def count_workload(self) -> float:
        return workload.of_recording(self.file_bytes)


@dataclass
class ImageEditRequest(FileRequest):
    """`/v1/images/edits`: change images, as a whole or where the mask is transparent."""

    fields: ClassVar[Mapping[str, Types]] = {"image": IMAGES, "mask": IMAGES}

    def count_workload(self) -> float:
        return workload.of_images(self.input)


@dataclass
class TokenizeRequest(OpenAIRequest):
    """`/tokenize` and `/detokenize`, which take next to no time."""

    def count_workload(self) -> float:
        return workload.LEAST


@dataclass
class LookupRequest(OpenAIRequest):
    """A request for what the server knows, in the parameters of a URL. The workload is 0."""

    def count_workload(self) -> float:
        return 0.0

    @classmethod
    def for_test(cls) -> Self:
        return cls({})


@dataclass
class ModelsRequest(LookupRequest):
    """`/v1/models`: list the models. Any JSON is accepted."""


@dataclass
class PassedRequest(OpenAIRequest):
    """A request of any kind: JSON, or a body of another media type, which is passed on unread."""

    upload: Upload | None = field(default=None, init=False)

    @classmethod
    def from_upload(cls, upload: Upload) -> Self:
        payload = cls({})
        payload.upload = upload
        return payload

    def generate_payload_upload(self) -> Upload | None:
        return self.upload

    def count_workload(self) -> float:
        if self.upload is not None:
            return workload.of_recording(self.upload.size_bytes)
        return workload.of_any(self.input)
