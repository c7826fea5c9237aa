"""The benchmark's result from one start of the worker to the next (authoring.md §3 Benchmark).

Owns `.pyworker_benchmark.json`, what a result depends on, and the older `.has_benchmark`. All of it blocks:
call it in a thread. Measuring is benchmark.py's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

log = logging.getLogger(__name__)

FILE_NAME = ".pyworker_benchmark.json"
# Written by other workers and by authors: a bare number.
OLD_FILE_NAME = ".has_benchmark"
# Nothing that was written here comes near it.
MAX_FILE_BYTES = 4 * 1024 * 1024

NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
NVIDIA_SMI_LIMIT_S = 10.0
# A process hung in the driver can't be killed: it is left behind after this.
KILL_GRACE_S = 1.0

MAX_SHAPE_DEPTH = 16


@dataclass(frozen=True)
class BenchmarkInputs:
    """What a result depends on; `payload_shape` is JSON, by default what `payload_shape()` gives.

    `endpoint` None: the handler tells none. `concurrency` None: found by the benchmark. `gpus`: a name for
    each.
    """

    handler: str
    endpoint: str | None
    concurrency: int | None
    runs: int
    model_url: str
    model_name: str
    gpus: tuple[str, ...]
    payload_shape: Any

    def key(self) -> str:
        """Equal for equal inputs: a SHA-256 in hex."""
        return _key(asdict(self))


def _key(inputs: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def payload_shape(payload: Any) -> Any:
    """What kind of payload this is, as JSON: keys and types without values.

    An object is its keys, sorted, each with its value's shape; a list is the different shapes in it,
    sorted; anything else is a type's name, "number" for ints and floats alike. Below 16 levels: "…".
    """
    return _shape(payload, MAX_SHAPE_DEPTH)


def _shape(value: Any, levels: int) -> Any:
    if isinstance(value, (dict, list, tuple)) and levels == 0:
        return "…"
    if isinstance(value, dict):
        members = {str(key): member for key, member in cast("dict[Any, Any]", value).items()}
        return {key: _shape(members[key], levels - 1) for key in sorted(members)}
    if isinstance(value, (list, tuple)):
        shapes = [_shape(item, levels - 1) for item in cast("Sequence[Any]", value)]
        by_text = {json.dumps(shape, sort_keys=True): shape for shape in shapes}
        return [by_text[text] for text in sorted(by_text)]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "number"
    return "null" if value is None else type(value).__name__


def load(directory: Path, inputs: BenchmarkInputs) -> float | None:
    """The result in workload/s saved in `directory` for the same inputs, or None; raises nothing.

    Without a saved one, the number in `.has_benchmark` serves, whatever the inputs. What can't be read
    is warned of and ignored.
    """
    path = directory / FILE_NAME
    text = _read(path)
    if text is not None:
        return _saved(path, text, inputs)
    if path.exists():
        return None  # there, but not readable: told by now
    old_path = directory / OLD_FILE_NAME
    old_text = _read(old_path)
    return None if old_text is None else _bare_number(old_path, old_text)


def save(directory: Path, inputs: BenchmarkInputs, perf: float) -> None:
    """Keep `perf`, in workload/s, for the next start. Atomic; a failure is warned of, and no error."""
    text = json.dumps({"perf": perf, "inputs": asdict(inputs)}, indent=2, sort_keys=True) + "\n"
    try:
        _replace(directory / FILE_NAME, text)
    except OSError as e:
        log.warning("the benchmark's result can't be saved in %s: %s", directory, e)


def gpus(command: Sequence[str] = NVIDIA_SMI, limit_s: float = NVIDIA_SMI_LIMIT_S) -> tuple[str, ...]:
    """The name of each GPU, by `command`; () where there is none, or no answer within `limit_s`."""
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError:
        return ()
    try:
        output, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        log.warning("%s gave no answer within %g s: no GPU is assumed", command[0], limit_s)
        _abandon(process)
        return ()
    if process.returncode != 0:
        return ()
    names = (line.strip() for line in output.decode(errors="replace").splitlines())
    return tuple(name for name in names if name)


def _abandon(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(KILL_GRACE_S)
    if process.stdout:
        process.stdout.close()


def _read(path: Path) -> str | None:
    """The file's text, "" if it is no text, None if it can't be read (then told, unless it is absent)."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return None
    except OSError as e:
        log.warning("%s can't be read and is ignored: %s", path, e)
        return None


def _saved(path: Path, text: str, inputs: BenchmarkInputs) -> float | None:
    try:
        perf, old = _parse(text)
        changed = [] if _key(old) == inputs.key() else _changed(old, asdict(inputs))
    except (ValueError, RecursionError):
        log.warning("%s holds no benchmark result and is ignored", path)
        return None
    if changed:
        log.info("benchmark: measured anew, since %s changed", ", ".join(changed))
        return None
    return perf


def _parse(text: str) -> tuple[float, dict[str, Any]]:
    """Result and inputs out of a saved file. Raises `ValueError`, or `RecursionError` for nested nothing."""
    message = json.loads(text)
    saved = cast("dict[str, Any]", message) if isinstance(message, dict) else {}
    perf, inputs = saved.get("perf"), saved.get("inputs")
    if not isinstance(inputs, dict) or not _is_result(perf):
        raise ValueError("not a benchmark result")
    return float(cast(float, perf)), cast("dict[str, Any]", inputs)


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The names of the inputs in which `old` and `new` differ."""
    return [
        name
        for name in sorted({*old, *new})
        if name not in old or name not in new or _key({"": old[name]}) != _key({"": new[name]})
    ]


def _bare_number(path: Path, text: str) -> float | None:
    try:
        perf = float(text)
    except ValueError:
        perf = math.nan
    if _is_result(perf):
        log.info("benchmark: %g workload/s by %s", perf, path)
        return perf
    log.warning("%s holds no number above 0 and is ignored", path)
    return None


def _is_result(perf: Any) -> bool:
    is_number = isinstance(perf, (int, float)) and not isinstance(perf, bool)
    return is_number and 0 < perf <= 1e300


def _replace(path: Path, text: str) -> None:
    """Write `path` so that it is either as before or whole."""
    fd, name = tempfile.mkstemp(prefix=path.name, suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
