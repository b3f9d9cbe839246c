"""What one look at the machine costs: every board's tree as files, and this machine as it is. Prints, judges nothing.

    ./build.sh bench sensors [--looks N]

A tree's files lie on a disk's cache: what a real sensor takes over its bus (an ina3221 over I²C, a zone asked of the
BPMP) comes on top, and only a board shows it. The look is made in a thread of reportd, every 5 s."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from appliance.box.derate import Watch
from appliance.box.sensors import as_health, read
from appliance.box.sysfs import Files
from appliance.clock import now_ns
from tests.box.trees import BOARDS, lay


def cost_ms(root: Path, looks: int) -> tuple[list[float], list[float]]:
    """(look, judging and telling) of each of ``looks`` looks, in ms."""
    watch, read_ms, judge_ms = Watch(), [], []
    before = None
    for _ in range(looks):
        begun_ns = now_ns()
        reading = read(Files(root), begun_ns, (Path("/"),), "synced")
        read_ns = now_ns()
        watch.step(reading, frozenset({"25W"}), False)
        as_health(reading, before)
        read_ms.append((read_ns - begun_ns) / 1e6)
        judge_ms.append((now_ns() - read_ns) / 1e6)
        before = reading
    return read_ms, judge_ms


def main(arguments: list[str] | None = None) -> int:
    """The table."""
    parser = argparse.ArgumentParser(prog="bench sensors")
    parser.add_argument("--looks", type=int, default=300)
    looks = parser.parse_args(arguments).looks
    print(f"{looks} looks each; ms: p50, p99 of the look; p50 of judging and telling")
    with tempfile.TemporaryDirectory() as folder:
        places = {"this machine": Path("/")} | {name: lay(Path(folder, name), tree()) for name, tree in BOARDS.items()}
        for name, root in places.items():
            read_ms, judge_ms = cost_ms(root, looks)
            cuts = statistics.quantiles(read_ms, n=100)
            print(f"{name:<16}{cuts[49]:8.2f}{cuts[98]:8.2f}{statistics.median(judge_ms):8.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
