"""libgpiod's Python API, 2.5.0: names and signatures.

Read from: package gpiod 2.5.0, files gpiod/{__init__,chip,chip_info,edge_event,line,line_info,line_request,line_settings}.py; their
repository is brgl/libgpiod, bindings/python/gpiod (commit 4687bcc4f48a9894469ee240e0c67c42d56169c3 and before).
"""

line: object

class Value:
    INACTIVE: int
    ACTIVE: int

class Direction:
    AS_IS: int
    INPUT: int
    OUTPUT: int

class Bias:
    AS_IS: int
    UNKNOWN: int
    DISABLED: int
    PULL_UP: int
    PULL_DOWN: int

class Drive:
    PUSH_PULL: int
    OPEN_DRAIN: int
    OPEN_SOURCE: int

class Edge:
    NONE: int
    RISING: int
    FALLING: int
    BOTH: int

class Clock:
    MONOTONIC: int
    REALTIME: int
    HTE: int

class LineSettings:
    direction: Direction
    edge_detection: Edge
    bias: Bias
    drive: Drive
    active_low: bool
    debounce_period: timedelta
    event_clock: Clock
    output_value: Value

class LineInfo:
    offset: int
    name: str
    used: bool
    consumer: str
    direction: Direction
    active_low: bool
    bias: Bias
    drive: Drive
    edge_detection: Edge
    event_clock: Clock
    debounced: bool
    debounce_period: timedelta

    def __init__(self, offset: int, name: str, used: bool, consumer: str, direction: int, active_low: bool, bias: int, drive: int, edge_detection: int, event_clock: int, debounced: bool, debounce_period_us: int): ...

class ChipInfo:
    name: str
    label: str
    num_lines: int

class EdgeEvent:

    class Type:
        RISING_EDGE: int
        FALLING_EDGE: int
    event_type: Type
    timestamp_ns: int
    line_offset: int
    global_seqno: int
    line_seqno: int

    def __init__(self, event_type: int, timestamp_ns: int, line_offset: int, global_seqno: int, line_seqno: int): ...

class LineRequest:

    def __init__(self, req: _ext.Request): ...

    def release(self) -> None: ...

    def get_value(self, line: int | str) -> Value: ...

    def get_values(self, lines: Iterable[int | str] | None=None) -> list[Value]: ...

    def set_value(self, line: int | str, value: Value) -> None: ...

    def set_values(self, values: dict[int | str, Value]) -> None: ...

    def reconfigure_lines(self, config: dict[Iterable[int | str] | int | str, LineSettings | None]) -> None: ...

    def wait_edge_events(self, timeout: timedelta | float | None=None) -> bool: ...

    def read_edge_events(self, max_events: int | None=None) -> list[EdgeEvent]: ...

    def fileno(self) -> int: ...

    @property
    def chip_name(self) -> str: ...

    @property
    def num_lines(self) -> int: ...

    @property
    def offsets(self) -> list[int]: ...

    @property
    def lines(self) -> list[int | str]: ...

    @property
    def fd(self) -> int: ...

class Chip:

    def __init__(self, path: str): ...

    def close(self) -> None: ...

    def get_info(self) -> ChipInfo: ...

    def line_offset_from_id(self, id: str | int) -> int: ...

    def get_line_info(self, line: int | str) -> LineInfo: ...

    def watch_line_info(self, line: int | str) -> LineInfo: ...

    def unwatch_line_info(self, line: int | str) -> None: ...

    def wait_info_event(self, timeout: timedelta | float | None=None) -> bool: ...

    def read_info_event(self) -> InfoEvent: ...

    def request_lines(self, config: dict[Iterable[int | str] | int | str, LineSettings | None], consumer: str | None=None, event_buffer_size: int | None=None, output_values: dict[int | str, Value] | None=None) -> LineRequest: ...

    def fileno(self) -> int: ...

    @property
    def path(self) -> str: ...

    @property
    def fd(self) -> int: ...

def is_gpiochip_device(path: str) -> bool:
    ...

def request_lines(path: str, config: dict[Iterable[int | str] | int | str, LineSettings | None], consumer: str | None=None, event_buffer_size: int | None=None, output_values: dict[int | str, line.Value] | None=None) -> LineRequest:
    ...
