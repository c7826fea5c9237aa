"""Verification of signatures, in both forms (docs/protocol.md, "Signature")."""

from __future__ import annotations

import base64
import json
import textwrap
from typing import Any

import pytest
from Crypto.PublicKey import RSA
from Crypto.Util.asn1 import DerBitString, DerNull, DerObjectId, DerSequence
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from lib.access.signatures import REMEMBERED_SIGNATURES, BadSignature, Signatures
from lib.errors import Unauthorized
from lib.local.signer import Scheme, Signer
from lib.runtime.settings import AuthScheme
from tests.keys import new_key
from tests.system import engine_key

URL = "http://worker.example:3000"
OTHER_KEY = new_key()


def signed(scheme: Scheme = "full", key: RSA.RsaKey | None = None, **values: Any) -> dict[str, Any]:
    raw = {"cost": 1.0, "endpoint": "e", "reqnum": 1, "url": URL, **values}
    return {**raw, "signature": Signer(key or engine_key()).sign(raw, scheme)}


def signatures(scheme: AuthScheme = "auto", public_url: str | None = URL) -> Signatures:
    made = Signatures(scheme, public_url)
    made.use_key(Signer(engine_key()).public_key)
    return made


def check(made: Signatures, raw: dict[str, Any]) -> None:
    made.check(raw, raw["reqnum"])


def refusal(made: Signatures, raw: dict[str, Any]) -> str:
    with pytest.raises(Unauthorized) as refused:
        check(made, raw)
    assert refused.value.status == 401
    return refused.value.message


@pytest.mark.parametrize(
    ("scheme", "form", "holds"),
    [
        ("auto", "full", True),
        ("auto", "url", True),
        ("full", "full", True),
        ("full", "url", False),
        ("url", "url", True),
        ("url", "full", False),
    ],
)
def test_the_scheme_selects_the_accepted_forms(scheme: AuthScheme, form: Scheme, holds: bool) -> None:
    made = signatures(scheme)
    if holds:
        check(made, signed(form))
    else:
        assert refusal(made, signed(form)) == "the signature is invalid"


@pytest.mark.parametrize("cost", [256, 256.0, "256", 1e-7, 0, "2.50"])
def test_values_are_signed_as_they_were_sent(cost: object) -> None:
    check(signatures("full"), signed(cost=cost))


@pytest.mark.parametrize(("was", "sent"), [(256, 256.0), (256.0, 256), (256, "256"), ("256", 256)])
def test_another_notation_of_a_value_is_another_text(was: object, sent: object) -> None:
    assert "signature" in refusal(signatures("full"), {**signed(cost=was), "cost": sent})


@pytest.mark.parametrize(
    "changed", [{"cost": 2.0}, {"endpoint": "f"}, {"reqnum": 2}, {"url": "http://worker.example:3001"}]
)
def test_the_full_form_covers_every_signed_value(changed: dict[str, Any]) -> None:
    assert refusal(signatures(), {**signed(), **changed}) == "the signature is invalid"


def test_the_full_form_escapes_non_ascii_like_json() -> None:
    check(signatures(), signed(endpoint='größe "e" \ud800'))


@pytest.mark.parametrize("form", ["full", "url"])
@pytest.mark.parametrize(
    "url",
    [
        "http://worker.example:3001",
        "https://worker.example:3000",
        "http://other.example:3000",
        "http://worker.example.evil:3000",
        "http://worker.example:3000@evil:3000",
        "worker.example:3000",
        "",
        "http://[",
        "http://worker.example:99999",
    ],
)
def test_a_signature_for_another_url_is_refused(form: Scheme, url: str) -> None:
    assert refusal(signatures(), signed(form, url=url)) == "the signature is for another worker's URL"


@pytest.mark.parametrize("form", ["full", "url"])
@pytest.mark.parametrize(
    "url", [URL, URL + "/", URL + "/generate?x=1", "http://WORKER.example:3000", "HTTP://worker.example:3000"]
)
def test_the_path_of_the_url_is_ignored(form: Scheme, url: str) -> None:
    check(signatures(), signed(form, url=url))


