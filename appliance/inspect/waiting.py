"""inspectd without a configuration: it waits until there is one to begin anew with."""

from __future__ import annotations

import os
import select
import signal

from appliance.clock import now_ns
from appliance.notify import Notifier
from appliance.paths import Paths

LOOK_S = 0.2


def wait_for_configuration(paths: Paths, notifier: Notifier, why: str) -> int:
    """Until inspectd is asked to begin anew, SIGTERM or SIGINT. ``why``: there is none, in words. Exit 0."""
    reading, writing = os.pipe()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os.write(writing, b"x"))
    notifier.ready(f"waiting for a configuration: {why}")
    while not select.select([reading], [], [], LOOK_S)[0]:
        notifier.alive(now_ns())
        if paths.again_file("inspect").exists():
            break
    return 0
