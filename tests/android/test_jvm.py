"""The Kotlin library and the app's model on this machine's JVM, with the installed native libraries."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
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


def test_answers_of_another_package_are_not_taken_from_the_cache(
    checks: Checks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    jvm, toolchain = checks["jvm"], checks["toolchain"]
    module = tmp_path / "package" / "inner" / "stream.py"
    module.parent.mkdir(parents=True)
    (tmp_path / "pmpd.json").write_text("{}")
    printed = {jvm._PACKAGE: str(tmp_path / "package"), jvm._VERSION: "1", jvm._LIBRARIES: str(tmp_path)}
    computed = []

    def run(command: list[Any], **options: object) -> str:
        if command[1] != "-c":
            computed.append(module.read_text())
        return printed.get(command[2], "")

    def answers(source: str, version: str) -> Path:
        module.write_text(source)
        printed[jvm._VERSION] = version
        return Path(jvm._oracle(tmp_path))

    monkeypatch.setattr(toolchain, "run", run)
    monkeypatch.setenv("PMPD_ANDROID_CACHE", str(tmp_path / "cache"))
    directories = [answers("a = 1", "1"), answers("a = 1", "1"), answers("a = 2", "1"), answers("a = 1", "2")]
    assert directories[0] == directories[1]
    assert len(set(directories)) == 3
    assert computed == ["a = 1", "a = 2", "a = 1"]


@pytest.mark.parametrize("printed", ["echo javac 11.0.2", "exit 2"])
def test_a_java_that_is_too_old_is_a_missing_tool(
    checks: Checks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, printed: str
) -> None:
    toolchain = checks["toolchain"]
    (tmp_path / "javac").write_text(f"#!/bin/sh\n{printed}\n")
    (tmp_path / "javac").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    toolchain.java.cache_clear()
    with pytest.raises(toolchain.MissingTool, match="older than Java 17"):
        toolchain.java_home()