def test_a_missing_port_is_the_default_of_the_scheme() -> None:
    check(signatures(public_url="https://worker.example:443"), signed(url="https://worker.example/"))
    check(signatures(public_url="http://worker.example"), signed(url="http://worker.example:80"))


def test_the_url_check_can_be_turned_off() -> None:
    check(signatures(public_url=None), signed(url="http://anywhere"))
    assert "signature" in refusal(signatures(public_url=None), {**signed(), "url": "http://anywhere"})


def test_a_full_message_is_accepted_once_with_any_other_fields() -> None:
    made, raw = signatures(), signed()
    check(made, raw)
    assert refusal(made, {**raw, "request_idx": 5}).startswith("replay")
    check(made, signed(cost=2.0))


def test_a_message_may_be_used_again_where_once_is_not_required() -> None:
    made, raw = signatures(), signed()
    for _ in range(2):
        made.check(raw, raw["reqnum"], once=False)
    check(made, raw)  # what is checked without `once` isn't remembered either
    made.check(raw, raw["reqnum"], once=False)
    assert refusal(made, raw).startswith("replay")


def test_a_reqnum_more_than_a_hundred_behind_is_refused() -> None:
    made = signatures()
    check(made, signed(reqnum=1000))
    check(made, signed(reqnum=900))
    assert refusal(made, signed(reqnum=899)).startswith("replay")


def test_the_url_form_ignores_the_replay_window() -> None:
    made, raw = signatures(), signed("url")
    for reqnum in (1, 1, 10**9):
        check(made, {**raw, "reqnum": reqnum, "cost": float(reqnum)})
    check(made, signed(reqnum=5))


def test_a_refused_message_does_not_move_the_window() -> None:
    made = signatures()
    refusal(made, signed(reqnum=10**9, url="http://other:1"))
    refusal(made, signed(reqnum=10**9, key=OTHER_KEY))
    check(made, signed(reqnum=5))


@pytest.mark.parametrize("form", ["full", "url"])
def test_a_signature_for_another_worker_is_refused_each_time(form: Scheme) -> None:
    made = signatures()
    for _ in range(2):
        assert "another worker's URL" in refusal(made, signed(form, url="http://other.example:3000"))
    check(made, signed(form))


def test_a_remembered_url_signature_is_for_that_url_only() -> None:
    made, raw = signatures("url"), signed("url")
    check(made, raw)
    assert "invalid" in refusal(made, {**raw, "url": URL + "/"})
    for number in range(REMEMBERED_SIGNATURES + 1):
        check(made, signed("url", url=f"{URL}/{number}"))
    check(made, raw)


class RecordedAuth(dict[str, Any]):
    """An `auth_data` that shows whether its signed text was built: a remembered signature isn't verified."""

    was_verified = False

    def __getitem__(self, key: str) -> Any:
        self.was_verified |= key == "cost"
        return super().__getitem__(key)


def is_verified(made: Signatures, number: int) -> bool:
    raw = RecordedAuth(signed("url", url=f"{URL}/{number}"))
    made.check(raw, 1)
    return raw.was_verified


def test_the_signatures_of_the_url_form_that_were_used_last_are_remembered() -> None:
    made = signatures()
    assert all(is_verified(made, number) for number in range(REMEMBERED_SIGNATURES))
    assert not any(is_verified(made, number) for number in (*range(REMEMBERED_SIGNATURES), 0))
    assert is_verified(made, REMEMBERED_SIGNATURES)  # it takes the place of number 1
    assert not is_verified(made, 0)
    assert is_verified(made, 1)
    assert not is_verified(made, REMEMBERED_SIGNATURES)


def test_another_key_invalidates_old_signatures() -> None:
    made = signatures()
    check(made, signed(reqnum=1000))
    check(made, signed("url"))
    made.use_key(Signer(OTHER_KEY).public_key)
    assert "invalid" in refusal(made, signed(reqnum=1001))
    assert "invalid" in refusal(made, signed("url"))
    check(made, signed(reqnum=1, key=OTHER_KEY))


