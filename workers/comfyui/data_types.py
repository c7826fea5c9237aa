"""The payloads of the comfyui worker: the request of each route and its workload.

Owns the fields, their ranges and the workload. How a request is executed depends on the model server's
dialect and is in native.py, wrapper.py and runsync.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from lib.data_types import ApiPayload, JsonDataException
from lib.uploads import Upload
from lib.words import some_words
from workers.comfyui.images import ImageFormat, format_in, format_problems
from workers.comfyui.inputs import GraphWithFiles, Places, extract_files, payload_in_form
from workers.comfyui.workflows import RANDOM_INT, RANDOM_INTS, default_workflow, fill, graph_problem
from workers.comfyui.workload import (
    MAX_SIZE,
    MAX_STEPS,
    STANDARD_SIZE,
    STANDARD_STEPS,
    graph_work,
    image_workload,
)

if TYPE_CHECKING:
    from typing_extensions import Self

# The workload of a job like the benchmark's, and of one whose size or steps are unknown.
JOB_WORKLOAD = 100.0
# Seeds are unsigned 64-bit integers.
MAX_SEED = 2**64 - 1
MIN_SIZE = 16

DEFAULT_MODEL = "flux"
TEST_PROMPT_WORDS = 30
TEST_SIZE = 512
TEST_STEPS = 20

_OUTPUT_TYPES = ("output", "temp", "input")


@dataclass
class GenerateInput(ApiPayload):
    """`/generate/sync` and `/generate/stream`: `{"input": {…}}`, the wrapper's request format.

    `others` are the keys beside `input`. `form` is the form with input files in which the payload came.
    `benchmark_work` is the work of the benchmark's graph in standard
    images, None if unknown. `uploads`: whether outputs may be uploaded to the worker's own bucket. The
    benchmark's are not.
    """

    input: dict[str, Any]
    others: dict[str, Any] = field(init=False, default_factory=dict[str, Any])
    form: Upload | None = field(init=False, default=None)
    benchmark_work: float | None = field(init=False, default=None)
    uploads: bool = field(init=False, default=True)

    @classmethod
    def from_json_msg(cls, json_msg: dict[str, Any]) -> Self:
        payload = super().from_json_msg(json_msg)
        payload.others = {name: value for name, value in json_msg.items() if name != "input"}
        return payload

    @classmethod
    def from_upload(cls, upload: Upload) -> Self:
        """The payload in a form, whose other fields are input files. Raises `JsonDataException`."""
        payload = cls.from_json_msg(payload_in_form(upload))
        payload.form = upload
        return payload

    def workflow_with_files(self) -> GraphWithFiles:
        """The workflow with its placeholders filled in, and its input files. Raises `JsonDataException`."""
        places = Places(("input", "workflow_json"), ("input", "inputs"))
        found = extract_files(self.input["workflow_json"], self.input.get("inputs"), places)
        return GraphWithFiles(fill(found.graph, {}), found.files)

    def generate_payload_json(self) -> dict[str, Any]:
        """The client's JSON, unchanged."""
        return {"input": self.input, **self.others}

    def count_workload(self) -> float:
        """The work relative to the benchmark's, which counts 100.0; 100.0 if either is unknown."""
        graph = self.input.get("workflow_json", {})
        work = graph_work(graph) if graph_problem(graph) is None else None
        if work is None or self.benchmark_work is None:
            return JOB_WORKLOAD
        return JOB_WORKLOAD * work / self.benchmark_work

    @classmethod
    def for_test(cls) -> Self:
        return cls({"workflow_json": PromptInput.for_test().graph()})


@dataclass
class PromptInput(ApiPayload):
    """`/prompt`: an image by the default workflow of `model`.

    `model` is the worker's `COMFY_MODEL`, which clients can't choose. Sizes are in pixels. A request without
    a seed gets a random one.
    """

    prompt: str
    width: int = STANDARD_SIZE
    height: int = STANDARD_SIZE
    steps: int = STANDARD_STEPS
    seed: int | None = None
    output_format: str | None = None
    output_quality: int | None = None
    form: None = field(init=False, default=None)
    model: str = field(init=False, default=DEFAULT_MODEL)

    @classmethod
    def from_json_msg(cls, json_msg: dict[str, Any]) -> Self:
        problems: dict[str, Any] = dict(format_problems(json_msg))
        for name, low, high in (
            ("width", MIN_SIZE, MAX_SIZE),
            ("height", MIN_SIZE, MAX_SIZE),
            ("steps", 1, MAX_STEPS),
            ("seed", 0, MAX_SEED),
        ):
            value = json_msg.get(name)
            if isinstance(value, int) and not low <= value <= high:
                problems[name] = f"must be from {low} to {high}"
        return _checked(super().from_json_msg, json_msg, problems)

    @property
    def image_format(self) -> ImageFormat | None:
        """The format of the images in the answer; None: as ComfyUI made them."""
        return format_in(vars(self))

    def workflow_with_files(self) -> GraphWithFiles:
        """The workflow, which has no input files."""
        return GraphWithFiles(self.graph(), [])

    def graph(self) -> dict[str, Any]:
        """The workflow, with its placeholders filled in."""
        return fill(
            default_workflow(self.model),
            {
                "PROMPT": self.prompt,
                "WIDTH": self.width,
                "HEIGHT": self.height,
                "STEPS": self.steps,
                "SEED": random.randrange(RANDOM_INTS) if self.seed is None else self.seed,
            },
        )

    def count_workload(self) -> float:
        """The workload in tokens. An RTX 4090 has a throughput of 200 tokens/s."""
        return image_workload(self.model, self.width, self.height, self.steps)

    @classmethod
    def for_test(cls) -> Self:
        return cls(some_words(TEST_PROMPT_WORDS), TEST_SIZE, TEST_SIZE, TEST_STEPS)


