"""The saved result of the benchmark (docs/operating.md, "Benchmark results").

Owns `.pyworker_benchmark.json`, the inputs that a result depends on, and the older `.has_benchmark`. All of
it blocks: call it in a thread. Measuring is in benchmark.py.
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
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import msgspec

log = logging.getLogger(__name__)

FILE_NAME = ".pyworker_benchmark.json"
# A file with just a number, written by other workers and by authors.
OLD_FILE_NAME = ".has_benchmark"
# Far more than a saved result needs.
MAX_FILE_BYTES = 4 * 1024 * 1024

NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
NVIDIA_SMI_LIMIT_S = 10.0
# Seconds to wait for a killed process: one that hangs in the driver doesn't end, and is left running.
KILL_GRACE_S = 1.0

MAX_SHAPE_DEPTH = 16

# The end of the year 9999 in Unix seconds: no date is later.
_LAST_DATE_S = 253_402_300_799


@dataclass(frozen=True)
class BenchmarkInputs:
    """The inputs that a result depends on. `payload_shape` is JSON, usually made by `payload_shape()`.

    `endpoint` is None if the handler has none, `concurrency` if the benchmark searches for it. `gpus` holds
    the name of each GPU.
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
        """The SHA-256 of the inputs in hex."""
        return _key(asdict(self))


@dataclass(frozen=True, kw_only=True)
class Result:
    """A result: `perf` in workload/s, with `concurrency` requests in flight.

    `spread` is the half of the 95 % interval of `perf`, as a part of it, `duration_s` that of the benchmark,
    `measured_at` the Unix time of its end, `workload_per_unit` the workload of a unit of progress. None and
    0.0 where that is not known, as in the number in an older file. `is_cut`: the time limit has ended the
    benchmark. `is_unsure`: too little ended to be sure. `versions` names the software, `served_model` the
    model that the server has named.
    """

    perf: float
    concurrency: int | None = None
    spread: float | None = None
    duration_s: float | None = None
    measured_at: float = 0.0
    workload_per_unit: float = 0.0
    is_cut: bool = False
    is_unsure: bool = False
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    served_model: str | None = None

    @property
    def remark(self) -> str:
        """The remark to put beside its number in parentheses, or ""."""
        words = [*(["cut by its time limit"] if self.is_cut else []), *(["unsure"] if self.is_unsure else [])]
        return f" ({', '.join(words)})" if words else ""


def _key(inputs: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def payload_shape(payload: Any) -> Any:
    """The payload's keys and types without its values, as JSON.

    An object becomes its sorted keys, each with the shape of its value; a list becomes the sorted set of the
    shapes in it; anything else becomes a type's name, "number" for both ints and floats. Levels below the
    16th become "…".
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


def load(directory: Path, inputs: BenchmarkInputs) -> Result | None:
    """The result that is saved in `directory` for the same inputs, or None; raises nothing.

    Without a saved result, the number in `.has_benchmark` is used, whatever the inputs. A file that can't be
    read is ignored with a warning.
    """
    path = directory / FILE_NAME
    text = _read(path)
    if text is not None:
        return _saved(path, text, inputs)
    if path.exists():
        return None  # it exists but can't be read, which `_read` has logged
    old_path = directory / OLD_FILE_NAME
    old_text = _read(old_path)
    perf = None if old_text is None else _bare_number(old_path, old_text)
    return None if perf is None else Result(perf=perf)


def save(directory: Path, inputs: BenchmarkInputs, result: Result) -> None:
    """Save `result` for the next start, atomically. A failure is only logged as a warning."""
    text = json.dumps({**asdict(result), "inputs": asdict(inputs)}, indent=2, sort_keys=True) + "\n"
    try:
        _replace(directory / FILE_NAME, text)
    except OSError as e:
        log.warning("the benchmark's result can't be saved in %s: %s", directory, e)


def gpus(command: Sequence[str] = NVIDIA_SMI, limit_s: float = NVIDIA_SMI_LIMIT_S) -> tuple[str, ...]:
    """The name of each GPU, from `command`; () without a GPU, or without an answer within `limit_s`."""
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError:
        return ()
    try:
        output, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        log.warning("%s did not answer within %g s: the benchmark assumes no GPU", command[0], limit_s)
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
    """The file's text, with U+FFFD for invalid UTF-8; None if it is absent or, with a warning, unreadable."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return None
    except OSError as e:
        log.warning("%s is ignored: it can't be read: %s", path, e)
        return None


def _saved(path: Path, text: str, inputs: BenchmarkInputs) -> Result | None:
    try:
        result, old = _parse(text)
        changed = [] if _key(old) == inputs.key() else _changed(old, asdict(inputs))
    except (ValueError, RecursionError):
        log.warning("%s is ignored: it holds no benchmark result", path)
        return None
    if changed:
        log.info("benchmark: measuring again, since these inputs changed: %s", ", ".join(changed))
        return None
    return result


def _parse(text: str) -> tuple[Result, dict[str, Any]]:
    """Return result and inputs of a saved file. Raises `ValueError`, or `RecursionError` for deep nesting."""
    message = json.loads(text)
    saved = cast("dict[str, Any]", message) if isinstance(message, dict) else {}
    perf, inputs = saved.get("perf"), saved.get("inputs")
    if not isinstance(inputs, dict) or not _is_result(perf):
        raise ValueError("not a benchmark result")
    known = {f.name: saved[f.name] for f in fields(Result) if f.name in saved}
    return _checked({**known, "perf": float(cast(float, perf))}), cast("dict[str, Any]", inputs)


def _checked(known: Mapping[str, Any]) -> Result:
    """A result of what a file says; only its number if anything else in it is of a wrong type or range."""
    only_perf = Result(perf=known["perf"])
    try:
        result = msgspec.convert(known, Result)
    except msgspec.ValidationError:
        return only_perf
    is_possible = result.concurrency is None or result.concurrency >= 1
    return result if is_possible and 0 <= result.measured_at <= _LAST_DATE_S else only_perf


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
        log.info("benchmark: %g workload/s from %s", perf, path)
        return perf
    log.warning("%s is ignored: it holds no number above 0", path)
    return None


def _is_result(perf: Any) -> bool:
    is_number = isinstance(perf, (int, float)) and not isinstance(perf, bool)
    return is_number and 0 < perf <= 1e300


def _replace(path: Path, text: str) -> None:
    """Write `text` to `path` atomically. Raises `OSError`; the old file is then unchanged."""
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
