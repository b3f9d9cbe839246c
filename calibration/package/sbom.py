"""The parts list (SBOM) in CycloneDX 1.6: our own program, every vendored wheel and the libraries in it, what comes from
the system and from JetPack. The same bytes for the same package."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Sequence
from email.message import Message
from pathlib import PurePosixPath
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from calibration.package import elf
from calibration.package.source import Source
from calibration.package.target import Target
from calibration.package.tree import Entry
from calibration.package.wheels import Wheel

_NAMESPACE = uuid.UUID("6f3d9b1e-6f1c-5d0a-9c39-8f1f5d2a7c10")  # ours, drawn once
# Wheels rename what they bring: libcrypto-81259c47.so.1.1.1k is libcrypto.so.1.1.1k, libopenblasp-r0-59ffcd50.3.15.so is
# libopenblasp-r0.3.15.so.
_RENAMED = re.compile(r"-[0-9a-f]{8}(?=[-.])")
_LIBRARY = re.compile(r"^(?P<name>lib.+?)(?:-r?(?P<before>\d[\d.]*))?\.so(?:\.(?P<after>\w[\w.]*))?$")
# What the box's system brings, by JetPack or distribution: named, not contained.
_SYSTEM = (
    ("python3", "the interpreter", "required", ""),
    ("systemd", "starts, watches and restarts the daemons", "required", ""),
    ("TensorRT (python3-libnvinfer)", "inference", "optional", "JetPack's apt"),
    ("CUDA driver (libcuda.so.1)", "the GPU", "optional", "JetPack's apt"),
    ("PyCUDA", "the GPU's Python interface, built of its source on the box's system", "optional", "the image"),
    ("jetson-utils", "csi:// and rtsp:// cameras, JetPack 6 only", "optional", "the image"),
    ("jetson-inference", "bundles with runtime: jetson-inference, JetPack 6 only", "optional", "the image"),
    ("Aravis", "GigE Vision cameras", "optional", "the distribution"),
)
_CLASSIFIERS = {
    "License :: OSI Approved :: MIT License": "MIT",
    "License :: OSI Approved :: Apache Software License": "Apache-2.0",
    "License :: OSI Approved :: ISC License (ISCL)": "ISC",
    "License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "License :: OSI Approved :: BSD License": "",  # which of them, it does not say
}


def parts_list(
    source: Source, target: Target, wheels: Sequence[Wheel], packages: dict[str, list[Entry]], program: Sequence[Entry],
    dependencies: Sequence[str],
) -> bytes:  # fmt: skip
    """The document. ``packages``: each wheel's files as packaged; ``dependencies``: pyproject's."""
    names = {wheel.name: _purl(wheel) for wheel in wheels}

    def known(asked: Sequence[Requirement]) -> list[str]:
        return sorted({names[name] for one in asked if (name := canonicalize_name(one.name)) in names})

    own = f"pkg:deb/appliance@{_quoted(source.version)}?arch={target.arch}"
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": "",
        "version": 1,
        "metadata": {
            "timestamp": f"{source.date:%Y-%m-%dT%H:%M:%SZ}",
            "lifecycles": [{"phase": "build"}],
            "component": {
                "type": "firmware", "bom-ref": own, "name": "appliance", "version": source.version, "purl": own,
                "description": str(source.project["description"]), "licenses": [{"license": {"id": "Apache-2.0"}}],
                "properties": [_property("python", target.python), _property("commit", source.commit or "unknown")],
            },
        },
        "components": [
            *(_wheel(wheel, packages[wheel.name]) for wheel in wheels),
            *_data_parts(program),
            *(_system(*one) for one in _SYSTEM),
        ],
        "dependencies": [
            {"ref": own, "dependsOn": known([Requirement(one) for one in dependencies])},
            *({"ref": _purl(wheel), "dependsOn": known(wheel.requires(target))} for wheel in wheels),
        ],
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    document["serialNumber"] = f"urn:uuid:{uuid.uuid5(_NAMESPACE, digest)}"
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


def _wheel(wheel: Wheel, files: Sequence[Entry]) -> dict[str, Any]:
    inside = [_library(one, wheel) for one in files if one.data[:4] == elf.MAGIC and ".libs/" in one.path]
    told = {
        "type": "library", "bom-ref": _purl(wheel), "name": wheel.name, "version": wheel.version, "purl": _purl(wheel),
        "scope": "required", "hashes": [{"alg": "SHA-256", "content": wheel.digest}],
        "licenses": licences(wheel.metadata), "properties": [_property("file", wheel.file.name)],
    }  # fmt: skip
    return {**told, **({"components": inside} if inside else {})}


def _library(one: Entry, wheel: Wheel) -> dict[str, Any]:
    """A library that a wheel brings with it: what its file name tells, for those who look for holes in it."""
    file = PurePosixPath(one.path).name
    told = _LIBRARY.match(_RENAMED.sub("", file))
    name, version = (told["name"], told["after"] or told["before"]) if told else (file, None)
    return {
        "type": "library", "bom-ref": f"{_purl(wheel)}#{file}", "name": name,
        **({"version": version} if version else {}),
        "hashes": [_sha256(one.data)], "properties": [_property("file", one.path)],
    }  # fmt: skip


def _data_parts(program: Sequence[Entry]) -> list[dict[str, Any]]:
    """Models and GPU images: neither is source that a reader could check."""
    found: list[dict[str, Any]] = []
    sources = _property("made-of", "appliance/kernels/*.cu")
    for one in program:
        if one.path.startswith("models/") and one.path.endswith(".onnx"):
            found.append({"type": "machine-learning-model", "bom-ref": one.path, "name": one.path.split("/")[1],
                          "hashes": [_sha256(one.data)], "properties": [_property("file", one.path)]})  # fmt: skip
        if one.path.startswith("appliance/kernels/images/") and one.path.endswith((".cubin", ".ptx")):
            found.append({"type": "file", "bom-ref": one.path, "name": PurePosixPath(one.path).name,
                          "hashes": [_sha256(one.data)], "properties": [sources]})  # fmt: skip
    return found


def _system(name: str, why: str, scope: str, origin: str) -> dict[str, Any]:
    properties = [_property("origin", origin or "the distribution"), _property("contained", "no")]
    told = {"type": "library", "bom-ref": f"system:{name}", "name": name, "scope": scope, "description": why}
    return {**told, "properties": properties}


def licences(metadata: Message) -> list[dict[str, Any]]:
    """As the wheel tells them: its expression, else its classifiers, else its own words; "not told" where it is silent."""
    expression = metadata.get("License-Expression")
    if expression:
        return [{"expression": str(expression)}]
    classifiers = [one for one in metadata.get_all("Classifier", []) if one.startswith("License ::")]
    known = [_CLASSIFIERS[one] for one in classifiers if _CLASSIFIERS.get(one)]
    if known:
        return [{"license": {"id": one}} for one in sorted(set(known))]
    own = str(metadata.get("License") or "").strip().splitlines()
    words = own[0] if own else ", ".join(one.rpartition("::")[2].strip() for one in classifiers)
    return [{"license": {"name": words or "not told"}}]


def licence_words(metadata: Message) -> str:
    """The same in one line."""
    told = (one.get("expression") or one["license"].get("id") or one["license"]["name"] for one in licences(metadata))
    return ", ".join(map(str, told))


def _purl(wheel: Wheel) -> str:
    return f"pkg:pypi/{wheel.name}@{_quoted(wheel.version)}"


def _quoted(version: str) -> str:
    return version.replace("+", "%2B")


def _sha256(data: bytes) -> dict[str, str]:
    return {"alg": "SHA-256", "content": hashlib.sha256(data).hexdigest()}


def _property(name: str, value: str) -> dict[str, str]:
    return {"name": f"appliance:{name}", "value": value}
