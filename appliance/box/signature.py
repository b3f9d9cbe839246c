"""Ed25519 signatures over exact bytes, as ``openssl pkeyutl -sign -rawin`` and minisign make them, and the enrolled keys.

A key is a file ``NAME.pub``: PEM, the bare 32 bytes in base64, or minisign's .pub. Only minisign's signatures name their key."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from appliance.box.durable import fsync_folder, write_whole

MAX_KEY_BYTES = 4096
MAX_SIGNATURE_BYTES = 4096
MOST_KEYS = 16
_RAW_BYTES = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_COMMENT, _TRUSTED = b"untrusted comment:", b"trusted comment: "
_LEGACY, _PREHASHED = b"Ed", b"ED"  # minisign: over the bytes; over their BLAKE2b-512
# Points of small order: with such a key a signature over anything can be made by anybody.
_WEAK = frozenset(
    bytes.fromhex(one)
    for one in (
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000080",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    )
)


class SignatureError(Exception):
    """A key or signature that cannot be read: what, and what to give instead."""


@dataclass(frozen=True)
class Key:
    """``name``: its file's; ``id``: minisign's number where it came from minisign, else the first 16 hex digits of the
    SHA-256 of ``public`` (32 bytes)."""

    name: str
    id: str
    public: bytes
    from_minisign: bool = False

    def __str__(self) -> str:
        return f"{self.name} ({self.id})"


@dataclass(frozen=True)
class Signature:
    """``value``: 64 bytes. ``key_id``, ``trusted_comment`` and ``over_comment`` only where minisign made it."""

    value: bytes
    prehashed: bool = False
    key_id: str = ""
    trusted_comment: bytes = b""
    over_comment: bytes = b""


@dataclass(frozen=True)
class Verified:
    """``good``: by ``key``, which is enrolled. ``mismatch``: an enrolled key ought to have made it and did not, or it is
    damaged. ``unknown``: made by a key that is not enrolled. ``unreadable``: no signature at all. ``text`` in words."""

    outcome: Literal["good", "mismatch", "unknown", "unreadable"]
    text: str
    key: Key | None = None


# --- keys ---------------------------------------------------------------------------------------------------


def read_key(raw: bytes, name: str) -> Key:
    """A public key from its file's bytes. Raises SignatureError."""
    if len(raw) > MAX_KEY_BYTES:
        raise SignatureError(f"{name}: {len(raw)} bytes; a public key has at most {MAX_KEY_BYTES}")
    if b"PRIVATE KEY" in raw:
        raise SignatureError(f"{name} is a private key; never give it away: give the public one (openssl pkey -pubout)")
    if raw.lstrip().startswith(b"-----BEGIN"):
        return _pem_key(raw, name)
    lines = [line.strip() for line in raw.splitlines() if line.strip()]
    if lines and lines[0].startswith(_COMMENT):
        lines = lines[1:]
    decoded = _base64(lines[0]) if len(lines) == 1 else None
    if decoded is not None and len(decoded) == 42 and decoded[:2] == _LEGACY:
        return Key(name, _minisign_id(decoded[2:10]), _sound(decoded[10:], name), from_minisign=True)
    if decoded is not None and len(decoded) == 32:
        return Key(name, _own_id(decoded), _sound(decoded, name))
    raise SignatureError(f"{name} is no Ed25519 public key; give PEM, 32 bytes in base64, or minisign's .pub")


def enrolled(folder: Path) -> list[Key]:
    """The keys in ``folder``, by name; none where there is no folder. Raises OSError, SignatureError: a key that cannot be
    read any more is never passed over."""
    if not folder.is_dir():
        return []
    return [read_key(_small(path, MAX_KEY_BYTES), path.stem) for path in sorted(folder.glob("*.pub"))]


def enrol(folder: Path, keys: dict[str, bytes]) -> list[Key]:
    """Put keys (name without .pub -> bytes) into ``folder``, all of them or none: each is read before the first is written.
    The folder appears with its whole content. Raises SignatureError, OSError."""
    read = check_keys(keys)
    partial = folder.with_name(folder.name + ".part")
    partial.mkdir(parents=True, exist_ok=True)
    for path in partial.iterdir():  # of a cut
        path.unlink()
    for name, raw in keys.items():
        write_whole(partial / f"{name}.pub", raw)
    if folder.is_dir():
        folder.rmdir()  # only an empty one gives way
    os.rename(partial, folder)
    fsync_folder(folder.parent)
    return read


