"""Where a station keeps its files: ``run`` (sockets, parts in flight; may vanish at power-off) and ``data``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Paths:
    """Both folders exist once ``make`` was called."""

    run: Path
    data: Path

    def make(self) -> Paths:
        """Create what is missing. Raises OSError."""
        self.run.mkdir(parents=True, exist_ok=True)
        self.data.mkdir(parents=True, exist_ok=True)
        return self

    @property
    def reject_socket(self) -> Path:
        return self.run / "reject.sock"

    @property
    def report_socket(self) -> Path:
        return self.run / "report.sock"

    @property
    def twin_socket(self) -> Path:
        return self.run / "twin.sock"

    def twin_camera_socket(self, name: str) -> Path:
        return self.run / f"twin-{name}.sock"

    @property
    def parts_file(self) -> Path:
        return self.run / "parts.state"

    @property
    def ledger_file(self) -> Path:
        return self.data / "ledger.sqlite"

    @property
    def image_dir(self) -> Path:
        return self.data / "images"

    @property
    def part_ceiling(self) -> Path:
        return self.data / "part-ceiling"

    @property
    def cache_dir(self) -> Path:
        return self.data / "cache"
