"""The sample app as a package: what android_demo/check/apk.py makes and verifies with Debian's tools."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

Checks = dict[str, ModuleType]


@pytest.fixture(scope="module")
def made(checks: Checks, attempt: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("apk")
    attempt(checks["apk"].make, directory)
    return directory / "app.apk"


@pytest.mark.timeout(900)  # the first run fetches a compiler and a platform, and compiles
def test_the_app_is_compiled_packaged_aligned_signed_and_verified(made: Path) -> None:
    names = zipfile.ZipFile(made).namelist()
    assert {"AndroidManifest.xml", "classes.dex", "resources.arsc", "res/layout/main.xml"} <= set(names)


@pytest.mark.timeout(900)
def test_a_bundle_is_no_part_of_the_package(made: Path) -> None:
    assert not [name for name in zipfile.ZipFile(made).namelist() if name.endswith((".gguf", "pmpd.json"))]


@pytest.mark.timeout(900)
def test_a_package_that_was_changed_after_signing_is_refused(
    checks: Checks, attempt: Callable[..., Any], made: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "changed.apk"
    changed.write_bytes(made.read_bytes())
    with zipfile.ZipFile(changed, "a") as package:
        package.writestr("assets/added", "after signing")
    with pytest.raises(checks["toolchain"].CheckError):
        attempt(checks["apk"].verify, changed, [])


def test_a_library_off_the_page_is_refused(checks: Checks, tmp_path: Path) -> None:
    shifted = tmp_path / "shifted.apk"
    with zipfile.ZipFile(shifted, "w") as package:
        package.writestr("first", "x")
        package.writestr(checks["apk"].PLACEHOLDER, b"\x7fELF")
    with pytest.raises(checks["toolchain"].CheckError, match="16384"):
        checks["apk"]._check_alignment(shifted)


def test_the_manifest_names_classes_that_exist(checks: Checks) -> None:
    compiling = checks["compiling"]
    manifest = (compiling.APP / "main" / "AndroidManifest.xml").read_text(encoding="utf-8")
    names = {path.stem for path in compiling.kotlin_sources(compiling.APP / "main")}
    for name in ("DemoApplication", "MainActivity"):
        assert f'android:name=".{name}"' in manifest
        assert name in names


def test_the_rules_for_proguard_keep_what_native_code_looks_up(checks: Checks) -> None:
    compiling = checks["compiling"]
    rules = (compiling.HERE / "edgellm" / "consumer-rules.pro").read_text(encoding="utf-8")
    native = compiling.JNI_SOURCE.read_text(encoding="utf-8")
    looked_up = {line.split('"pmpd/edgellm/')[1].split('"')[0] for line in native.splitlines() if '"pmpd/' in line}
    assert looked_up >= {"Native", "TokenSink"}
    for name in looked_up:
        assert f"pmpd.edgellm.{name} {{" in rules
