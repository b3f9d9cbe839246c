"""Broker ``embedded``: amqtt (MQTT 3.1.1) on loopback in a process of its own, for laptops and rehearsals."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import logging
import signal
import subprocess
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1


def start(port: int) -> subprocess.Popen[bytes]:
    """The broker as a child that ends with us, listening on 127.0.0.1:``port``."""
    return subprocess.Popen([sys.executable, "-m", "appliance.devices.broker_embedded", "--port", str(port)])


async def serve(port: int) -> None:
    """Until SIGTERM."""
    from amqtt.broker import Broker

    config: dict[str, Any] = {
        "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}", "max_connections": 50}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }
    broker = Broker(config)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await broker.start()
    await stop.wait()
    await broker.shutdown()


def run(port: int) -> int:
    """In this process, until SIGTERM. Exit 0."""
    for name in ("transitions", "amqtt"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    asyncio.run(serve(port))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=1883)
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)  # never outlive whoever started us
    return run(options.port)


if __name__ == "__main__":
    sys.exit(main())
