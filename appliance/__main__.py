"""The verbs of the command line; each a few lines that call a room."""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.clock import SystemClock
from appliance.notify import of_this_process
from appliance.paths import Paths, box_folders

if TYPE_CHECKING:
    from appliance.wiring.store import Chosen


def main(arguments: list[str] | None = None) -> int:
    """Exit codes as the contract's table says; 2 for what cannot be used."""
    options = _parser().parse_args(arguments)
    level = logging.INFO if options.verbose else logging.WARNING
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        return int(options.verb(options))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="appliance", description="Inspection appliance: camera to gate.")
    parser.add_argument("-v", dest="verbose", action="store_true", help="tell more on stderr")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, function: object, help_: str) -> argparse.ArgumentParser:
        one = verbs.add_parser(name, help=help_)
        one.set_defaults(verb=function)
        return one

    run = verb("run", _run, "run the station")
    run.add_argument("-c", dest="file", type=Path, required=True, help="a configuration, or a folder: a configuration store")
    run.add_argument("--only", help="some of reject,inspect,report: one systemd unit each")
    run.add_argument("--run-dir", type=Path)
    run.add_argument("--data-dir", type=Path)
    done = verb("settle", _settle, "decide what was left on trial, by the station's health; at boot, and after a killed doer")
    done.add_argument("--store", type=Path, help="the configuration store; default config in the data folder")
    done.add_argument("--run-dir", type=Path)
    done.add_argument("--data-dir", type=Path)
    update = verb("update", _update, "the application itself, in two slots")
    update.add_argument("action", choices=("install", "status", "return", "manifest"),
                        help="return: to what ran before; manifest: the bytes that a signature is over")
    update.add_argument("file", type=Path, nargs="?", help="install, manifest: the bundle; its signature lies beside it")
    update.add_argument("--force", action="store_true", help="install: one that was tried and not kept")
    update.add_argument("--who", help="for the history: on whose behalf")
    update.add_argument("--why", help="for the history")
    update.add_argument("--json", type=Path)
    update.add_argument("--run-dir", type=Path)
    update.add_argument("--data-dir", type=Path)
    verb("check", _check, "validate a configuration").add_argument("file", type=Path)
    verb("schema", _schema, "JSON Schema of the configuration")
    for name, function in (("rehearse", _rehearse), ("demo", _demo)):
        one = verb(name, function, "run the firmware against the simulated line")
        one.add_argument("-c", dest="file", type=Path)
        one.add_argument("--parts", type=int, default=600)
        one.add_argument("--ppm", type=float, default=600.0)
        one.add_argument("--seed", type=int, default=1)
        one.add_argument("--fast", action="store_true", help="virtual time")
        one.add_argument("--line", choices=("steady", "stops", "ramp", "close", "divert", "slip"), default="steady",
                         help="how the belt behaves; see appliance/twin/scenarios.py")
        one.add_argument("--hard", action="store_true", help="defects fainter than the bundle promises")
        one.add_argument("--good", type=Path, help="photographs of good parts")
        one.add_argument("--bad", type=Path, help="photographs of defective parts")
        one.add_argument("--fault", action="append", default=[], metavar="NAME@T[+DURATION]")
        one.add_argument("--operator", default="5s", help="how long until a person clears a stopped line")
        one.add_argument("--json", type=Path)
        one.add_argument("--keep", type=Path, help="keep ledger, images and truth in this folder")
    inspect = verb("inspect", _inspect, "judge images offline")
    inspect.add_argument("-m", dest="bundle", type=Path, required=True)
    inspect.add_argument("--recipe", type=Path)
    inspect.add_argument("--json", type=Path)
    inspect.add_argument("paths", type=Path, nargs="+")
    ledger = verb("ledger", _ledger, "verify, export, show")
    ledger.add_argument("action", choices=("verify", "export", "show"))
    ledger.add_argument("file", type=Path, help="ledger.sqlite")
    ledger.add_argument("--part", type=int)
    ledger.add_argument("--csv", action="store_true", help="export parts as CSV; default JSON lines of all entries")
    status = verb("status", _status, "the running station, over MQTT")
    status.add_argument("-c", dest="file", type=Path, required=True)
    status.add_argument("--watch", action="store_true")
    engine = verb("engine", _engine, "TensorRT engines of a bundle on this module")
    engine.add_argument("action", choices=("build", "bench", "licence"))
    engine.add_argument("bundle", type=Path)
    engine.add_argument("--images", type=Path, help="licence: labelled images, good/ and a folder for each other class")
    engine.add_argument("--json", type=Path)
    engine.add_argument("-c", dest="file", type=Path, help="the station whose engines these are")
    engine.add_argument("--data-dir", type=Path)
    test = verb("selftest", _selftest, "the first hour with a module: what is there, what works, how fast")
    test.add_argument("-c", dest="file", type=Path, help="the station: its cameras and bundles")
    test.add_argument("-m", dest="bundles", type=Path, action="append", default=[], help="a bundle, beside the station's")
    test.add_argument("--loopback", metavar="OUT,IN", help="two lines joined by a wire: gpio://PQ.05,gpio://PQ.06")
    test.add_argument("--engine", choices=("auto", "cuda", "cpu"), help="what judges; default the station's, else auto")
    test.add_argument("--json", type=Path)
    test.add_argument("--data-dir", type=Path)
    for name, function, told in (("twin", _twin, "the simulated line of a twin:// station, parts without end"),
                                 ("broker", _broker, "the broker of a station that says `broker: embedded`")):  # fmt: skip
        one = verb(name, function, told)
        one.add_argument("-c", dest="file", type=Path, required=True)
        one.add_argument("--wanted", action="store_true", help="only say by the exit code whether the station asks for it")
        one.add_argument("--ppm", type=float, default=120.0)
        one.add_argument("--seed", type=int, default=1)
        one.add_argument("--run-dir", type=Path)
        one.add_argument("--data-dir", type=Path)
    for name, function, actions, told in (
        ("usb", _usb, ("apply", "unreadable", "manifest"), "a stick: apply it; digests of the bundles to go on one"),
        ("keys", _keys, ("enrol", "list"), "whose signatures count: enrolled from a stick, at the first start only"),
    ):
        one = verb(name, function, told)
        one.add_argument("action", choices=actions)
        one.add_argument("place", type=Path, nargs="?", help="a folder, or with --device where that is mounted meanwhile")
        one.add_argument("why", nargs="?", default="", help="unreadable: in words")
        one.add_argument("--device", type=Path, help="the stick's partition; without it PLACE is a plain folder")
        one.add_argument("--store", type=Path, help="the configuration store; default config in the data folder")
        one.add_argument("--run-dir", type=Path)
        one.add_argument("--data-dir", type=Path)
    verb("teach", _not_built, "not built yet").add_argument("rest", nargs="*")
    return parser


