"""The tone of the benchmark, and its answers."""

from __future__ import annotations

import io
import math
import struct
import wave

import pytest

from tests.workers.noted_answers import caller_of, outcome_of
from tests.workers.whisper.fake_server import FakeWhisper
from workers.whisper.benchmark import WhisperBenchmarkHandler
from workers.whisper.data_types import MAX_PITCH, MIN_PITCH, ToneRequest, tone_wav


@pytest.mark.parametrize("pitch", [MIN_PITCH, 440, MAX_PITCH])
def test_the_tone_is_a_sine_of_30_s(pitch: int) -> None:
    with wave.open(io.BytesIO(tone_wav(pitch))) as sound:
        assert (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) == (1, 2, 16_000)
        samples = [value for (value,) in struct.iter_unpack("<h", sound.readframes(sound.getnframes()))]
    assert len(samples) == 30 * 16_000
    # A sine of this pitch, which goes on from second to second.
    for i in (0, 1, 15_999, 16_000, 16_001, 479_999):
        assert samples[i] == pytest.approx(8_000 * math.sin(2 * math.pi * pitch * i / 16_000), abs=1)


def test_payloads_for_tests_are_valid_and_differ() -> None:
    payloads = [ToneRequest.for_test() for _ in range(4)]
    assert [ToneRequest.from_json_msg(payload.input) for payload in payloads] == payloads
    assert {payload.count_workload() for payload in payloads} == {300.0}
    assert len({payload.input["file"] for payload in payloads}) > 1


async def test_the_error_of_older_versions_is_a_failure() -> None:
    handler = WhisperBenchmarkHandler()
    async with caller_of(FakeWhisper(cpp=True, fails=True).app()) as caller:
        found = await outcome_of(handler.call_model(caller, handler.make_benchmark_payload()), caller)
    assert (found.status, found.text) == (502, '{"error": "failed to process audio"}')


async def test_without_the_model_the_answer_names_it() -> None:
    handler = WhisperBenchmarkHandler(model_name="other")
    async with caller_of(FakeWhisper().app()) as caller:
        found = await outcome_of(handler.call_model(caller, handler.make_benchmark_payload()), caller)
    assert (found.status, found.text) == (404, '{"detail": "Model is not installed locally."}')
