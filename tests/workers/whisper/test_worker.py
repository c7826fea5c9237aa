"""The whisper worker as a process, through the local engine, in front of a fake model server."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from tests.system import GUARD_S
from tests.workers.whisper.fake_server import MODEL
from tests.workers.worker_system import WorkerSystem, worker_system

SPEACHES_LINE = "INFO:     Application startup complete."
CPP_LINE = "whisper server listening at http://127.0.0.1:8080"
SOUND = b"RIFF" + bytes(range(256)) * 250
FILE = {"file": base64.b64encode(SOUND).decode(), "filename": "a.wav"}
SENT = {"filename": "a.wav", "size": len(SOUND), "sha256": hashlib.sha256(SOUND).hexdigest()}
TRANSCRIPTIONS = "/v1/audio/transcriptions"


def whisper(
    tmp_path: Path, *options: str, measured: bool = True, env: Mapping[str, str] | None = None
) -> AbstractAsyncContextManager[WorkerSystem]:
    line = CPP_LINE if "--cpp" in options else SPEACHES_LINE
    return worker_system(
        tmp_path,
        "whisper",
        env={"MODEL_NAME": MODEL, **(env or {})},
        options=["--line", line, *options],
        measured=measured,
    )


async def test_transcriptions_and_translations(tmp_path: Path) -> None:
    async with whisper(tmp_path) as here:
        for path in (TRANSCRIPTIONS, "/v1/audio/translations"):
            for payload in ({**FILE, "language": "en"}, {"input": {**FILE, "language": "en"}}):
                assert await here.call(path, payload) == (200, {"text": "hello"})
                form = {"file": SENT, "language": "en", "model": MODEL}
                assert (await here.received())[-1] == {"path": path, "form": form}
        assert await here.call("/v1/models", {}) == (200, {"object": "list", "data": [{"id": MODEL}]})
        async with here.post("/v1/audio/speech", {"input": "Hello"}) as answer:
            assert answer.content_type == "audio/mpeg"
        # 16,000 bytes are a second, which counts as 10 tokens; 15 characters to speak count as 50.
        served = 4 * len(SOUND) / 1600 + len("Hello") / 15 * 50
        await here.system.reported(served - 0.01)
        assert here.system.totals.cur_perf == pytest.approx(served)


async def test_failures_are_errors_and_the_server_refuses_wrong_requests(tmp_path: Path) -> None:
    async with whisper(tmp_path) as here:
        status, answer = await here.call(TRANSCRIPTIONS, {**FILE, "language": "fail"})
        assert (status, answer["error"]) == (500, "failed to process audio")
        for language, end in (("break", b'{"error": "CUDA error"}'), ("en", b'{"text": "world"}')):
            request = {**FILE, "language": language, "stream": "true"}
            async with here.post(TRANSCRIPTIONS, request) as stream:
                assert (await stream.read()).rstrip().endswith(end)
        status, answer = await here.call(TRANSCRIPTIONS, {**FILE, "model": "other"})
        assert (status, answer["detail"]) == (404, "Model is not installed locally.")
        status, answer = await here.call(TRANSCRIPTIONS, {"language": "en"})
        assert (status, answer) == (422, {"detail": "file: Field required"})
        await here.system.engine.wait_for(lambda: len(here.system.engine.finished) == 5, GUARD_S)
        statuses = [f.request.status for f in here.system.engine.finished]
        assert statuses == ["Error", "Error", "Success", "Success", "Success"]


@pytest.mark.parametrize("method", ["POST", "DELETE"])
@pytest.mark.parametrize("path", ["/load", "/v1/models/tiny", "/api/ps/tiny", "/v1/chat/completions"])
async def test_models_can_not_be_changed(tmp_path: Path, method: str, path: str) -> None:
    async with whisper(tmp_path, "--cpp") as here:
        envelope = {"auth_data": here.system.auth(), "payload": {"model": "/etc/passwd"}}
        async with here.system.http.request(method, here.system.url + path, json=envelope) as answer:
            assert answer.status == 404
        assert await here.received() == []


@pytest.mark.parametrize(("options", "path"), [((), TRANSCRIPTIONS), (("--cpp",), "/inference")])
async def test_the_benchmark_sends_tones_that_differ(
    tmp_path: Path, options: tuple[str, ...], path: str
) -> None:
    async with whisper(tmp_path, *options, measured=False) as here:
        received = await here.received()
        forms = [r["form"] for r in received if r["path"] == path]
        assert [r["path"] for r in received][-len(forms) :] == [path] * len(forms)
        assert {(f["vad_filter"], f["model"]) for f in forms} == {("false", MODEL)}
        assert {f["file"]["size"] for f in forms} == {44 + 30 * 16_000 * 2}
        assert len({f["file"]["sha256"] for f in forms}) > 1
    saved = json.loads((tmp_path / ".pyworker_benchmark.json").read_text())
    assert saved["perf"] == here.system.last_report.max_perf > 0


async def test_the_route_of_whisper_cpp(tmp_path: Path) -> None:
    async with whisper(tmp_path, "--cpp", env={"MODEL_NAME": ""}) as here:
        assert await here.call("/inference", {**FILE, "temperature": 0.5}) == (200, {"text": "hello"})
        assert (await here.received())[-1]["form"] == {"file": SENT, "temperature": "0.5"}
        status, _ = await here.call(TRANSCRIPTIONS, FILE)
        assert status == 404
        status, output = await here.run("workers.whisper.client", "--path", "/inference")
        assert (status, output) == (0, "hello\n")


async def test_an_error_line_of_the_log_is_reported(tmp_path: Path) -> None:
    async with whisper(tmp_path, "--cpp") as here:
        with (tmp_path / "model.log").open("a") as log:
            log.write("error: failed to initialize whisper context\n")
        assert "whisper context" in await here.system.errored()


async def test_the_example_client_and_the_load_test(tmp_path: Path) -> None:
    recording = tmp_path / "a.wav"
    recording.write_bytes(SOUND)
    async with whisper(tmp_path) as here:
        status, output = await here.run("workers.whisper.client", "--language", "en", str(recording))
        assert (status, output) == (0, "hello\n")
        assert (await here.received())[-1]["form"] == {"file": SENT, "language": "en", "model": MODEL}
        status, output = await here.run("workers.whisper.client", "--language", "fail")
        assert (status, "HTTP 500" in output) == (1, True)
        status, output = await here.run("workers.whisper.test_load", "-n", "2", "-rps", "1000")
        assert (status, "2 of 2 requests" in output) == (0, True)