def _paths(options: argparse.Namespace, name: str) -> Paths:
    home = Path.home() / ".local/state/appliance" / name.replace("/", "-")
    run = options.run_dir or Path(os.environ.get("RUNTIME_DIRECTORY") or home / "run")
    data = options.data_dir or Path(os.environ.get("STATE_DIRECTORY") or home / "data")
    return Paths(run, data).make()


def _data_dir(options: argparse.Namespace, station: str | None) -> Path:
    """Where engines are kept: the station's data folder, or the box's."""
    given = options.data_dir or os.environ.get("STATE_DIRECTORY")
    if given:
        return Path(given)
    return Path.home() / ".local/state/appliance" / (station or "box").replace("/", "-") / "data"


def _run(options: argparse.Namespace) -> int:
    from appliance.config import ConfigError

    try:
        roles = tuple(options.only.split(",")) if options.only else ("report", "inspect", "reject")
        unknown = set(roles) - {"report", "inspect", "reject"}
        if unknown:
            raise ValueError(f"--only {','.join(unknown)}: write some of reject, inspect, report")
        chosen, paths = _chosen(options, roles)
        if len(roles) == 1:
            return _one_role(roles[0], chosen, paths)
    except (ConfigError, ValueError, OSError) as why:
        sys.stderr.write(f"{why}\n")
        return 2
    return _supervise(options, chosen, paths, roles)


def _chosen(options: argparse.Namespace, roles: tuple[str, ...]) -> tuple[Chosen, Paths]:
    """What is to be run, of a file or of a store (a folder), and where. Raises ConfigError, OSError."""
    from appliance.config import load
    from appliance.wiring.store import Chosen, load_chosen

    if options.file.is_dir() or not (options.file.exists() or options.file.suffix):
        from appliance.box.store import Store

        paths = _paths(options, options.file.resolve().name)
        paths.begin(roles)
        return load_chosen(Store(options.file), paths.data), paths
    run = options.run_dir or os.environ.get("RUNTIME_DIRECTORY")
    if run:
        Paths(Path(run), Path(run)).begin(roles)
    station = load(options.file, data_dir=options.data_dir)
    return Chosen(station, None, ""), _paths(options, station.station)


