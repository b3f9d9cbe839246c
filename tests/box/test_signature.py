"""Signatures as openssl and minisign make them; keys in every form; nothing that is altered, foreign or weak counts."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as ec_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from appliance.box import signature
from appliance.box.signature import Key, SignatureError, check_keys, enrol, enrolled, read_key, verify
from tests.box.stick_rig import key, pem

DATA = b"version: 1\nstation: acme/line1\n"
NUMBER = bytes.fromhex("0123456789abcdef")
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def bare(private: Ed25519PrivateKey) -> bytes:
    return private.public_key().public_bytes_raw()


def minisign_key(private: Ed25519PrivateKey, number: bytes = NUMBER) -> bytes:
    """As minisign -G writes NAME.pub."""
    return b"untrusted comment: minisign public key\n" + base64.b64encode(b"Ed" + number + bare(private)) + b"\n"


def minisign(private: Ed25519PrivateKey, data: bytes, prehashed: bool, number: bytes = NUMBER, comment: bytes = b"r6") -> bytes:
    """As minisign -S writes FILE.minisig (minisign(1), "signature format")."""
    value = private.sign(hashlib.blake2b(data).digest() if prehashed else data)
    head = base64.b64encode((b"ED" if prehashed else b"Ed") + number + value)
    over = base64.b64encode(private.sign(value + comment))
    return b"untrusted comment: signature\n" + head + b"\ntrusted comment: " + comment + b"\n" + over + b"\n"


FORMS = {"pem": pem(key()), "bare": base64.b64encode(bare(key())) + b"\n", "minisign": minisign_key(key())}
SIGNATURES = {
    "openssl": key().sign(DATA),
    "base64": base64.b64encode(key().sign(DATA)) + b"\n",
    "minisign, prehashed": minisign(key(), DATA, True),
    "minisign, legacy": minisign(key(), DATA, False),
    "minisign by Windows": minisign(key(), DATA, True).replace(b"\n", b"\r\n"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SIGNATURES)
def test_every_signature_is_verified_by_every_form_of_its_key(form: str, name: str) -> None:
    one = read_key(FORMS[form], "ada")
    assert one.public == bare(key())
    found = verify(DATA, SIGNATURES[name], [read_key(pem(OTHER), "bob"), one])
    assert (found.outcome, found.key) == ("good", one) and "ada" in found.text


@pytest.mark.parametrize("name", SIGNATURES)
def test_one_bit_of_the_data_is_enough(name: str) -> None:
    keys = [read_key(FORMS["minisign"], "ada")]
    for at in range(len(DATA)):
        altered = DATA[:at] + bytes([DATA[at] ^ 1]) + DATA[at + 1 :]
        assert verify(altered, SIGNATURES[name], keys).outcome == "mismatch"


@pytest.mark.parametrize("name", ["openssl", "minisign, prehashed", "minisign, legacy"])
@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_no_damaged_signature_is_another_good_one(name: str, at: int, bit: int) -> None:
    raw = SIGNATURES[name]
    at %= len(raw)
    altered = raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :]
    found = verify(DATA, altered, [read_key(FORMS["minisign"], "ada")])
    told_free = raw.startswith(b"untrusted") and at < raw.index(b"\n")  # who reads it believes nothing of that line
    assert found.outcome != "good" or told_free


def test_the_trusted_comment_is_signed_too() -> None:
    raw = minisign(key(), DATA, True, comment=b"revision 6").replace(b"revision 6", b"revision 7")
    assert verify(DATA, raw, [read_key(FORMS["minisign"], "ada")]).outcome == "mismatch"


def test_a_prehashed_signature_is_not_taken_for_a_plain_one() -> None:
    """Its bytes, without minisign's words, are a signature over the hash, not over the file."""
    value = key().sign(hashlib.blake2b(DATA).digest())
    assert verify(DATA, value, [read_key(FORMS["pem"], "ada")]).outcome == "mismatch"


