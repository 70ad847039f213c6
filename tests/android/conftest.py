"""The checks of android_demo/check as modules, and what their tests do where this machine lacks a tool."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

CHECK = Path(__file__).resolve().parent.parent.parent / "android_demo" / "check"
NAMES = ("toolchain", "compiling", "elf", "jvm", "arm64", "apk")


@pytest.fixture(scope="session")
def checks() -> Iterator[dict[str, ModuleType]]:
    """The modules by name; they import each other, as scripts in one directory do."""
    sys.path.insert(0, str(CHECK))
    try:
        yield {name: importlib.import_module(name) for name in NAMES}
    finally:
        sys.path.remove(str(CHECK))
        for name in NAMES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="session")
def attempt(checks: dict[str, ModuleType]) -> Callable[..., Any]:
    """Call a function of the checks; the test is skipped, with the reason, where a tool is missing."""

    def call(function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except checks["toolchain"].MissingTool as error:
            pytest.skip(str(error))

    return call
