"""JSON schemas as llama.cpp grammars.

llama_cpp's converter does the work. What it would do for hours, or with gigabytes, is refused here: schemas come from
anybody who can reach the server.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pmpd_edge import native
from pmpd_edge.errors import PmpdError

native.load()  # before llama_cpp is first imported

from llama_cpp.llama_grammar import JSON_GBNF, BuiltinRule, SchemaConverter  # noqa: E402

ANY_OBJECT = JSON_GBNF
MAX_VISITS = 1000  # subschemas, those reached through several references counted each time
MAX_REPEAT = 500  # the converter writes out repetitions, and llama.cpp parses them by recursion
MAX_SIZE = 256 * 1024
_CHARACTER = BuiltinRule(  # llama_cpp's lets control characters stand in strings, which JSON does not
    r'[^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F] [0-9a-fA-F] [0-9a-fA-F] [0-9a-fA-F])'
)
_REPEATS = ("minItems", "maxItems", "minLength", "maxLength")
_TERMINAL = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]')
_NAME = re.compile(r"[a-zA-Z0-9-]+")
_ESCAPE = re.compile(r'\\(?:x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|[trn\\"\[\]])')  # llama.cpp's
_ESCAPED_OR_CLASS = re.compile(r"\\.|\[(?!\^?\])(?:\\.|[^\]\\])+\]", re.DOTALL)
_CLASSES = {r"\d": "[0-9]", r"\w": "[a-zA-Z0-9_]", r"\s": r"[ \t]", r"\.": "[.]", r"\-": "-", r"\/": "/"}


def to_grammar(schema: Mapping[str, Any]) -> str:
    """A grammar whose root are the documents of a schema.

    Raises:
        PmpdError: the converter does not know something in the schema, or the schema is too large.
    """
    converter = _Converter(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)
    try:
        resolved = converter.resolve_refs(json.loads(json.dumps(schema)), "schema")
        converter.visit(resolved, "")
        grammar: str = converter.format_grammar()
    except PmpdError:
        raise
    except RecursionError:
        raise PmpdError("the JSON schema is nested too deeply", "make it flatter") from None
    except Exception as error:  # the converter asserts, and looks up what may not be there
        raise PmpdError(
            f"the JSON schema cannot be followed ({type(error).__name__}: {_short(error)})",
            "use types, properties, items, enum, const, anyOf and $ref to its own parts",
        ) from None
    _check(grammar)
    return grammar


def _check(grammar: str) -> None:
    """Refuse what llama.cpp's parser would refuse: it prints the whole grammar to standard error."""
    if len(grammar) > MAX_SIZE:
        raise PmpdError(f"the JSON schema makes a grammar of {len(grammar)} characters", "make it smaller")
    rules = dict(line.split(" ::= ", 1) for line in grammar.splitlines())
    for rule in rules.values():
        unknown = set(_NAME.findall(_TERMINAL.sub(" ", rule))) - rules.keys()
        if (
            not rule.strip()
            or unknown
            or any("\\" in _ESCAPE.sub("", terminal) for terminal in _TERMINAL.findall(rule))
        ):
            raise PmpdError("the JSON schema has a pattern or a reference that cannot be followed", "write it out")


class _Converter(SchemaConverter):
    """llama_cpp's converter, within bounds."""

    _visits = 0

    def visit(self, schema: Any, name: str) -> Any:
        self._visits += 1
        if self._visits > MAX_VISITS:
            raise PmpdError(f"the JSON schema has more than {MAX_VISITS} parts", "make it smaller")
        if not isinstance(schema, dict):
            raise ValueError("a schema that is not an object")
        for key in _REPEATS:
            _check_repeat(key, schema.get(key))
        return super().visit(schema, name)

    def _add_primitive(self, name: str, rule: BuiltinRule) -> Any:
        return super()._add_primitive(name, _CHARACTER if name == "char" else rule)

    def _format_literal(self, literal: str) -> str:
        """A literal for JSON text; llama_cpp's loses backslashes."""
        text = json.dumps(json.loads(literal), ensure_ascii=False).replace("\\", "\\\\")
        return '"' + text.replace('"', '\\"') + '"'

    def _visit_pattern(self, pattern: str, name: str) -> Any:
        """Patterns that the converter would read for ever (a bracket that closes nothing) or wrongly are refused."""
        for braces in re.findall(r"\{([\d, ]*)\}", pattern):
            for number in re.findall(r"\d+", braces):
                _check_repeat("pattern", int(number))
        plain = "^" + re.sub(r"\{[\d, ]*\}", "+", _ESCAPED_OR_CLASS.sub("x", pattern[1:-1]))
        if len(pattern) > MAX_REPEAT or set(plain) & set("]{}\\") or re.search(r"[\^(|*+?][*+?]", plain):
            raise PmpdError("a pattern in the JSON schema cannot be followed", "write a simpler one")
        spelt = _ESCAPED_OR_CLASS.sub(lambda found: _CLASSES.get(found[0], found[0]), pattern)
        return super()._visit_pattern(spelt, name)


def _check_repeat(key: str, value: Any) -> None:
    if value is not None and not (isinstance(value, int) and 0 <= value <= MAX_REPEAT):
        raise PmpdError(f"{key} in the JSON schema is not a number from 0 to {MAX_REPEAT}", "give a smaller one")


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 100 else text[:100] + "..."
