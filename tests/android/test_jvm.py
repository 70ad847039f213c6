"""The Kotlin library and the app's model on this machine's JVM, with the installed native libraries."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

Checks = dict[str, ModuleType]


@pytest.mark.timeout(900)  # the first run fetches a compiler and compiles
def test_the_kotlin_tests_pass(checks: Checks, attempt: Callable[..., Any]) -> None:
    output = attempt(checks["jvm"].run_tests, attempt(checks["jvm"].here))
    assert re.search(r"^OK \(\d{2,} tests\)", output, re.MULTILINE), output


@pytest.mark.timeout(900)
def test_a_failing_kotlin_test_fails_the_check(checks: Checks, attempt: Callable[..., Any]) -> None:
    machine = attempt(checks["jvm"].here)
    with pytest.raises(checks["toolchain"].CheckError, match="NoSuchTest"):
        attempt(checks["jvm"].run_tests, machine, ["pmpd.edgellm.NoSuchTest"])


def test_every_test_class_is_found(checks: Checks) -> None:
    names = checks["jvm"].test_classes()
    assert {"pmpd.edgellm.SessionTest", "pmpd.edgellm.BundleStoreTest", "pmpd.edgellm.demo.ChatModelTest"} <= set(names)


@pytest.mark.timeout(900)
def test_every_native_method_has_its_function(checks: Checks, attempt: Callable[..., Any]) -> None:
    jvm, compiling, elf = (checks[name] for name in ("jvm", "compiling", "elf"))
    jars = attempt(jvm.compile_all)
    jni = attempt(compiling.compile_jni, attempt(jvm.here).libraries)
    assert attempt(elf.check_methods, jni / "libedgellm.so", jars.modules[0]) > 15
