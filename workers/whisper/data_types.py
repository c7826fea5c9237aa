"""The payload of the whisper worker's benchmark and load test: a recording of a tone.

The payloads of clients are in workers/openai/data_types.py. Nothing is downloaded: the tone is made here.
"""

from __future__ import annotations

import array
import base64
import io
import math
import random
import sys
import wave
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.openai.data_types import RecordingRequest
from workers.openai.workload import SOUND_BYTES_PER_S, of_recording

if TYPE_CHECKING:
    from typing_extensions import Self

# Whisper reads sound in windows of 30 s.
TONE_S = 30
SAMPLE_RATE = 16_000
AMPLITUDE = 8_000
# In Hz, whole numbers: then each second of the tone is the same.
MIN_PITCH, MAX_PITCH = 200, 2_000


@dataclass
class ToneRequest(RecordingRequest):
    """A tone of 30 s at a random pitch. Its workload is that of 30 s, whatever the size of the file."""

    def count_workload(self) -> float:
        return of_recording(TONE_S * SOUND_BYTES_PER_S)

    @classmethod
    def for_test(cls) -> Self:
        # The detection of voice would find none, and the model would have nothing to do.
        tone = base64.b64encode(tone_wav(random.randint(MIN_PITCH, MAX_PITCH))).decode()
        return cls.of({"file": tone, "filename": "tone.wav", "vad_filter": "false"})


def tone_wav(pitch: int) -> bytes:
    """Return a WAV file with a sine of `pitch` Hz: 30 s, 16 bits, 16 kHz, one channel."""
    step = 2 * math.pi * pitch / SAMPLE_RATE
    second = array.array("h", (round(AMPLITUDE * math.sin(step * i)) for i in range(SAMPLE_RATE)))
    if sys.byteorder == "big":
        second.byteswap()
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SAMPLE_RATE)
        out.writeframes(second.tobytes() * TONE_S)
    return file.getvalue()
