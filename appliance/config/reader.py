"""YAML under limits, with the place of every key: 1 MiB, depth 20, no anchors, aliases, tags or duplicate keys, UTF-8.

Size and depth alone do not bound the time: the worst file of 1 MiB takes 21 s by its number of values and 58 s by one value
of base 60 (tests/box/test_hostile_sticks.py measures what is left)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 20
MAX_NODES = 50_000  # keys, values, lists and sections; a thousand recipes have 30,000
MAX_VALUE = 4096  # characters of one key or value
Path = tuple[Any, ...]


@dataclass(frozen=True)
class Mark:
    """1-based place in the file."""

    line: int
    column: int


class ReadError(Exception):
    """A file that cannot be read as configuration; ``mark`` where."""

    def __init__(self, text: str, mark: Mark = Mark(1, 1)) -> None:
        super().__init__(text)
        self.mark = mark


@dataclass(frozen=True)
class Document:
    """``data``: plain dicts, lists, scalars; ``keys`` and ``values``: where each path's key and value stand."""

    data: Any
    keys: dict[Path, Mark]
    values: dict[Path, Mark]


def read(raw: bytes) -> Document:
    """The one document in ``raw``. Raises ReadError: what, where, what to write instead."""
    if len(raw) > MAX_BYTES:
        raise ReadError(f"the file has {len(raw)} bytes; at most {MAX_BYTES} are read")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as why:
        line = raw[: why.start].count(b"\n") + 1
        raise ReadError(f"byte {why.start} is not UTF-8; save the file as UTF-8", Mark(line, 1)) from why
    try:
        _guard(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as why:
        mark = getattr(why, "problem_mark", None)
        place = Mark(mark.line + 1, mark.column + 1) if mark else Mark(1, 1)
        problem = getattr(why, "problem", None) or str(why).splitlines()[0]
        raise ReadError(f"this is not YAML: {problem}; check indentation, colons and quotes here", place) from why
    if node is None:
        raise ReadError("the file is empty; start from the annotated station.yaml")
    document = Document(None, {}, {})
    data = _plain(node, (), document)
    return Document(data, document.keys, document.values)


def _guard(text: str) -> None:
    """Walk the events (a flat stream: no recursion) before anything is built from them."""
    depth = documents = nodes = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        start: Any = event.start_mark
        mark = Mark(start.line + 1, start.column + 1)
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise ReadError("a second document begins here; one file holds one station: take out the ---", mark)
        if isinstance(event, yaml.AliasEvent):
            raise ReadError("aliases (*name) are not allowed; write the value out", mark)
        if getattr(event, "anchor", None):
            raise ReadError("anchors (&name) are not allowed; write the value out where it is used", mark)
        if getattr(event, "tag", None):
            raise ReadError("tags (!name) are not allowed; write a plain value", mark)
        if isinstance(event, yaml.NodeEvent):
            nodes += 1
            if nodes > MAX_NODES:
                raise ReadError(f"more than {MAX_NODES} keys and values; take out what no station needs", mark)
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > MAX_VALUE:
            raise ReadError(f"a value of {len(event.value)} characters; write at most {MAX_VALUE}", mark)
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            depth += 1
            if depth > MAX_DEPTH:
                raise ReadError(f"nested deeper than {MAX_DEPTH} levels; no setting lies so deep", mark)
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            depth -= 1


def _plain(node: yaml.Node, path: Path, document: Document) -> Any:
    document.values[path] = Mark(node.start_mark.line + 1, node.start_mark.column + 1)
    if isinstance(node, yaml.MappingNode):
        result: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            mark = Mark(key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            if not isinstance(key_node, yaml.ScalarNode):
                raise ReadError("a key must be a plain word", mark)
            key = key_node.value
            if key in result:
                raise ReadError(f"{key} stands here a second time; keep one of the two", mark)
            below = (*path, key)
            document.keys[below] = mark
            result[key] = _plain(value_node, below, document)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*path, index), document) for index, item in enumerate(node.value)]
    try:
        return yaml.SafeLoader("").construct_object(node)
    except (yaml.YAMLError, ValueError, OverflowError) as why:  # OverflowError: base 60, which 1:1:1.5 is to YAML
        mark = document.values[path]
        raise ReadError(f"{node.value[:80]!r} cannot be read as a value; put it in quotes", mark) from why
