"""libpmpd as programs take it with CMake: by find_package() from an installation, by add_subdirectory() from source."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pmpd_edge.bundle import default_bundle

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "native" / "pmpd" / "example" / "chat.c"
PROGRAM = """
cmake_minimum_required(VERSION 3.21)
project(program C CXX)
{pmpd}
add_executable(program {source})
target_link_libraries(program PRIVATE pmpd)
"""

pytestmark = pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("cc") and shutil.which("ninja")),
    reason="cmake, ninja or a C compiler is missing: apt-get install cmake ninja-build gcc g++",
)


def run(*command: str | Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def builds() -> list[Path]:
    """Build directories of native/ in this checkout, those that `pip install .` leaves among them; newest first."""
    ours = {path.parent: list(path.parent.glob("bin/*pmpd.*")) for path in ROOT.glob("build/*/pmpdConfig.cmake")}
    times = {build: max(path.stat().st_mtime for path in libraries) for build, libraries in ours.items() if libraries}
    return sorted(times, key=lambda build: -times[build])


def archive() -> Path | None:
    """The source that native/llama.pin names, where `pip install .` has left it."""
    version = re.search(r"^llama-cpp-python==(\S+)", (ROOT / "native" / "llama.pin").read_text(), re.MULTILINE)
    assert version
    return next(ROOT.glob(f"build/*/llama_cpp_python-{version[1]}.tar.gz"), None)


def project(directory: Path, pmpd: str) -> Path:
    directory.mkdir()
    (directory / "CMakeLists.txt").write_text(PROGRAM.format(pmpd=pmpd, source=EXAMPLE.as_posix()))
    return directory


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which a build of this checkout is installed for programs."""
    if not builds():
        pytest.skip("nothing is built in build/: pip install .")
    prefix = tmp_path_factory.mktemp("installed") / "pmpd"
    run("cmake", "--install", builds()[0], "--component", "pmpd", "--prefix", prefix)
    return prefix


def test_what_is_installed_for_programs_is_the_header_and_the_libraries(installed):
    names = {path.name.split(".")[0].removeprefix("lib") for path in installed.glob("lib*/*.*")}
    assert {"pmpd", "llama", "ggml", "ggml-base"} <= names
    assert "llama-common" not in names  # megabytes that libpmpd does without
    assert [path.name for path in (installed / "include").iterdir()] == ["pmpd.h"]


def test_a_program_finds_the_installed_library_links_and_answers(installed, tmp_path):
    source = project(tmp_path / "source", "find_package(pmpd REQUIRED)")
    moved = shutil.move(installed, tmp_path / "moved")  # the installation knows no path of its own
    try:
        run("cmake", "-G", "Ninja", "-S", source, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={moved}")
        run("cmake", "--build", tmp_path / "build")
        answer = run(tmp_path / "build" / "program", default_bundle(), "--method", "high", "Ein Hund läuft.")
        assert len(answer.split()) > 2
    finally:
        shutil.move(moved, installed)


def test_a_program_that_adds_the_source_is_configured_with_what_it_needs_alone(tmp_path):
    """Only configured: to compile it takes minutes."""
    pytest.importorskip("patch_ng", reason="patch-ng is needed: pip install '.[dev]'")
    if not (source_archive := archive()):
        pytest.skip("no source archive in build/: pip install .")
    if [int(part) for part in run("ninja", "--version").split(".")[:2]] < [1, 11]:
        pytest.skip("ninja 1.11 or newer is needed, which tells a target's inputs")
    source = project(tmp_path / "source", f"add_subdirectory({(ROOT / 'native').as_posix()} pmpd-edge)")
    options = [f"-DPMPD_LLAMA_ARCHIVE={source_archive}", f"-DPython_EXECUTABLE={sys.executable}"]
    run("cmake", "-G", "Ninja", "-S", source, "-B", tmp_path / "build", *options)
    targets = run("ninja", "-C", tmp_path / "build", "-t", "inputs", "program")
    assert "libpmpd" in targets and "libllama." in targets
    assert "llama-common" not in targets
    assert (tmp_path / "build" / "pmpd-edge" / "pmpd").is_dir()
    assert not (tmp_path / "build" / "pmpd-edge" / "imatrix").exists()  # the package's alone