def test_the_same_key_again_changes_nothing() -> None:
    made, raw = signatures(), signed()
    check(made, raw)
    pem = Signer(engine_key()).public_key
    lines = pem.strip().splitlines()
    rewrapped = "\n".join([lines[0], *textwrap.wrap("".join(lines[1:-1]), 20), lines[-1]])
    pkcs1 = serialization.load_pem_public_key(pem.encode()).public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.PKCS1
    )
    for same in (pem, pem + "\n", pem.replace("\n", "\r\n"), f"# key\n{pem}", rewrapped, pkcs1.decode()):
        made.use_key(same)
        assert made.public_key == pem
        assert refusal(made, raw).startswith("replay")


class RecordedJournal:
    """Records what a journal would write."""

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self.used: list[tuple[int, bytes]] = []

    def key_changed(self, fingerprint: bytes) -> None:
        self.keys.append(fingerprint)

    def signature_used(self, reqnum: int, digest: bytes) -> None:
        self.used.append((reqnum, digest))


def test_each_key_and_each_used_signature_is_recorded() -> None:
    made = Signatures("auto", URL)
    made.journal = journal = RecordedJournal()
    for pem in (Signer(engine_key()).public_key, Signer(engine_key()).public_key + "\n"):
        made.use_key(pem)
        assert journal.keys == [made.fingerprint]
    check(made, signed(reqnum=5))
    check(made, signed(reqnum=6))
    check(made, signed("url"))
    made.check(signed(reqnum=7), 7, once=False)
    refusal(made, signed(reqnum=5))
    refusal(made, signed(reqnum=8, key=OTHER_KEY))
    assert [reqnum for reqnum, _ in journal.used] == [5, 6]
    assert sorted(journal.used) == sorted(made.used())
    made.use_key(Signer(OTHER_KEY).public_key)
    assert len(set(journal.keys)) == 2
    assert list(made.used()) == []


def test_what_a_killed_worker_had_used_is_refused_if_its_key_comes_again() -> None:
    killed = signatures()
    raw = signed(reqnum=1000)
    check(killed, raw)
    recalled = Signatures("auto", URL)
    recalled.recall(killed.fingerprint, list(killed.used()))
    recalled.use_key(Signer(engine_key()).public_key)
    assert refusal(recalled, raw).startswith("replay")
    assert refusal(recalled, signed(reqnum=899)).startswith("replay")
    check(recalled, signed(reqnum=1001))


def test_what_a_killed_worker_had_used_is_forgotten_with_another_key() -> None:
    killed = signatures()
    check(killed, signed(reqnum=1000))
    recalled = Signatures("auto", URL)
    recalled.recall(killed.fingerprint, list(killed.used()))
    recalled.use_key(Signer(OTHER_KEY).public_key)
    check(recalled, signed(reqnum=1, key=OTHER_KEY))


def pem_of(der: bytes) -> str:
    text = base64.b64encode(der).decode()
    return f"-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n"


def rsa_der(modulus: int, exponent: int) -> bytes:
    """An RSA public key, also one that no library would make."""
    key = DerSequence([modulus, exponent]).encode()
    algorithm = DerSequence([DerObjectId("1.2.840.113549.1.1.1"), DerNull()])
    return DerSequence([algorithm, DerBitString(key)]).encode()


def curve_pem() -> str:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "no key",
            "ssh-rsa AAAA",
            "ssh-rsa",
            "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQ==",
            "\ud800",
            "\x00",
        ),
        *("-----BEGIN PUBLIC KEY-----", "-----BEGIN RSA PUBLIC KEY-----\nMAA=\n-----END RSA PUBLIC KEY-----"),
        *(pem_of(b"\x00\x00\x00"), pem_of(b"\x30\x00"), pem_of(b"\x30\x80"), pem_of(b"\xff" * 300)),
        *(pem_of(rsa_der((1 << bits - 1) + 1, 65537)) for bits in (512, 1023, 8193, 16384)),
        *(pem_of(rsa_der((1 << 2047) + 1, exponent)) for exponent in (0, 1, 2, 65536)),
        *(pem_of(rsa_der(modulus, 65537)) for modulus in (0, 1, 2, -5, 1 << 2047)),
        curve_pem(),
    ],
)
def test_a_text_without_a_key_is_refused_and_the_old_key_stays(text: str) -> None:
    made = signatures()
    with pytest.raises(ValueError, match=r".*"):
        made.use_key(text)
    check(made, signed())


