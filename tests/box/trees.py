"""Folders laid out as boards lay out /sys, /proc and /etc; the numbers in names are chosen to help nobody.

After the fact sheet, the device trees and drivers it names; what could not be read off one (Thor) is left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

Tree = dict[str, "str | bytes"]

_NANO_MODES = """
< PARAM TYPE=FILE NAME=CPU_ONLINE >
< POWER_MODEL ID=0 NAME=15W >
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
< POWER_MODEL ID=3 NAME=7W >
"""
_STAT = "cpu  1000 0 500 8000 300 0 100 0 0 0\ncpu0 500 0 250 4000 150 0 50 0 0 0\n"
_MEMINFO = "MemTotal:        7802584 kB\nMemFree:          211040 kB\nMemAvailable:    4126712 kB\nSwapFree:        3900000 kB\n"
_TEGRA_TRIPS = (("passive", 99000), ("critical", 104500))


def lay(root: Path, tree: Mapping[str, str | bytes]) -> Path:
    """The files of a tree below ``root``."""
    for name, content in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def zone(number: int, kind: str, milli: int | str, *trips: tuple[str, int]) -> Tree:
    """One thermal zone."""
    folder = f"sys/class/thermal/thermal_zone{number}"
    tree: Tree = {f"{folder}/type": f"{kind}\n", f"{folder}/temp": f"{milli}\n"}
    for at, (what, degrees) in enumerate(trips):
        tree |= {f"{folder}/trip_point_{at}_type": f"{what}\n", f"{folder}/trip_point_{at}_temp": f"{degrees}\n"}
    return tree


def cooling(number: int, kind: str, state: int) -> Tree:
    """One cooling device."""
    folder = f"sys/class/thermal/cooling_device{number}"
    return {f"{folder}/type": f"{kind}\n", f"{folder}/cur_state": f"{state}\n", f"{folder}/max_state": "9\n"}


def hwmon(number: int, name: str, **values: object) -> Tree:
    """One hwmon."""
    folder = f"sys/class/hwmon/hwmon{number}"
    return {f"{folder}/name": f"{name}\n", **{f"{folder}/{file}": f"{value}\n" for file, value in values.items()}}


def rail(channel: int, label: str, millivolt: int, milliampere: int, **more: int) -> dict[str, object]:
    """One channel of an ina3221, for ``hwmon``."""
    values = {f"in{channel}_label": label, f"in{channel}_input": millivolt, f"curr{channel}_input": milliampere}
    return {**values, **{f"curr{channel}_{name}": value for name, value in more.items()}}


def cpus(cores: int, policies: Mapping[int, tuple[int, int]]) -> Tree:
    """Cores, and (now, most) kHz of each policy."""
    folder = "sys/devices/system/cpu"
    tree: Tree = {f"{folder}/online": f"0-{cores - 1}\n", "proc/stat": _STAT, "proc/meminfo": _MEMINFO}
    for first, (now, most) in policies.items():
        tree |= {
            f"{folder}/cpufreq/policy{first}/scaling_cur_freq": f"{now}\n",
            f"{folder}/cpufreq/policy{first}/cpuinfo_max_freq": f"{most}\n",
        }
    return tree


def watchdog(identity: str, state: str = "active", timeout_s: int = 30) -> Tree:
    """The first hardware watchdog."""
    folder = "sys/class/watchdog/watchdog0"
    return {f"{folder}/identity": f"{identity}\n", f"{folder}/state": f"{state}\n", f"{folder}/timeout": f"{timeout_s}\n"}


def boot(kernel: str, boot_id: str = "11111111-2222-3333-4444-555555555555") -> Tree:
    """Which kernel, and which boot."""
    return {"proc/sys/kernel/osrelease": f"{kernel}\n", "proc/sys/kernel/random/boot_id": f"{boot_id}\n"}


def orin_nano() -> Tree:
    """Orin Nano Super, JetPack 6.2 (L4T 36.4)."""
    compatible = b"nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0"
    return {
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
        "etc/nvpmodel.conf": _NANO_MODES,
        "var/lib/nvpmodel/status": "pmode:0002\n",
        "proc/device-tree/model": b"NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
        "proc/device-tree/compatible": compatible,
        **zone(3, "cpu-thermal", 51250, *_TEGRA_TRIPS),
        **zone(0, "gpu-thermal", 48000, *_TEGRA_TRIPS),
        **zone(7, "soc2-thermal", 49500, *_TEGRA_TRIPS),
        **zone(5, "tj-thermal", 52125, ("active", 51000), ("critical", 104500)),
        **zone(1, "cv0-thermal", -256000),
        **cooling(2, "pwm-fan", 2), **cooling(9, "cpufreq-cpu0", 0), **cooling(4, "gpu-throttle-alert", 0),
        **hwmon(6, "soctherm_oc", oc1_event_cnt=0, oc2_event_cnt=3, oc3_event_cnt=41, oc1_throt_en=1),
        **hwmon(
            1, "ina3221", **rail(1, "VDD_IN", 19800, 520, max_alarm=0, crit_alarm=0), **rail(2, "VDD_CPU_GPU_CV", 19800, 180),
            **rail(3, "VDD_SOC", 19800, 120), in7_label="sum of shunt voltages", in7_input=812, in4_label="NC", in4_input=0,
        ),
        **hwmon(4, "pwmfan", pwm1=102), **hwmon(0, "pwm_tach", rpm=2311),
        **hwmon(2, "nvme", temp1_input=43850, temp1_max=83850, temp1_crit=89850, temp2_max=65261850),
        "sys/class/devfreq/17000000.gpu/device/of_node/name": b"gpu\0",
        "sys/class/devfreq/17000000.gpu/device/load": "731\n",
        "sys/class/devfreq/17000000.gpu/cur_freq": "1020000000\n",
        "sys/class/devfreq/17000000.gpu/max_freq": "1020000000\n",
        "sys/class/devfreq/15340000.vic/device/of_node/name": b"vic\0",
        "sys/class/devfreq/15340000.vic/cur_freq": "435200000\n",
        **cpus(6, {0: (1728000, 1728000), 4: (729600, 1728000)}),
        "sys/block/nvme0n1/size": "488397168\n",
        **watchdog("NVIDIA Tegra186 WDT"),
        "sys/devices/platform/bus@0/c360000.pmc/reset_reason": "MAINSWRST\n",
        **boot("5.15.148-tegra"),
    }  # fmt: skip


def agx_orin() -> Tree:
    """AGX Orin, JetPack 6: two power monitors, eMMC, the out-of-tree watchdog."""
    return {
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.0, GCID: 1, BOARD: generic, EABI: aarch64\n",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=3 NAME=MODE_50W >\n",
        "var/lib/nvpmodel/status": "pmode:0003\n",
        "proc/device-tree/compatible": b"nvidia,p3737-0000+p3701-0005\0nvidia,tegra234\0",
        **zone(8, "CPU-therm", 60000, *_TEGRA_TRIPS), **zone(2, "tj-thermal", 61500, ("critical", 104500)),
        **hwmon(3, "ina3221", **rail(1, "VDD_GPU_SOC", 19000, 900), **rail(2, "VDD_CPU_CV", 19000, 400),
                **rail(3, "VIN_SYS_5V0", 5040, 800, max_alarm=1)),
        **hwmon(4, "ina3221", **rail(1, "NC", 0, 0), **rail(2, "VDDQ_VDD2_1V8AO", 5000, 250)),
        **hwmon(5, "soctherm_oc", oc1_event_cnt=0, oc2_event_cnt=0, oc3_event_cnt=0),
        "sys/class/devfreq/17000000.ga10b/device/of_node/name": b"ga10b\0",
        "sys/class/devfreq/17000000.ga10b/device/load": "0\n",
        "sys/class/devfreq/17000000.ga10b/cur_freq": "306000000\n",
        "sys/class/devfreq/17000000.ga10b/max_freq": "1300500000\n",
        **hwmon(9, "tegra_pwmfan", pwm1=255, fan1_input=4100),
        **cpus(12, {0: (2201600, 2201600), 4: (2201600, 2201600), 8: (2201600, 2201600)}),
        "sys/block/mmcblk0/device/life_time": "0x01 0x02\n",
        **watchdog("Tegra WDT", timeout_s=120),
        "sys/devices/platform/c360000.pmc/reset_reason": "BCCPLEXWDT\n",
        **boot("5.15.148-tegra"),
    }  # fmt: skip


def orin_on_seven() -> Tree:
    """Orin Nano under JetPack 7.2: as under 6.2, under another release and kernel, and its modes are fewer."""
    return {
        **orin_nano(),
        "etc/nv_tegra_release": "# R39 (release), REVISION: 2.1, GCID: 1, KERNEL_VARIANT: oot\n",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=7W >\n",
        "var/lib/nvpmodel/status": "pmode:0000\n",
        **boot("6.8.12-tegra"),
    }


def thor() -> Tree:
    """AGX Thor, L4T 38: no throttle counters known, no load in devfreq, another fan controller."""
    return {
        "etc/nv_tegra_release": "# R38 (release), REVISION: 2.0, GCID: 1, KERNEL_VARIANT: oot\n",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=1 NAME=120W >\n",
        "var/lib/nvpmodel/status": "pmode:0001\n",
        "proc/device-tree/compatible": b"nvidia,p4071-0000+p3834-0008\0nvidia,tegra264\0",
        **zone(0, "cpu-thermal", 45000), **zone(1, "tj-thermal", 47000), **zone(2, "gpu-thermal", 44000),
        "sys/class/devfreq/gpu-gpc-0/cur_freq": "1575000000\n",
        "sys/class/devfreq/gpu-gpc-0/max_freq": "1575000000\n",
        "sys/class/devfreq/gpu-nvd-0/cur_freq": "1692000000\n",
        **hwmon(2, "f75308", fan1_input=1700, pwm1=90),
        **cpus(14, {0: (2601000, 2601000)}),
        **watchdog("NVIDIA Tegra186 WDT", timeout_s=120),
        **boot("6.8.12-tegra"),
    }  # fmt: skip


def xavier() -> Tree:
    """Xavier under an older release: capitals in names, a zone that measures nothing, counters of another chip."""
    return {
        "etc/nv_tegra_release": "# R35 (release), REVISION: 6.0, GCID: 1, BOARD: t186ref\n",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=2 NAME=MODE_15W_6CORE >\n",
        "var/lib/nvpmodel/status": "pmode:0002\n",
        "proc/device-tree/compatible": b"nvidia,p3509-0000+p3668-0000\0nvidia,tegra194\0",
        **zone(0, "CPU-therm", 41500, ("passive", 95500)), **zone(4, "PMIC-Die", 100000), **zone(1, "GPU-therm", 40000),
        **zone(5, "thermal-fan-est", 40750, ("active", 35000)),
        **hwmon(0, "soctherm_oc", oc1_irq_cnt=0, oc2_irq_cnt=0, oc3_irq_cnt=4),
        **hwmon(1, "ina3221", **rail(1, "VDD_IN", 5000, 1400)),
        "sys/class/devfreq/17000000.gv11b/device/of_node/name": b"gv11b\0",
        "sys/class/devfreq/17000000.gv11b/device/load": "1000\n",
        "sys/class/devfreq/17000000.gv11b/cur_freq": "1109250000\n",
        **hwmon(4, "tegra-pwmfan", pwm1=0),
        **cpus(6, {0: (1190400, 1907200)}),
        **boot("5.10.216-tegra"),
    }  # fmt: skip


def plain_pc() -> Tree:
    """A desktop: other zones, other fans, a watchdog of its own, trips that say "none"."""
    return {
        **zone(0, "acpitz", 27800, ("critical", 119000)), **zone(1, "x86_pkg_temp", 50000, ("passive", 0), ("passive", -274000)),
        **zone(2, "iwlwifi_1", 40000), **cooling(0, "Processor", 0), **cooling(3, "TCC Offset", 7),
        **hwmon(0, "nct6775", fan1_input=0, pwm1=255), **hwmon(1, "coretemp", temp1_input=50000),
        **cpus(8, {0: (800000, 4700000)}),
        **watchdog("iTCO_wdt", "inactive"),
        **boot("6.1.0-30-amd64"),
    }


BOARDS: dict[str, Callable[[], Tree]] = {
    "orin_nano": orin_nano, "agx_orin": agx_orin, "orin_on_seven": orin_on_seven, "thor": thor, "xavier": xavier,
    "plain_pc": plain_pc,
}  # fmt: skip