def test_a_strangers_signature_is_unknown_where_it_names_its_key_and_a_mismatch_where_it_does_not() -> None:
    keys = [read_key(FORMS["minisign"], "ada")]
    assert verify(DATA, minisign(OTHER, DATA, True, number=b"12345678"), keys).outcome == "unknown"
    assert verify(DATA, minisign(OTHER, DATA, True), keys).outcome == "mismatch"  # it claims to be ada's
    assert verify(DATA, OTHER.sign(DATA), keys).outcome == "mismatch"
    assert verify(DATA, OTHER.sign(DATA), []).outcome == "unknown"


_NONE = [b"", b"x", bytes(63), bytes(65), b"untrusted comment: x\n", b"untrusted comment:\n\n\n", b"A" * 10_000, b"\xff" * 100]


@pytest.mark.parametrize("raw", [*_NONE, b"untrusted comment: \nRWQ=\ntrusted comment: \nRWQ=\n"])
def test_what_is_no_signature_says_so(raw: bytes) -> None:
    assert verify(DATA, raw, [read_key(FORMS["pem"], "ada")]).outcome == "unreadable"


@pytest.mark.parametrize(
    ("raw", "word"),
    [
        (b"", "no Ed25519"),
        (b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI x\n", "no Ed25519"),
        (b"-----BEGIN PUBLIC KEY-----\nxx\n-----END PUBLIC KEY-----\n", "PEM"),
        (key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), "private key"),
        (ec_key(SECP256R1()).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), "another kind"),
        (base64.b64encode(bytes(31)), "no Ed25519"),
        (b"untrusted comment: x\n" + base64.b64encode(b"ED" + bytes(40)), "no Ed25519"),
        (b"A" * 5000, "at most"),
        (base64.b64encode(b"\1" + bytes(31)), "anybody"),
        (base64.b64encode(b"Ed" + NUMBER + bytes(32)), "anybody"),
    ],
)
def test_what_is_no_key_is_refused_in_words(raw: bytes, word: str) -> None:
    with pytest.raises(SignatureError, match=word):
        read_key(raw, "ada")


def test_by_a_weak_key_anything_would_be_signed() -> None:
    """Why such keys are refused: this signature was made by nobody."""
    weak = Key("zero", "", b"\1" + bytes(31))
    forged = b"\1" + bytes(63)  # R = the neutral point, S = 0
    holds = [data for data in (b"a", b"b", b"anything") if verify(data, forged, [weak]).outcome == "good"]
    with pytest.raises(SignatureError):
        read_key(base64.b64encode(weak.public), "zero")
    assert holds in ([], [b"a", b"b", b"anything"])  # some libraries take it, some do not; ours is not asked


