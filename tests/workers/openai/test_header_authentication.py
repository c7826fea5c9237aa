"""OpenAI's own client, unmodified, calls a worker: its API key is the engine's signed answer."""

from __future__ import annotations

import hashlib
from pathlib import Path

import openai
import pytest

from tests.workers.openai.fake_server import MODEL, SPEECH
from tests.workers.worker_system import worker_system


async def test_openais_client_uses_every_route(tmp_path: Path) -> None:
    async with (
        worker_system(tmp_path, "openai", env={"MODEL_NAME": MODEL}, scheme="url") as here,
        openai.AsyncOpenAI(
            base_url=here.system.url + "/v1", api_key=here.system.bearer(), max_retries=0
        ) as client,
    ):
        whole = await client.completions.create(model=MODEL, prompt="Hello", max_tokens=3)
        assert whole.choices[0].text == " word" * 3
        chat = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hello"}], max_tokens=3, stream=True
        )
        assert [chunk.choices[0].delta.content async for chunk in chat] == [" word"] * 3
        assert [model.id async for model in client.models.list()] == [MODEL]
        assert (await here.received())[-1]["method"] == "GET"
        vectors = await client.embeddings.create(model=MODEL, input="Hello", encoding_format="float")
        assert vectors.data[0].embedding == [0.5, -1.0]
        spoken = await client.audio.speech.create(model=MODEL, voice="alloy", input="Hello")
        assert await spoken.aread() == SPEECH
        drawn = await client.images.generate(model=MODEL, prompt="A house")
        assert drawn.data
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            await client.completions.create(model="other", prompt="Hello")
        scored = await client.completions.create(
            model=MODEL, prompt="Hello", max_tokens=0, echo=True, logprobs=1
        )
        assert scored.choices[0].text == ""


async def test_a_form_is_passed_on_unchanged(tmp_path: Path) -> None:
    sound = bytes(range(256)) * 10_000
    async with (
        worker_system(tmp_path, "openai", scheme="url") as here,
        openai.AsyncOpenAI(
            base_url=here.system.url + "/v1", api_key=here.system.bearer(), max_retries=0
        ) as client,
    ):
        heard = await client.audio.transcriptions.create(
            model=MODEL, file=("a b.wav", sound), timestamp_granularities=["word"], response_format="json"
        )
        assert heard.text == "word"
        parts = {part["name"]: part for part in heard.model_extra["parts"]} if heard.model_extra else {}
        assert parts["model"]["text"] == MODEL
        assert parts["timestamp_granularities[]"]["text"] == "word"
        assert (parts["file"]["filename"], parts["file"]["sha256"]) == (
            "a b.wav",
            hashlib.sha256(sound).hexdigest(),
        )
        await here.system.reported(served=len(sound) / 16_000 * 10)
        async with here.system.http.post(
            here.system.url + "/v1/audio/translations",
            data=b"sound",
            headers={**here.system.header(), "Content-Type": "audio/wav"},
        ) as answer:
            assert answer.status == 422
            assert "must be multipart/form-data or JSON, not audio/wav" in await answer.text()
        async with here.system.http.post(
            here.system.url + "/v1/completions",
            data=b"sound",
            headers={**here.system.header(), "Content-Type": "audio/wav"},
        ) as answer:
            assert answer.status == 415