@dataclass
class CustomWorkflowInput(ApiPayload):
    """`/custom-workflow`: the client's own `workflow`, in which `{{NAME}}` becomes `custom_fields["name"]`.

    Names are compared without case. A field is a string, a number or a boolean. `inputs` are input files by
    their names in the workflow; `form` is the form with more of them in which the payload came.
    """

    workflow: dict[str, Any]
    custom_fields: dict[str, Any] = field(default_factory=dict[str, Any])
    inputs: dict[str, Any] = field(default_factory=dict[str, Any])
    output_format: str | None = None
    output_quality: int | None = None
    form: Upload | None = field(init=False, default=None)
    model: str = field(init=False, default=DEFAULT_MODEL)

    @classmethod
    def from_json_msg(cls, json_msg: dict[str, Any]) -> Self:
        problems: dict[str, Any] = dict(format_problems(json_msg))
        if "workflow" in json_msg and (problem := graph_problem(json_msg["workflow"])):
            problems["workflow"] = problem
        if isinstance(given := json_msg.get("custom_fields"), dict):
            fields = cast("dict[str, Any]", given)
            nested = [name for name, value in fields.items() if not isinstance(value, (str, int, float))]
            if nested:
                problems["custom_fields"] = dict.fromkeys(nested, "must be a string, a number or a boolean")
        payload = _checked(super().from_json_msg, json_msg, problems)
        payload.workflow_with_files()  # raises for a wrong file
        return payload

    @classmethod
    def from_upload(cls, upload: Upload) -> Self:
        """The payload in a form, whose other fields are input files. Raises `JsonDataException`."""
        payload = cls.from_json_msg(payload_in_form(upload))
        payload.form = upload
        return payload

    def graph(self) -> dict[str, Any]:
        return fill(self.workflow, {name.upper(): value for name, value in self.custom_fields.items()})

    @property
    def image_format(self) -> ImageFormat | None:
        """The format of the images in the answer; None: as ComfyUI made them."""
        return format_in(vars(self))

    def workflow_with_files(self) -> GraphWithFiles:
        """The workflow with its placeholders filled in, and its input files. Raises `JsonDataException`."""
        return extract_files(self.graph(), self.inputs, Places(("workflow",), ("inputs",)))

    def count_workload(self) -> float:
        """The workload in tokens, as of `/prompt`; that of a standard image if size or steps are unknown."""
        work = graph_work(self.graph())
        return image_workload(self.model, STANDARD_SIZE, STANDARD_SIZE, STANDARD_STEPS) * (
            1.0 if work is None else work
        )

    @classmethod
    def for_test(cls) -> Self:
        fields = {"prompt": some_words(TEST_PROMPT_WORDS), "width": TEST_SIZE, "height": TEST_SIZE}
        workflow = fill(default_workflow(DEFAULT_MODEL), {"SEED": RANDOM_INT})
        return cls(workflow, {**fields, "steps": TEST_STEPS})


@dataclass
class ViewQuery(ApiPayload):
    """`GET /view`: a file of ComfyUI, identified by its name."""

    filename: str
    subfolder: str = ""
    type: str = "output"

    @classmethod
    def from_json_msg(cls, json_msg: dict[str, Any]) -> Self:
        """Read the three parameters and ignore others, by which ComfyUI would convert the image."""
        problems: dict[str, Any] = {}
        if isinstance(name := json_msg.get("filename"), str) and not _is_name(name):
            problems["filename"] = "must be the name of a file, without a folder"
        folder = json_msg.get("subfolder", "")
        if isinstance(folder, str) and folder and not all(map(_is_name, folder.split("/"))):
            problems["subfolder"] = "must be a relative path without .."
        if isinstance(kind := json_msg.get("type"), str) and kind not in _OUTPUT_TYPES:
            problems["type"] = f"must be one of {', '.join(_OUTPUT_TYPES)}"
        return _checked(super().from_json_msg, json_msg, problems)

    def count_workload(self) -> float:
        """The workload is 0: a file needs no GPU."""
        return 0.0

    @classmethod
    def for_test(cls) -> Self:
        return cls("flux_00001_.png")


@dataclass
class QueueQuery(ApiPayload):
    """`GET /queue-info`, which has no parameters."""

    def count_workload(self) -> float:
        """The workload is 0."""
        return 0.0

    @classmethod
    def for_test(cls) -> Self:
        return cls()


@dataclass
class JobQuery(QueueQuery):
    """A request about the asynchronous job whose `id` is in the path."""

    id: str = ""

    @classmethod
    def for_test(cls) -> Self:
        return cls("job-1")


def _checked(
    read: Callable[[dict[str, Any]], Any], json_msg: dict[str, Any], problems: dict[str, Any]
) -> Any:
    """The payload that `read` returns. Raises `JsonDataException` with its problems and with `problems`."""
    try:
        payload = read(json_msg)
    except JsonDataException as e:
        raise JsonDataException({**problems, **e.message}) from e
    if problems:
        raise JsonDataException(problems)
    return payload


def _is_name(part: str) -> bool:
    return part not in ("", ".", "..") and not set(part) & set("/\\\0")
