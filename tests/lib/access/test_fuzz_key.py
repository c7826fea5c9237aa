"""Mutated public keys (tests/endurance/fuzz_key.py): some of them."""

from __future__ import annotations

from tests.endurance.fuzz_key import try_keys


def test_whatever_is_no_key_is_a_value_error_and_changes_nothing() -> None:
    results = try_keys(500, seed=1)
    assert min(results["a key"], results["not a key"]) > 0
