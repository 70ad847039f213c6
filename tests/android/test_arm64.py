"""The native libraries and the Kotlin tests on emulated arm64 processors (android_demo/check/arm64.py)."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

Checks = dict[str, ModuleType]

long = pytest.mark.skipif(
    not os.environ.get("PMPD_TEST_ARM64"),
    reason="compiles llama.cpp and emulates: a quarter of an hour, PMPD_TEST_ARM64=1",
)


@long
@pytest.mark.timeout(3600)
def test_the_kotlin_tests_pass_on_arm64(checks: Checks, attempt: Callable[..., Any]) -> None:
    machine = attempt(checks["arm64"].machine)
    output = attempt(checks["jvm"].run_tests, machine, ["pmpd.edgellm.ParityTest", "pmpd.edgellm.FaultsTest"])
    assert re.search(r"^OK \(\d{2,} tests\)", output, re.MULTILINE), output


@long
@pytest.mark.timeout(3600)
def test_each_processor_gets_the_best_kernels_that_it_runs(checks: Checks, attempt: Callable[..., Any]) -> None:
    assert len(attempt(checks["arm64"].check_kernels)) == 3


@long
@pytest.mark.timeout(3600)
def test_the_libraries_are_as_android_wants_them(checks: Checks, attempt: Callable[..., Any]) -> None:
    assert len(attempt(checks["arm64"].check_files)) == 3


def test_libraries_are_built_again_where_the_build_is_changed(checks: Checks) -> None:
    names = {path.name for path in checks["arm64"].sources()}
    assert {"arm64.py", "variants.cmake", "llama.pin", "pmpd.h", "session.cpp", "edgellm.cpp"} <= names


@pytest.fixture
def compile_c(checks: Checks, attempt: Callable[..., Any], tmp_path: Path) -> Callable[..., Path]:
    compiler = attempt(checks["toolchain"].tool, "aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu")

    def compile(source: str, *options: str) -> Path:
        (tmp_path / "a.c").write_text(source)
        out = tmp_path / "liba.so"
        subprocess.run([compiler, "-shared", "-nostdlib", *options, tmp_path / "a.c", "-o", out], check=True)
        return out

    return compile


def test_a_library_for_pages_of_4_kb_is_refused(checks: Checks, compile_c: Callable[..., Path]) -> None:
    elf, error = checks["elf"], checks["toolchain"].CheckError
    elf.check_alignment(compile_c("int a;", "-Wl,-z,max-page-size=16384"))
    with pytest.raises(error, match="16384"):
        elf.check_alignment(compile_c("int a;", "-Wl,-z,max-page-size=4096"))


def test_an_import_that_android_has_not_is_found(checks: Checks, compile_c: Callable[..., Path]) -> None:
    elf, error = checks["elf"], checks["toolchain"].CheckError
    assert elf.check_imports([compile_c("int fopen(void); int a(void) { return fopen(); }")]) == 1
    with pytest.raises(error, match="secure_getenv"):
        elf.check_imports([compile_c("int secure_getenv(void); int a(void) { return secure_getenv(); }")])
