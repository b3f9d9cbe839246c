"""Whole rehearsals: the command line as a user types it, its JSON, its ledger."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from appliance.twin.result import read_ledger

PROJECT = Path(__file__).resolve().parents[2]


@dataclass
class Run:
    """One finished rehearsal."""

    exit: int
    text: str
    figures: dict[str, Any]
    records: list[dict[str, Any]]
    events: list[dict[str, Any]]

    @property
    def verdicts(self) -> dict[int, str]:
        return {record["part"]: record["verdict"] for record in self.records}


def run_appliance(*words: str, timeout_s: float = 110) -> subprocess.CompletedProcess[str]:
    """The command line, as a process."""
    command = [sys.executable, "-m", "appliance", *words]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=timeout_s, check=False)


@pytest.fixture(scope="session")
def appliance() -> Callable[..., subprocess.CompletedProcess[str]]:
    """appliance(*words): the command line, as a process."""
    return run_appliance


@pytest.fixture(scope="session")
def rehearse() -> Iterator[Callable[..., Run]]:
    """rehearse(*words) -> Run; equal words run once a session."""
    done: dict[tuple[str, ...], Run] = {}
    folders: list[Path] = []

    def run(*words: str) -> Run:
        if words not in done:
            folder = Path(tempfile.mkdtemp(prefix="line-"))
            folders.append(folder)
            ended = run_appliance("rehearse", *words, "--keep", str(folder), "--json", str(folder / "figures.json"))
            figures = folder / "figures.json"
            assert figures.is_file(), ended.stdout[-2000:] + ended.stderr[-2000:]
            database = next(folder.rglob("ledger.sqlite"))
            records, events, _, whole, told = read_ledger(database)
            assert whole, told
            done[words] = Run(ended.returncode, ended.stdout + ended.stderr, json.loads(figures.read_text()), records, events)
        return done[words]

    yield run
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
