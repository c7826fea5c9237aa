"""The health of the GPUs: faults found in readings and XID events (docs/operating.md, "GPU health").

Owns the rules, the findings and their words. Reading is in nvml.py and watch.py.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lib.gpu.nvml import Gpu, Readings, Trouble, Xid
from lib.gpu.xids import Severity, meaning_of
from lib.runtime.clock import Clock

log = logging.getLogger(__name__)

# Hardware and heat hold the clocks for moments under normal load.
SLOW_FOR_S = 60.0
# Two readings further apart don't show what was between them.
MAX_GAP_S = 15.0
# Readings that are older are not shown: the driver hangs.
STALE_S = 60.0
# A warning that repeats is logged again after this time.
WARN_EVERY_S = 60.0

# The reasons for low clocks that are faults, by their bit (nvml.h). Others (the power cap, idle) are normal.
SLOWDOWNS = {
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}
_RESTART = "Restart the machine; replace the GPU if it happens again"
_TROUBLES = {
    Trouble.LOST: f"the GPU is gone: the driver has lost it. {_RESTART}",
    Trouble.RESET_REQUIRED: "the GPU can't be used before a reset. Reset it, or restart the machine",
    Trouble.UNUSABLE: f"the driver counts the GPU and can't open it. {_RESTART}",
}


@dataclass
class GpuFinding:
    """A fault or a warning. `gpu` is an index, None if no GPU is named; times are Unix times.

    `count` is the number of times that it came, `at` the time of the last one. `is_over`: it has ended.
    """

    severity: Severity
    gpu: int | None
    text: str
    first_at: float
    at: float
    count: int = 1
    is_over: bool = False
    logged_s: float = -math.inf
    logged_count: int = 0


@dataclass
class GpuHistory:
    """The past of one GPU since the start of the worker. `slow_s` is monotonic, None if it isn't slow.

    `xid_events` has the number of events by XID. `ecc_errors` is the growth of `ecc_counter`, the counter of
    uncorrectable errors. `slowdowns` are the reasons of the last reading.
    """

    xid_events: Counter[int] = field(default_factory=Counter[int])
    ecc_errors: int = 0
    ecc_counter: int | None = None
    slow_s: float | None = None
    read_s: float = -math.inf
    was_readable: bool = False
    slowdowns: tuple[str, ...] = ()


class GpuHealth:
    """Takes readings and events, and keeps what they show. `on_error` is called with all errors in words.

    Errors stay until the worker is restarted. Belongs to the event loop.
    """

    def __init__(self, clock: Clock, on_error: Callable[[str], object]) -> None:
        self._clock = clock
        self._on_error = on_error
        self._readings = Readings(())
        self._read_at = 0.0
        self._read_s = clock.monotonic()
        self._histories: dict[int | None, GpuHistory] = {}
        self._findings: dict[tuple[int | None, str], GpuFinding] = {}

    @property
    def gpus(self) -> Sequence[Gpu]:
        """The last reading of each GPU, which is old if `is_stale`; none before the first."""
        return self._readings.gpus

    @property
    def is_stale(self) -> bool:
        """Whether NVML has not answered for `STALE_S` seconds."""
        return self._clock.monotonic() - self._read_s > STALE_S

    @property
    def findings(self) -> Sequence[GpuFinding]:
        """All that was found since the start, the oldest first."""
        return list(self._findings.values())

    def history_of(self, gpu: int | None) -> GpuHistory:
        """The past of the GPU with this index; that of None has the events that name no GPU."""
        return self._histories.setdefault(gpu, GpuHistory())

    def has_error(self, gpu: int | None) -> bool:
        """Whether `gpu` has an error."""
        return any(f.gpu == gpu and f.severity is Severity.ERROR for f in self._findings.values())

    def name_of(self, gpu: int | None) -> str:
        """The model of the GPU with this index, or ""."""
        return next((g.name for g in self._readings.gpus if g.index == gpu), "")

    def note_readings(self, readings: Readings) -> None:
        """Compare new readings with those before, and keep them."""
        self._readings = readings
        self._read_at, self._read_s = self._clock.wall(), self._clock.monotonic()
        self._end(None, "silent", "NVML answers again")
        for gpu in readings.gpus:
            self._note_faults(gpu)
            self._note_unreadable(gpu)
            self._note_ecc_errors(gpu)
            self._note_remap(gpu)
            self._note_slowdown(gpu)
        known = sum(gpu.trouble is not None for gpu in readings.gpus)
        lost = max(readings.missing, 1 if readings.is_any_lost else 0)
        if lost > known:
            text = f"GPUs that the driver has lost: {lost} of {len(readings.gpus)}. Restart the machine"
            self._find_once(None, f"{lost} missing", text)

    def note_xid(self, xid: Xid) -> None:
        """Note an event."""
        self.history_of(xid.gpu).xid_events[xid.number] += 1
        meaning = meaning_of(xid.number)
        where = " of a GPU that NVML doesn't name" if xid.gpu is None else ""
        where += "" if xid.instance is None else f" in MIG instance {xid.instance}"
        text = f"XID {xid.number}{where}: {meaning.words}. {meaning.advice}"
        self._find(xid.gpu, f"XID {xid.number}{where}", meaning.severity, text)

    def note_time(self) -> None:
        """Warn if NVML has not answered for long."""
        if self.is_stale:
            text = f"NVML has not answered for {STALE_S:g} s: the driver may hang. Look at the kernel's log"
            self._begin(None, "silent", text)

    def facts(self) -> dict[str, Any] | None:
        """The JSON of `gpu` in `/status`; None before the first reading, and without a GPU."""
        if not self._readings.gpus and not self._findings:
            return None
        return {
            "at": self._read_at,
            "gpus": [self._facts_of(gpu) for gpu in self._readings.gpus],
            "findings": [
                {
                    "severity": f.severity.value,
                    "gpu": f.gpu,
                    "text": f.text,
                    "first_at": f.first_at,
                    "at": f.at,
                    "count": f.count,
                    "is_over": f.is_over,
                }
                for f in self._findings.values()
            ],
        }

    def _facts_of(self, gpu: Gpu) -> dict[str, Any]:
        history = self.history_of(gpu.index)
        return {
            "index": gpu.index,
            "name": gpu.name,
            "utilization": gpu.utilization,
            "memory_used_bytes": gpu.memory_used_bytes,
            "memory_total_bytes": gpu.memory_total_bytes,
            "slowdowns": list(history.slowdowns),
            "uncorrectable_ecc_errors": None if gpu.uncorrectable_ecc_errors is None else history.ecc_errors,
            "remap_pending": gpu.remap_pending,
            "xid_events": {str(xid): count for xid, count in history.xid_events.items()},
            "tells_xids": gpu.tells_xids,
        }

    def _note_faults(self, gpu: Gpu) -> None:
        if gpu.trouble is not None:
            self._find_once(gpu.index, gpu.trouble.name, _TROUBLES[gpu.trouble])
        if gpu.remap_failed:
            text = "memory that failed could not be replaced (row remap). Replace the GPU"
            self._find_once(gpu.index, "remap failed", text)

    def _note_unreadable(self, gpu: Gpu) -> None:
        history = self.history_of(gpu.index)
        if gpu.memory_total_bytes is not None:
            history.was_readable = True
            self._end(gpu.index, "unreadable", "NVML can read it again")
        elif history.was_readable and gpu.trouble is None:
            self._begin(gpu.index, "unreadable", "NVML can't read it any more. Look at the kernel's log")

    def _note_ecc_errors(self, gpu: Gpu) -> None:
        history, counter = self.history_of(gpu.index), gpu.uncorrectable_ecc_errors
        if counter is None:
            return
        # It starts anew when the GPU is reset.
        growth = 0 if history.ecc_counter is None else max(0, counter - history.ecc_counter)
        history.ecc_counter = counter
        history.ecc_errors += growth
        if growth:
            many = "error" if history.ecc_errors == 1 else "errors"
            text = f"{history.ecc_errors} uncorrectable ECC {many} since the worker's start"
            self._find(gpu.index, "ecc", Severity.WARNING, text, growth)

    def _note_remap(self, gpu: Gpu) -> None:
        if gpu.remap_pending:
            text = "memory that failed will be replaced at the GPU's next reset. Reset it when it is idle"
            self._begin(gpu.index, "remap pending", text)
        elif gpu.remap_pending is not None:
            self._end(gpu.index, "remap pending", "no memory waits for its replacement any more")

    def _note_slowdown(self, gpu: Gpu) -> None:
        history, now_s = self.history_of(gpu.index), self._clock.monotonic()
        reasons = gpu.clock_reasons
        history.slowdowns = tuple(words for bit, words in SLOWDOWNS.items() if (reasons or 0) & bit)
        was_read_s, history.read_s = history.read_s, now_s
        if not history.slowdowns:
            if reasons is not None:
                self._end(gpu.index, "slow", "the slowdown has ended")
            history.slow_s = None
            return
        if history.slow_s is None or now_s - was_read_s > MAX_GAP_S:
            history.slow_s = now_s
        if now_s - history.slow_s >= SLOW_FOR_S:
            words = ", ".join(history.slowdowns)
            text = f"{words} for over a minute. Look at its cooling and its power supply"
            self._begin(gpu.index, "slow", text)

    def _begin(self, gpu: int | None, kind: str, text: str) -> None:
        """Note a warning that lasts, when it begins."""
        finding = self._findings.get((gpu, kind))
        if finding is None or finding.is_over:
            self._find(gpu, kind, Severity.WARNING, text)

    def _end(self, gpu: int | None, kind: str, text: str) -> None:
        """Note the end of a warning that lasts, if there is one."""
        finding = self._findings.get((gpu, kind))
        if finding is not None and not finding.is_over:
            finding.is_over = True
            log.info("%s%s", self._prefix(gpu), text)

    def _find_once(self, gpu: int | None, kind: str, text: str) -> None:
        """Note an error that each reading shows again."""
        if (gpu, kind) not in self._findings:
            self._find(gpu, kind, Severity.ERROR, text)

    def _find(self, gpu: int | None, kind: str, severity: Severity, text: str, count: int = 1) -> None:
        text, now = f"{self._prefix(gpu)}{text}", self._clock.wall()
        finding = self._findings.get((gpu, kind))
        is_new = finding is None
        if finding is None:
            finding = self._findings[gpu, kind] = GpuFinding(severity, gpu, text, now, now, count)
        else:
            finding.text, finding.at, finding.is_over = text, now, False
            finding.count += count
        self._log(finding)
        if is_new and severity is Severity.ERROR:
            errors = [f.text for f in self._findings.values() if f.severity is Severity.ERROR]
            self._on_error("; ".join(errors))

    def _log(self, finding: GpuFinding) -> None:
        now_s = self._clock.monotonic()
        if now_s - finding.logged_s < WARN_EVERY_S:
            return
        more = finding.count - finding.logged_count - 1
        suffix = f" ({more} more since the last line)" if finding.logged_count and more else ""
        finding.logged_s, finding.logged_count = now_s, finding.count
        level = logging.ERROR if finding.severity is Severity.ERROR else logging.WARNING
        log.log(level, "%s%s", finding.text, suffix)

    def _prefix(self, gpu: int | None) -> str:
        return "" if gpu is None else f"GPU {gpu} ({self.name_of(gpu)}): "
