from __future__ import annotations

import base64
from typing import Any

import pytest

from lib.data_types import JsonDataException
from workers.openai import uploads
from workers.openai.uploads import AUDIO, IMAGES, MIB, read_files

FIELDS = {"file": AUDIO, "image": IMAGES, "mask": IMAGES}
DATA = base64.b64encode(b"sound").decode()
SOUND_ENDINGS = "must be one of flac, m4a, mp3, mp4, mpeg, mpga, oga, ogg, wav, webm"


def problems_of(request: dict[str, Any]) -> dict[str, Any]:
    with pytest.raises(JsonDataException) as raised:
        read_files(request, FIELDS)
    return raised.value.message


@pytest.mark.parametrize(
    ("request_", "name", "content_type"),
    [
        ({"file": DATA, "filename": "a.mp3"}, "a.mp3", "audio/mpeg"),
        ({"file": DATA, "filename": "A.WAV"}, "A.WAV", "audio/wav"),
        ({"file": {"data": DATA, "filename": "a.ogg"}, "filename": "b.mp3"}, "a.ogg", "audio/ogg"),
        ({"file": f"data:audio/x-wav;base64,{DATA}", "filename": "a.wav"}, "a.wav", "audio/x-wav"),
        ({"file": f"data:audio/ogg;codecs=opus;base64,{DATA}"}, "file.oga", "audio/ogg"),
        ({"file": f"DATA:AUDIO/MPEG;BASE64,{DATA}"}, "file.mp3", "audio/mpeg"),
    ],
)
def test_a_file_has_a_name_and_a_type(request_: dict[str, Any], name: str, content_type: str) -> None:
    (file,) = read_files(request_, FIELDS)["file"]
    assert file.decoded() == (name, b"sound", content_type)
    assert file.size_bytes == 5


def test_several_files_and_no_file() -> None:
    uri = f"data:image/png;base64,{DATA}"
    files = read_files({"image": [uri, {"data": DATA, "filename": "b.jpg"}], "mask": None}, FIELDS)
    assert [f.filename for f in files["image"]] == ["image.png", "b.jpg"]
    assert list(files) == ["image"]


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        ({"file": DATA}, "needs a filename, a string"),
        ({"file": DATA, "filename": 5}, "its filename must be a string"),
        ({"file": DATA, "filename": ""}, f"the extension of its filename {SOUND_ENDINGS}"),
        ({"file": DATA, "filename": "mp3"}, f"the extension of its filename {SOUND_ENDINGS}"),
        ({"file": DATA, "filename": ".mp3"}, f"the extension of its filename {SOUND_ENDINGS}"),
        ({"file": DATA, "filename": "a.mp3.sh"}, f"the extension of its filename {SOUND_ENDINGS}"),
        ({"file": f"data:text/html;base64,{DATA}"}, f"is text/html, but {SOUND_ENDINGS}"),
        (
            {"file": f"data:text/html;base64,{DATA}", "filename": "a.mp3"},
            f"is text/html, but {SOUND_ENDINGS}",
        ),
        ({"file": "data:,sound"}, "must be a data: URI in base64: data:TYPE;base64,..."),
        (
            {"file": 5, "filename": "a.mp3"},
            'must be base64, a data: URI, or {"data": one of these, "filename": a string}',
        ),
    ],
)
def test_a_wrong_file_is_refused_with_its_problem(request_: dict[str, Any], problem: str) -> None:
    assert problems_of(request_) == {"file": problem}


def test_every_wrong_field_is_named() -> None:
    assert set(problems_of({"file": 1, "image": DATA, "mask": []})) == {"file", "image"}


def test_sizes_are_checked_before_decoding() -> None:
    largest = "A" * (uploads.MAX_FILE_BYTES // 3 * 4) + "AA=="  # 1 byte more than whole threes
    assert read_files({"file": largest, "filename": "a.mp3"}, FIELDS)["file"][0].size_bytes == 25 * MIB
    assert problems_of({"file": "A" * 4 + largest, "filename": "a.mp3"}) == {
        "file": "has more than 26214400 bytes"
    }
    image = {"data": largest, "filename": "a.png"}
    small = {"data": DATA, "filename": "a.png"}
    too_much = "a request's files have at most 67108864 bytes together"
    assert problems_of({"image": [image] * 2, "mask": image}) == {"image": too_much, "mask": too_much}
    assert problems_of({"image": [small] * 17}) == {"image": "a request has at most 16 files"}
    assert len(read_files({"image": [small] * 15, "mask": small}, FIELDS)["image"]) == 15