@pytest.mark.parametrize(("bits", "exponent"), [(1024, 65537), (8192, 65537), (2048, 3), (2048, 5)])
def test_a_key_at_the_bounds_is_used(bits: int, exponent: int) -> None:
    made = signatures()
    text = pem_of(rsa_der((1 << bits - 1) + 1, exponent))
    made.use_key(text)
    assert made.public_key == text


@given(st.binary(max_size=80) | st.binary(max_size=40).map(lambda tail: rsa_der(3, 3)[:-5] + tail))
def test_no_key_ends_in_another_error(der: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        signatures().use_key(pem_of(der))


@pytest.mark.parametrize("signature", ["", "AAAA", "no base64!", base64.b64encode(bytes(2000)).decode()])
def test_what_no_key_signs_is_not_well_formed(signature: str) -> None:
    with pytest.raises(BadSignature) as refused:
        check(signatures(), {**signed(), "signature": signature})
    assert not refused.value.is_well_formed


def test_a_signature_of_another_key_is_well_formed() -> None:
    with pytest.raises(BadSignature) as refused:
        check(signatures(), signed(key=OTHER_KEY))
    assert refused.value.is_well_formed


def test_without_a_key_no_signature_is_valid() -> None:
    made = Signatures("auto", URL)
    assert (made.has_key, made.public_key) == (False, "")
    with pytest.raises(BadSignature):
        check(made, signed())


def test_the_key_in_use_is_shown() -> None:
    pem = Signer(engine_key()).public_key
    made = Signatures("auto", URL)
    made.use_key(pem)
    assert (made.has_key, made.public_key) == (True, pem)


@given(
    st.text(max_size=300)
    | st.binary(max_size=200).map(lambda b: base64.b64encode(b).decode())
    | st.binary(min_size=128, max_size=128).map(lambda b: base64.b64encode(b).decode())
)
def test_no_other_text_is_a_valid_signature(text: str) -> None:
    raw = signed()
    if text != raw["signature"]:
        assert refusal(signatures(), {**raw, "signature": text}) == "the signature is invalid"


@pytest.mark.parametrize("more", ["=", "==", "A", "AA=="])
def test_a_signature_with_more_behind_it_is_invalid(more: str) -> None:
    raw = signed()
    assert refusal(signatures(), {**raw, "signature": raw["signature"] + more}) == "the signature is invalid"


@given(st.data(), st.text("!-_ \n\r\t=é\0", min_size=1, max_size=3))
def test_a_signature_with_other_characters_in_it_is_invalid(data: st.DataObject, others: str) -> None:
    raw = signed()
    signature = raw["signature"]
    position = data.draw(st.integers(0, len(signature)))
    changed = signature[:position] + others + signature[position:]
    assert refusal(signatures(), {**raw, "signature": changed}) == "the signature is invalid"


TEXTS = st.text(max_size=20)
NUMBERS = st.integers(0, 2**60) | st.floats(0, allow_infinity=False)


@given(NUMBERS | NUMBERS.map(str), TEXTS, st.integers(-(2**63), 2**63 - 1))
def test_any_signed_value_is_valid_after_a_json_round_trip(cost: Any, endpoint: str, reqnum: int) -> None:
    raw = json.loads(json.dumps(signed(cost=cost, endpoint=endpoint, reqnum=reqnum)))
    check(signatures("full"), raw)


def test_the_highest_reqnum_is_that_of_what_the_key_in_use_has_signed() -> None:
    made = signatures()
    assert made.highest_reqnum == -1
    for reqnum, highest in ((0, 0), (5, 5), (3, 5), (9, 9)):
        check(made, signed(reqnum=reqnum))
        assert made.highest_reqnum == highest
    made.use_key(Signer(OTHER_KEY).public_key)
    assert made.highest_reqnum == -1
