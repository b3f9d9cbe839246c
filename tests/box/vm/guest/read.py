"""Runs inside the guest: what the PLC reads and the broker keeps, now. read.py STATION -> one JSON object."""

import json
import sys

from appliance.clock import SystemClock
from appliance.twin.mes import Mes
from appliance.twin.plc import Plc

mes, plc = Mes(1883, sys.argv[1]), Plc(1502, SystemClock())
mes.wait_for(lambda one: "counters" in one.retained and "state" in one.retained, 10)
plc.poll()
print(json.dumps({"counters": mes.retained.get("counters"), "state": mes.retained.get("state"),
                  "alarms": [name for name, value in mes.retained.items() if name.startswith("alarm/") and value],
                  "plc": plc.figures.counts, "plc_problems": plc.figures.problems}))  # fmt: skip
mes.close()