def _one_role(role: str, chosen: Chosen, paths: Paths) -> int:
    clock, notifier = SystemClock(), of_this_process()
    faulthandler.enable()  # the watchdog's SIGABRT leaves in the journal where the process hung
    if chosen.why:
        logging.getLogger("appliance.run").error("%s", chosen.why)
    if role == "reject":
        from appliance.reject.books import BooksBroken
        from appliance.reject.daemon import main as reject_main
        from appliance.wiring.store import reject_build

        try:
            return reject_main(reject_build(chosen, paths, clock), paths, clock, notifier)
        except BooksBroken as why:
            raise ValueError(str(why)) from why
    if role == "inspect":
        if chosen.station is None:
            from appliance.inspect.waiting import wait_for_configuration

            return wait_for_configuration(paths, notifier, chosen.why)
        import cv2

        from appliance.inspect.daemon import main as inspect_main
        from appliance.wiring.station import inspect_build

        cv2.setNumThreads(1)
        return inspect_main(inspect_build(chosen.station, paths, clock), paths, clock, notifier)
    from appliance.report.daemon import main as report_main
    from appliance.report.ledger import LedgerError
    from appliance.wiring.store import report_build

    try:
        return report_main(report_build(chosen, clock), paths, clock, notifier)
    except LedgerError as why:
        raise ValueError(str(why)) from why


def _supervise(options: argparse.Namespace, chosen: Chosen, paths: Paths, roles: tuple[str, ...]) -> int:
    import select

    from appliance.supervisor import Supervisor

    supervisor = Supervisor(options.file, paths, roles, verbose=options.verbose)
    reading, writing = os.pipe()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os.write(writing, b"x"))
    broker = None
    if chosen.broker == "embedded":
        from appliance.devices.broker_embedded import start

        broker = start(1883)
    supervisor.start()
    while not select.select([reading], [], [], 0.2)[0]:
        supervisor.poll()
    supervisor.stop()
    if broker is not None:
        broker.terminate()
        broker.wait(5)
    return 0


def _twin(options: argparse.Namespace) -> int:
    from appliance.config import ConfigError
    from appliance.wiring.store import chosen_digest

    try:
        chosen, paths = _chosen(options, ())
        station = chosen.station
        if station is None or any(camera.source.scheme != "twin" for camera in station.cameras.values()):
            sys.stderr.write(f"{options.file}: its cameras are not twin://; the simulated line is not wanted\n")
            return 1
        if options.wanted:
            return 0
        from appliance.twin import show

        scenario = show.scenario_of(station, paths, options.ppm, options.seed)

        def anew() -> dict[str, object]:
            return show.scenario_of(_chosen(options, ())[0].station, paths, options.ppm, options.seed)

        played = show.Played(scenario, station.digest, lambda seen: chosen_digest(options.file, seen), anew)
        return show.show(scenario, played.is_over, of_this_process())
    except (ConfigError, ValueError, OSError) as why:
        sys.stderr.write(f"{why}\n")
        return 2


def _broker(options: argparse.Namespace) -> int:
    from appliance.config import ConfigError

    try:
        chosen, _paths_ = _chosen(options, ())
    except (ConfigError, OSError) as why:
        sys.stderr.write(f"{why}\n")
        return 2
    if chosen.broker != "embedded":
        sys.stderr.write(f"{options.file}: its broker is not `embedded`; this one is not wanted\n")
        return 1
    if options.wanted:
        return 0
    from appliance.devices.broker_embedded import run

    return run(1883)


def _update(options: argparse.Namespace) -> int:
    from appliance.wiring.update import update_verb

    return update_verb(options, sys.stdout, sys.stderr)


def _settle(options: argparse.Namespace) -> int:
    from appliance.box.owner import become_owner
    from appliance.box.store import Store
    from appliance.wiring.settle import ConfigurationOnTrial, settle
    from appliance.wiring.update import application_on_trial

    try:
        data, run = box_folders(options.data_dir, options.run_dir)
        become_owner(data)
        store = Store(options.store or data / "config")
        configuration = ConfigurationOnTrial(store, run, data, SystemClock())
        configuration.refresh()
        application = application_on_trial(data, run)
        with application.alone() as mine:
            return settle([configuration, application] if mine else [configuration], run, SystemClock())
    except OSError as why:
        sys.stderr.write(f"what is on trial cannot be decided: {why}\n")
        return 2


def _check(options: argparse.Namespace) -> int:
    from appliance.config.verbs import check
    from appliance.wiring.station import bundle_remarks

    return check(options.file, sys.stdout, bundle_remarks)


def _schema(_options: argparse.Namespace) -> int:
    from appliance.config.verbs import schema

    return schema(sys.stdout)


