"""The JSON that a client sends for a payload, for load tests and suggested requests."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast


def client_json(payload: Any) -> Mapping[str, Any]:
    """The JSON that a client sends for `payload`: a mapping itself, or the fields of a dataclass.

    Of another object it is `generate_payload_json()`, although that is meant for the model server: nothing
    else is known of it.
    """
    if isinstance(payload, Mapping):
        return cast("Mapping[str, Any]", payload)
    if dataclasses.is_dataclass(payload):
        # Fields with `init=False` are set by the worker, not by clients.
        own = {field.name for field in dataclasses.fields(payload) if not field.init}
        fields = dataclasses.asdict(cast(Any, payload))
        return {name: value for name, value in fields.items() if name not in own}
    return payload.generate_payload_json()