def check_keys(keys: dict[str, bytes]) -> list[Key]:
    """What ``enrol`` would enrol. Raises SignatureError."""
    if not 1 <= len(keys) <= MOST_KEYS:
        raise SignatureError(f"{len(keys)} keys; enrol 1 to {MOST_KEYS}")
    for name in keys:
        if not _NAME.fullmatch(name):
            raise SignatureError(f"{name!a} is no name of a key; use letters, digits, . _ - and at most 64 of them")
    return [read_key(raw, name) for name, raw in sorted(keys.items())]


# --- signatures ---------------------------------------------------------------------------------------------


def read_signature(raw: bytes) -> Signature:
    """64 bytes, the same in base64, or minisign's file. Raises SignatureError."""
    if len(raw) == _RAW_BYTES:
        return Signature(raw)
    if len(raw) > MAX_SIGNATURE_BYTES:
        raise SignatureError(f"a signature of {len(raw)} bytes; 64 are one, or minisign's file of four lines")
    lines = [line.rstrip(b"\r") for line in raw.split(b"\n")]
    if lines[0].startswith(_COMMENT):
        return _minisign(lines)
    decoded = _base64(raw.strip())
    if decoded is not None and len(decoded) == _RAW_BYTES:
        return Signature(decoded)
    raise SignatureError(f"{len(raw)} bytes that are no Ed25519 signature; sign with openssl pkeyutl -sign -rawin, or minisign")


def verify(data: bytes, raw: bytes, keys: list[Key]) -> Verified:
    """Whether one of ``keys`` signed exactly ``data``."""
    try:
        signature = read_signature(raw)
    except SignatureError as why:
        return Verified("unreadable", str(why))
    # A key without a number of minisign's may be anyone's; one with a number made only what bears it.
    able = [key for key in keys if not (signature.key_id and key.from_minisign) or key.id == signature.key_id]
    for key in able:
        if _holds(key, signature, data):
            return Verified("good", f"signed by {key}", key)
    if not keys:
        return Verified("unknown", "it is signed, and no key is enrolled that could tell by whom")
    if not able:
        return Verified("unknown", f"it is signed by key {signature.key_id}, which is not enrolled")
    by = ", ".join(map(str, able))
    return Verified("mismatch", f"the signature is not that of these bytes by {by}; the file was altered or damaged since")


def _holds(key: Key, signature: Signature, data: bytes) -> bool:
    public = Ed25519PublicKey.from_public_bytes(key.public)
    try:
        public.verify(signature.value, hashlib.blake2b(data).digest() if signature.prehashed else data)
        if signature.key_id:
            public.verify(signature.over_comment, signature.value + signature.trusted_comment)
    except InvalidSignature:
        return False
    return True


def _minisign(lines: list[bytes]) -> Signature:
    while lines and not lines[-1]:
        lines = lines[:-1]
    if len(lines) != 4 or not lines[2].startswith(_TRUSTED):
        raise SignatureError("minisign's file has four lines, the third a trusted comment; sign anew")
    first, last = _base64(lines[1]), _base64(lines[3])
    if first is None or last is None or len(first) != 74 or len(last) != _RAW_BYTES or first[:2] not in (_LEGACY, _PREHASHED):
        raise SignatureError("the lines of minisign's signature cannot be read; sign anew")
    return Signature(first[10:], first[:2] == _PREHASHED, _minisign_id(first[2:10]), lines[2][len(_TRUSTED) :], last)


def _pem_key(raw: bytes, name: str) -> Key:
    try:
        public = load_pem_public_key(raw)
    except (ValueError, UnsupportedAlgorithm) as why:
        raise SignatureError(f"{name} cannot be read as PEM; make it by openssl pkey -pubout") from why
    if not isinstance(public, Ed25519PublicKey):
        raise SignatureError(f"{name} is a key of another kind; make an Ed25519 key (openssl genpkey -algorithm ed25519)")
    bare = public.public_bytes_raw()
    return Key(name, _own_id(bare), _sound(bare, name))


def _sound(public: bytes, name: str) -> bytes:
    """Raises SignatureError."""
    if public in _WEAK:
        raise SignatureError(f"{name} is a key by which anybody can sign; make a new pair (openssl genpkey -algorithm ed25519)")
    return public


def _own_id(public: bytes) -> str:
    return hashlib.sha256(public).hexdigest()[:16]


def _minisign_id(eight: bytes) -> str:
    """As minisign prints it: the eight bytes are a little-endian number."""
    return f"{int.from_bytes(eight, 'little'):016X}"


def _base64(text: bytes) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def _small(path: Path, most: int) -> bytes:
    """Raises OSError."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as stream:
        return stream.read(most + 1)