def test_enrolling_is_all_or_nothing_and_once(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    assert enrolled(folder) == []
    with pytest.raises(SignatureError):
        enrol(folder, {"ada": FORMS["pem"], "bob": b"x"})
    assert enrolled(folder) == [] and not folder.exists()
    enrol(folder, {"ada": FORMS["pem"], "bob": minisign_key(OTHER)})
    assert [one.name for one in enrolled(folder)] == ["ada", "bob"]
    with pytest.raises(OSError):
        enrol(folder, {"mallory": pem(OTHER)})
    assert [one.name for one in enrolled(folder)] == ["ada", "bob"]


def test_a_cut_while_enrolling_leaves_nothing_behind_that_counts(tmp_path: Path) -> None:
    half = tmp_path / "keys.part"
    half.mkdir()
    (half / "mallory.pub").write_bytes(pem(OTHER))
    assert enrolled(tmp_path / "keys") == []
    enrol(tmp_path / "keys", {"ada": FORMS["pem"]})
    assert [one.name for one in enrolled(tmp_path / "keys")] == ["ada"]


def test_an_enrolled_key_that_rotted_is_never_passed_over(tmp_path: Path) -> None:
    enrol(tmp_path / "keys", {"ada": FORMS["pem"], "bob": pem(OTHER)})
    (tmp_path / "keys" / "bob.pub").write_bytes(b"\0" * 100)
    with pytest.raises(SignatureError):
        enrolled(tmp_path / "keys")


@pytest.mark.parametrize("name", ["", "../x", "a b", ".hidden", "x" * 65, "\u0430da"])
def test_a_keys_name_is_plain(name: str) -> None:
    with pytest.raises(SignatureError, match="name"):
        check_keys({name: FORMS["pem"]})


def test_too_many_keys_are_refused() -> None:
    with pytest.raises(SignatureError, match="1 to 16"):
        check_keys({f"k{at}": FORMS["pem"] for at in range(17)})


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssls_own_key_and_signature(tmp_path: Path) -> None:
    """The commands that README tells."""
    (tmp_path / "appliance.yaml").write_bytes(DATA)
    for command in (
        "openssl genpkey -algorithm ed25519 -out key.pem",
        "openssl pkey -in key.pem -pubout -out ada.pub",
        "openssl pkeyutl -sign -rawin -inkey key.pem -in appliance.yaml -out appliance.yaml.sig",
    ):
        subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    one = read_key((tmp_path / "ada.pub").read_bytes(), "ada")
    raw = (tmp_path / "appliance.yaml.sig").read_bytes()
    assert len(raw) == 64 and verify(DATA, raw, [one]).outcome == "good"


@pytest.mark.skipif(shutil.which("minisign") is None, reason="minisign is not installed (apt: minisign)")
@pytest.mark.parametrize("legacy", [False, True])
def test_minisigns_own_key_and_signature(legacy: bool, tmp_path: Path) -> None:
    (tmp_path / "appliance.yaml").write_bytes(DATA)
    run = {"cwd": tmp_path, "check": True, "capture_output": True}
    subprocess.run(["minisign", "-G", "-W", "-p", "ada.pub", "-s", "ada.key"], **run)  # type: ignore[call-overload]
    sign = ["minisign", "-S", *(["-l"] if legacy else ["-H"]), "-s", "ada.key", "-m", "appliance.yaml", "-t", "revision 6"]
    subprocess.run(sign, **run)  # type: ignore[call-overload]
    one = read_key((tmp_path / "ada.pub").read_bytes(), "ada")
    found = verify(DATA, (tmp_path / "appliance.yaml.minisig").read_bytes(), [one])
    assert found.outcome == "good" and f"{int(one.id, 16):X}" in (tmp_path / "ada.pub").read_text()


def test_the_weak_points_are_all_there_are() -> None:
    """Derived from the curve itself: the eight points of small order, each in every encoding of 32 bytes."""
    prime = 2**255 - 19
    d = -121665 * pow(121666, -1, prime) % prime
    found: set[bytes] = set()
    for x, y in _small_order(prime, d):
        for spelt in (y, y + prime):
            if spelt < 2**255:
                found |= {(spelt | sign << 255).to_bytes(32, "little") for sign in (0, 1)}
        assert (y * y - x * x - 1 - d * x * x * y * y) % prime == 0
    assert found == signature._WEAK


def _small_order(prime: int, d: int) -> set[tuple[int, int]]:
    order = 2**252 + 27742317777372353535851937790883648493

    def add(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
        (a, b), (c, e) = one, other
        both = d * a * b * c * e % prime
        return (a * e + c * b) * pow(1 + both, -1, prime) % prime, (b * e + a * c) * pow(1 - both, -1, prime) % prime

    points: set[tuple[int, int]] = set()
    y = 2
    while len(points) < 8:
        square = (y * y - 1) * pow(d * y * y + 1, -1, prime) % prime
        x = pow(square, (prime + 3) // 8, prime)
        if (x * x - square) % prime:
            x = x * pow(2, (prime - 1) // 4, prime) % prime
        if (x * x - square) % prime == 0:
            point, doubled, left = (0, 1), (x, y), order
            while left:
                point = add(point, doubled) if left & 1 else point
                doubled, left = add(doubled, doubled), left >> 1
            here = (0, 1)
            for _ in range(8):
                points.add(here)
                here = add(here, point)
        y += 1
    return points
