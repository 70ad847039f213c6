"""The same on an arm64 machine, emulated: libraries as for a phone, the Kotlin tests, and the choice of CPU kernels.

The libraries are for Debian's C library, not for Android's: they prove the sources, and are no part of an app.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import compiling
import elf
import jvm
import toolchain
from toolchain import CheckError, MissingTool

CROSS = "aarch64-linux-gnu-"
VARIANTS = ("armv8.0_1", "armv8.2_1", "armv8.2_2", "armv8.6_1")
LEAVE_OUT = Path(__file__).with_name("variants.cmake")
# Emulated processors, and the kernels that they must get. A build for one architecture would die on the first one
PROCESSORS = {"cortex-a53": "armv8.0_1", "cortex-a76": "armv8.2_2", "max,sve-max-vq=1": "armv8.6_1"}
JVM_PROCESSOR = "max,sve=off"
RUNTIME = ("openjdk-17-jre-headless:arm64", "zlib1g:arm64", "libc6:arm64", "libstdc++6:arm64", "libgcc-s1:arm64")
JOBS = "2"


def libraries() -> Path:
    """The directory of the libraries, built where sources, pin, patches or what is said here have changed."""
    return toolchain.cached("arm64", sources(), _build)


def sources() -> list[Path]:
    """All that the libraries are made of and by."""
    native = [path for pattern in ("CMakeLists.txt", "llama.pin", "llama_source.py", "patches/*.patch", "pmpd/*.*")
               for path in sorted((compiling.ROOT / "native").glob(pattern))]  # fmt: skip
    return [Path(__file__), LEAVE_OUT, *native, *sorted(compiling.JNI_SOURCE.parent.iterdir())]


def _build(to: Path) -> None:
    """As Gradle would: the project is that of the JNI library, which adds ours."""
    for name in ("gcc", "g++"):
        toolchain.tool(f"{CROSS}{name}", "g++-aarch64-linux-gnu")
    toolchain.tool("ninja", "ninja-build")
    work = compiling.ROOT / "build" / "check" / "arm64"  # kept: a change compiles only what it touches
    java = toolchain.java_home() / "include"
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": "aarch64",
        "CMAKE_C_COMPILER": f"{CROSS}gcc",
        "CMAKE_CXX_COMPILER": f"{CROSS}g++",
        "CMAKE_CXX_FLAGS": f"-I{java} -I{java / 'linux'}",
        "Python_EXECUTABLE": sys.executable,  # native/ prepares llama.cpp's source with it
        "CMAKE_PROJECT_edgellm_INCLUDE": str(LEAVE_OUT),
        "PMPD_CHECK_VARIANTS": ";".join(VARIANTS),
        "PMPD_LLAMA_ARCHIVE": str(_archive()),
    }
    configure = [toolchain.tool("cmake", "cmake"), "-G", "Ninja", "-S", compiling.JNI_SOURCE.parent, "-B", work]
    toolchain.run([*configure, *(f"-D{name}={value}" for name, value in options.items())])
    toolchain.run(["cmake", "--build", work, "-j", JOBS, "--target", "edgellm"])
    for path in {*work.glob("libedgellm.so"), *(work / "bin").glob("lib*.so")}:
        kernels = path.stem.removeprefix("libggml-cpu-")
        if kernels == path.stem or kernels in VARIANTS:
            shutil.copyfile(path, to / path.name)


def _archive() -> Path:
    """The source of llama.cpp: the one that is given, or that `pip install .` has downloaded."""
    if given := os.environ.get("PMPD_LLAMA_ARCHIVE"):
        return Path(given)
    version = re.search(
        r"^llama-cpp-python==(\S+)", (compiling.ROOT / "native" / "llama.pin").read_text(), re.MULTILINE
    )
    assert version, "native/llama.pin names one"
    for path in compiling.ROOT.glob(f"build/*/llama_cpp_python-{version[1]}.tar.gz"):
        return path
    raise MissingTool("the source of llama.cpp is not in build/: pip install ., or set PMPD_LLAMA_ARCHIVE")


def machine(processor: str = JVM_PROCESSOR) -> jvm.Machine:
    """An arm64 JVM of Debian's, emulated."""
    root = toolchain.debian("bookworm", RUNTIME)
    emulator = emulated(root, processor)
    java = root / "usr/lib/jvm/java-17-openjdk-arm64/bin/java"
    # Its helper for starting processes would be started without the emulator
    command = (str(java), "-Djdk.lang.Process.launchMechanism=FORK")
    return jvm.Machine(command, libraries(), emulator, (f"{CROSS}g++",))


def emulated(root: Path, processor: str) -> tuple[str, ...]:
    names = ("qemu-aarch64-static", "qemu-aarch64")
    found = next((name for name in names if toolchain.found(name)), names[0])
    return (toolchain.tool(found, "qemu-user-static"), "-L", str(root), "-cpu", processor)


def check_kernels() -> list[str]:
    """Generate on each processor, and return which kernels it took.

    Raises:
        CheckError: a processor took others than it should, or died.
    """
    lines = []
    for processor, expected in PROCESSORS.items():
        output = jvm.run_tests(machine(processor), ["pmpd.edgellm.KernelsTest"])
        if f"libggml-cpu-{expected}.so" not in output:
            raise CheckError(f"{processor} took other kernels than {expected}:\n{output}")
        lines.append(f"{processor}: {expected}")
    return lines


def check_files() -> list[str]:
    """What Android asks of the libraries (elf.py)."""
    built = libraries()
    jars = jvm.compile_all()
    ours = [path for path in sorted(built.glob("lib*.so")) if path.name != "libedgellm.so"]
    return elf.check(ours, built / "libedgellm.so", jars.modules[0])
