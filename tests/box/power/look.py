"""Runs inside the guest: one question, exit 0 when the answer is yes, the answer printed.

running: state.json, once all three run the same configuration and inspectd judges; seq N: the ledger goes beyond N;
revision: of the configuration that is good."""

import json
import sqlite3
import sys
from pathlib import Path

DATA = Path("/var/lib/appliance")


def running():
    state = json.loads(Path("/run/appliance/state.json").read_text())
    reject, inspect, report = state["reject"], state["inspect"], state["report"]
    same = reject["configuration"] == inspect["configuration"] == report["configuration"] != ""
    return same and reject["state"] in ("running", "purging", "held") and inspect["state"] == "ready" and json.dumps(state)


def seq(beyond):
    ledger = sqlite3.connect(f"file:{DATA}/ledger.sqlite?mode=ro", uri=True)
    newest = ledger.execute("SELECT coalesce(max(seq), 0) FROM entries").fetchone()[0]
    return newest > int(beyond) and newest


def revision():
    good = json.loads((DATA / "config/state.json").read_text())["good"]
    (folder,) = [one for one in (DATA / "config/generations").iterdir() if one.name.lstrip("0") == str(good)]
    line = next(one for one in (folder / "appliance.yaml").read_text().splitlines() if one.startswith("revision:"))
    return int(line.partition(":")[2])


answer = {"running": running, "seq": seq, "revision": revision}[sys.argv[1]](*sys.argv[2:])
print(answer)
sys.exit(not answer)
