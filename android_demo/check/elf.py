"""What Android asks of a native library, as far as the file shows it: alignment, names, and what it imports.

Libraries that were built for Debian are looked at here. What they import from C's library is what the same sources
import from Android's, under Android's names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import toolchain
from toolchain import CheckError

PAGE = 16384  # bytes of a page, on devices from Android 15 on
READELF, NM = "aarch64-linux-gnu-readelf", "aarch64-linux-gnu-nm"
BINUTILS = "binutils-aarch64-linux-gnu"
BIONIC = Path(__file__).with_name("bionic.txt")

# What glibc calls otherwise than Android
ALIASES = {
    "__assert_fail": "__assert2",
    "__errno_location": "__errno",
    "__getauxval": "getauxval",
    "__getdelim": "getdelim",
    "__isoc99_sscanf": "sscanf",
}
# What the sources ask for where there is glibc, or __gnu_linux__, which Android is not
GLIBC_ONLY = {
    "__libc_single_threaded",  # of libstdc++'s headers
    "backtrace", "backtrace_symbols_fd",  # ggml.c has its own for Android
    "getcpu", "pthread_getaffinity_np", "pthread_setaffinity_np",  # ggml-cpu.c: NUMA, and sched_setaffinity for Android
}  # fmt: skip
# Of the C++ library and the compiler's, which an app brings along
RUNTIME = re.compile(
    r"_ZN?K?S|_ZT|_Zn|_Zd|_ZSt|__cxa_|__gxx_|_Unwind_|__dynamic_cast|__once_proxy|__aarch64_|_ITM_|__gmon_start__"
)


def check(libraries: Sequence[Path], jni: Path, library_jar: Path) -> list[str]:
    """Check all of it and return a line for each thing.

    Raises:
        CheckError: with what Android would refuse.
    """
    for path in (*libraries, jni):
        check_alignment(path)
    methods = check_methods(jni, library_jar)
    imported = check_imports([*libraries, jni])
    return [
        f"{len(libraries) + 1} libraries for pages of {PAGE} bytes",
        f"{methods} native methods, each with its function in {jni.name}",
        f"{imported} imported functions, all of which Android has",
    ]


def check_alignment(path: Path) -> None:
    """Raise CheckError where a segment is not aligned to pages of 16 KB."""
    headers = toolchain.run([toolchain.tool(READELF, BINUTILS), "-lW", path])
    aligned = [int(line.split()[-1], 16) for line in headers.splitlines() if line.split()[:1] == ["LOAD"]]
    if not aligned or min(aligned) < PAGE:
        raise CheckError(f"{path.name}: segments are aligned to {aligned}, Android wants {PAGE}")


def check_methods(jni: Path, library_jar: Path) -> int:
    """The number of native methods; raises CheckError where one has no function, or a function no method."""
    javap = [toolchain.tool("javap", "openjdk-17-jdk-headless"), "-p", "-cp", library_jar]
    listing = toolchain.run([*javap, "pmpd.edgellm.Native"])
    methods = {match[1] for match in re.finditer(r" native .* (\w+)\(", listing)}
    prefix = "Java_pmpd_edgellm_Native_"
    exported = symbols(jni, "--defined-only")
    functions = {name.removeprefix(prefix) for name in exported if name.startswith(prefix)}
    if methods != functions:
        raise CheckError(f"{jni.name}: methods and functions differ: {sorted(methods ^ functions)}")
    if "JNI_OnLoad" not in exported:
        raise CheckError(f"{jni.name}: exports no JNI_OnLoad")
    return len(methods)


def check_imports(libraries: Sequence[Path]) -> int:
    """The number of functions that C's library has to bring; raises CheckError where Android's has one of them not."""
    defined = {name for path in libraries for name in symbols(path, "--defined-only")}
    wanted = {name for path in libraries for name in symbols(path, "--undefined-only")} - defined
    names = {ALIASES.get(name, name) for name in wanted - GLIBC_ONLY if not RUNTIME.match(name)}
    known = {line.split("#")[0].strip() for line in BIONIC.read_text(encoding="utf-8").splitlines()}
    if missing := sorted(names - known):
        raise CheckError(f"imported, and not in {BIONIC.name}: {', '.join(missing)}; look whether Android has them")
    return len(names)


def symbols(path: Path, which: str) -> set[str]:
    """Names of a library's dynamic symbols, without their versions."""
    lines = toolchain.run([toolchain.tool(NM, BINUTILS), "-D", which, "--format=posix", path]).splitlines()
    return {line.split()[0].split("@")[0] for line in lines if line.split()}