def _rehearse(options: argparse.Namespace) -> int:
    from appliance.config import ConfigError
    from appliance.model.bundle import BundleError
    from appliance.model.golden import GoldenError
    from appliance.ports import EngineError
    from appliance.twin import fast, rehearse, trouble

    try:
        if (options.good is None) != (options.bad is None):
            raise ValueError("--good DIR and --bad DIR go together")
        given = rehearse.Options(
            file=options.file or rehearse.SHIPPED, parts=options.parts, ppm=options.ppm, seed=options.seed,
            scenario=options.line, hard=options.hard, good=options.good, bad=options.bad,
            faults=[trouble.parse(one) for one in options.fault],
            operator_s=float(options.operator.rstrip("s")), keep=options.keep, verbose=options.verbose,
        )  # fmt: skip
        result = (fast.rehearse_fast if options.fast else rehearse.rehearse)(given, sys.stdout)
    except (ConfigError, BundleError, GoldenError, EngineError, ValueError, OSError, rehearse.RehearsalFailed) as why:
        sys.stderr.write(f"{why}\n")
        return 1 if isinstance(why, rehearse.RehearsalFailed) else 2
    result.print_table(sys.stdout)
    page = getattr(options, "page", None)
    if page is not None:
        from appliance.twin.report_page import write_page

        page.parent.mkdir(parents=True, exist_ok=True)
        write_page(page, result)
        sys.stdout.write(f"report page: {page}\n")
    if options.json:
        options.json.write_text(json.dumps(result.as_json(), indent=1) + "\n", encoding="utf-8")
    return 1 if result.failures() else 0


def _demo(options: argparse.Namespace) -> int:
    sys.stdout.write("The shipped station on a simulated line: 3 processes of firmware, a twin of the line, a broker.\n")
    options.page = Path.home() / ".local/state/appliance/demo.html"
    return _rehearse(options)


def _inspect(options: argparse.Namespace) -> int:
    from appliance.wiring.models import inspect_paths

    return inspect_paths(options.bundle, options.recipe, options.paths, sys.stdout, options.json)


def _engine(options: argparse.Namespace) -> int:
    from appliance.config import ConfigError, load
    from appliance.wiring import engine_verbs as verbs
    from appliance.wiring.machine import open_gpu_site

    try:
        station = load(options.file).station if options.file else None
    except ConfigError as why:
        sys.stderr.write(f"{why}\n")
        return 2
    data_dir = _data_dir(options, station)
    if options.action == "licence":
        return verbs.engine_licence(
            options.bundle, data_dir, sys.stdout, sys.stderr, open_gpu_site, options.images, options.json
        )  # fmt: skip
    function = verbs.engine_build if options.action == "build" else verbs.engine_bench
    return function(options.bundle, data_dir, sys.stdout, sys.stderr, open_gpu_site, options.json)


def _selftest(options: argparse.Namespace) -> int:
    from appliance.config import ConfigError, find_bundle, load
    from appliance.selftest import selftest
    from appliance.wiring.selftest import bench_of

    try:
        station = load(options.file, data_dir=options.data_dir) if options.file else None
        loopback = tuple(options.loopback.split(",")) if options.loopback else None
        if loopback is not None and len(loopback) != 2:
            raise ValueError("--loopback names two lines: gpio://OUT,gpio://IN")
    except (ConfigError, ValueError) as why:
        sys.stderr.write(f"{why}\n")
        return 2
    data_dir = _data_dir(options, station.station if station else None)
    bundles = list(options.bundles)
    for look in station.recipe.inspect if station else ():
        folder = find_bundle(look.bundle, options.file, options.data_dir)
        bundles += [folder] if folder else []
    bench = bench_of(station, options.engine or (station.engine if station else "auto"), data_dir, SystemClock())
    return selftest(station, bundles, loopback, bench, sys.stdout, options.json)


def _ledger(options: argparse.Namespace) -> int:
    from appliance.report import verify

    if options.action == "verify":
        return verify.verify_verb(options.file, sys.stdout)
    try:
        if options.action == "export":
            return verify.export(options.file, sys.stdout, "csv" if options.csv else "jsonl")
        if options.part is None:
            raise OSError("name the part: --part N")
        return verify.show(options.file, options.part, sys.stdout)
    except OSError as why:
        sys.stderr.write(f"{why}\n")
        return 2


def _status(options: argparse.Namespace) -> int:
    from appliance.config import ConfigError, load
    from appliance.status import watch

    try:
        station = load(options.file)
    except ConfigError as why:
        sys.stderr.write(f"{why}\n")
        return 2
    return watch(station, sys.stdout, sys.stderr, for_ever=options.watch)


def _usb(options: argparse.Namespace) -> int:
    from appliance.wiring.stick_verbs import usb

    return usb(options, sys.stdout, sys.stderr)


def _keys(options: argparse.Namespace) -> int:
    from appliance.wiring.stick_verbs import keys

    return keys(options, sys.stdout, sys.stderr)


def _not_built(_options: argparse.Namespace) -> int:
    sys.stderr.write("not built yet: this verb comes with a later release\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
