"""The only reader of YAML files that users write: settings, data catalogs, and cluster profiles.

It is independent of all other modules, so that `cluster` can use it. A file becomes plain mappings, lists, text,
numbers, and dates, or the read ends with one line that names the file and the line.
"""

from __future__ import annotations

from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode

# The catalog of New York has 20 kB, and parsing takes about 10 s per MB.
_MOST_BYTES = 1_000_000
_MOST_LEVELS = 50  # study.yaml has four
# Nodes after every alias is replaced by what it stands for; a few nested aliases can stand for billions of nodes.
_MOST_NODES = 100_000
_MOST_DIGITS = 100  # of a number or a date; the time to convert longer ones grows with the square of their length
_INT64 = 2**63
_PREFIX = "tag:yaml.org,2002:"
_SCALARS = tuple(_PREFIX + name for name in ("null", "bool", "int", "float", "timestamp"))
_MERGE = _PREFIX + "merge"
_TAGS = frozenset((*_SCALARS, _MERGE, *(_PREFIX + name for name in ("str", "seq", "map"))))


class YamlFileError(ValueError):
    """A YAML file that cannot be read; the message is one line with file and line number."""


class _Loader(yaml.SafeLoader):
    """YAML loader with limits, without duplicate keys and without tags beyond those of plain data."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level = 0
        self._nodes = [0]  # composed so far below each open node
        self._size: dict[int, int] = {}  # of finished nodes, by id

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        tag = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        # YAML 1.1 has numbers to base 60: 12:00:00 would be 43,200. Here it is text.
        return _PREFIX + "str" if tag in (_PREFIX + "int", _PREFIX + "float") and ":" in value else tag

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        mark: Any = event.start_mark
        if self._level == _MOST_LEVELS:
            raise ConstructorError(None, None, f"more than {_MOST_LEVELS} levels", mark)
        self._level += 1
        self._nodes.append(0)
        node = super().compose_node(parent, index)
        below = self._nodes.pop()
        self._level -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._size:
                raise ConstructorError(None, None, f"*{event.anchor} contains itself", mark)
        elif node is not None:
            self._size[id(node)] = below + 1
            _check_tag(self, node)
        self._nodes[-1] += self._size[id(node)]
        if self._nodes[-1] > _MOST_NODES:
            raise ConstructorError(None, None, f"more than {_MOST_NODES:,} values", mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise ConstructorError(None, None, "a key is a list or mapping; expected a name", key.start_mark)
            value = key.value if key.tag == _MERGE else self.construct_object(key)
            if value in lines:
                problem = f"duplicate key {_short(value)}, first in line {lines[value]}; merge both or remove one"
                raise ConstructorError(None, None, problem, key.start_mark)
            lines[value] = key.start_mark.line + 1
        return node

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep=deep)
        except ValueError as error:  # a date such as 2020-02-30
            raise ConstructorError(None, None, f"{_short(node.value)}: {error}", node.start_mark) from error
        if isinstance(value, int) and not -_INT64 <= value < _INT64:
            raise ConstructorError(
                None, None, f"{_short(node.value)}: expected a number below 2**63; put text in quotes", node.start_mark
            )
        return value


def _check_tag(loader: _Loader, node: Node) -> None:
    """Refuse tags that would run code or make other types, and values that their tag does not fit."""
    if node.tag not in _TAGS:
        raise ConstructorError(None, None, f"tag {_short(node.tag)} is not allowed; remove it", node.start_mark)
    if node.tag in _SCALARS and isinstance(node, ScalarNode):
        if len(node.value) > _MOST_DIGITS:
            problem = f"{_short(node.value)} has {len(node.value):,} characters; expected a number; put text in quotes"
            raise ConstructorError(None, None, problem, node.start_mark)
        plain: str = loader.resolve(ScalarNode, node.value, (True, False))
        if plain != node.tag and not (node.tag == _PREFIX + "float" and plain == _PREFIX + "int"):
            kind = node.tag.removeprefix(_PREFIX)
            raise ConstructorError(None, None, f"{_short(node.value)} is not of type {kind}", node.start_mark)


def _short(text: object) -> str:
    """Quote a value for a message, at most 40 characters of it."""
    value = str(text)
    return repr(value if len(value) <= 40 else f"{value[:37]}...")


def load_yaml(content: str | bytes, *, where: str) -> dict[Any, Any]:
    """Read the mapping at the top of a YAML file.

    Parameters
    ----------
    content : str or bytes
        Content of the file; bytes are UTF-8, with or without a byte order mark.
    where : str
        Name of the file in errors.

    Returns
    -------
    dict
        Empty for an empty file.

    Raises
    ------
    YamlFileError
        If the file is not UTF-8, not YAML, no mapping, or beyond the limits, or has duplicate keys or other tags than
        those of plain data.
    """
    if len(content) > _MOST_BYTES:
        raise YamlFileError(f"{where} has {len(content):,} bytes; expected at most {_MOST_BYTES:,}; check the file")
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise YamlFileError(f"{where} is not UTF-8 (line {line}); save it as UTF-8") from error
    try:
        value = _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(str(error.problem or error.context).split())
        line = mark.line + 1 if mark else 1
        if isinstance(error, ConstructorError):
            raise YamlFileError(f"{where}, line {line}: {problem}") from error
        raise YamlFileError(f"{where} is not YAML (line {line}: {problem})") from error
    except yaml.YAMLError as error:  # characters that YAML does not allow
        raise YamlFileError(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise YamlFileError(f"{where} holds a {type(value).__name__}; expected keys such as `name:`")
    return value
