"""The Kotlin tests on a JVM, against the real native libraries and the default bundle."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import compiling
import toolchain
from toolchain import CheckError, MissingTool

# What -Xcheck:jni prints about calls that Android's runtime would abort on
JNI_COMPLAINTS = ("WARNING in native method", "FATAL ERROR in native method", "WARNING: JNI")


@dataclass(frozen=True)
class Machine:
    """A JVM, and the libraries for it.

    Attributes:
        java: the command that runs it, an emulator's included.
        runner: the emulator's part of that.
        libraries: the directory of libpmpd.so and llama.cpp's.
        compiler: a C++ compiler for it.
    """

    java: tuple[str, ...]
    libraries: Path
    runner: tuple[str, ...] = ()
    compiler: tuple[str, ...] = ("g++",)


@dataclass(frozen=True)
class Jars:
    """The compiled modules and their tests."""

    modules: tuple[Path, ...]
    tests: tuple[Path, ...]


def compile_all() -> Jars:
    """Compile the library, what of the app needs no Android, and the tests of both."""
    kotlin, junit = toolchain.kotlin(), toolchain.junit()
    library = compiling.compile_kotlin(
        kotlin, "edgellm", compiling.kotlin_sources(compiling.EDGELLM / "main" / "kotlin")
    )
    tests = compiling.compile_kotlin(
        kotlin,
        "edgellm-test",
        compiling.kotlin_sources(compiling.EDGELLM / "test"),
        [library, *junit],
        friends=[library],
    )
    pure = [path for path in compiling.kotlin_sources(compiling.APP / "main") if path.name in compiling.APP_PURE]
    app = compiling.compile_kotlin(kotlin, "app", pure, [library])
    app_tests = compiling.compile_kotlin(
        kotlin,
        "app-test",
        compiling.kotlin_sources(compiling.APP / "test"),
        [app, library, tests, *junit],
        friends=[app],
    )
    return Jars((library, app), (tests, app_tests))


def here() -> Machine:
    """This machine's JVM, with the libraries that the Python package uses."""
    return Machine((toolchain.java(),), _installed_libraries())


def _installed_libraries() -> Path:
    return Path(toolchain.run([sys.executable, "-c", _LIBRARIES]).strip())


_LIBRARIES = "import os; from pmpd_edge import native; native.load(); print(os.environ[native.LIB_PATH])"
_PACKAGE = "import pmpd_edge; print(pmpd_edge.__path__[0])"
_VERSION = "from importlib import metadata; print(metadata.version('llama-cpp-python'))"
_BUNDLE = "from pmpd_edge import bundle; print(bundle.default_bundle())"


def run_tests(machine: Machine, only: Sequence[str] = ()) -> str:
    """Run the tests and return what JUnit printed.

    Args:
        only: names of test classes; all of them where it is empty.

    Raises:
        CheckError: a test failed, or JNI was used in a way that Android's runtime would not bear.
    """
    jars = compile_all()
    jni = compiling.compile_jni(machine.libraries, machine.compiler)
    bundle = toolchain.run([sys.executable, "-c", _BUNDLE]).strip()
    properties = {
        "java.library.path": str(jni),
        "pmpd.bundle": bundle,
        "pmpd.oracle": str(_oracle(Path(bundle))),
        "pmpd.exact": str(not machine.runner).lower(),  # another processor adds up in another order
        "pmpd.runner": " ".join(machine.runner),
    }
    classpath = [*jars.modules, *jars.tests, *toolchain.kotlin().runtime, *toolchain.junit()]
    command = [*machine.runner, *machine.java, "-ea", "-Xcheck:jni", "-Xmx512m"]
    command += [f"-D{name}={value}" for name, value in properties.items()]
    command += ["-cp", ":".join(map(str, classpath)), "org.junit.runner.JUnitCore"]
    output = toolchain.run([*command, *(only or test_classes())])
    for complaint in JNI_COMPLAINTS:
        if complaint in output:
            at = output.index(complaint)
            raise CheckError(f"JNI is used wrongly: {output[at : at + 300]}")
    return output


def test_classes() -> list[str]:
    """The names of all classes of tests."""
    names = []
    for module in (compiling.EDGELLM, compiling.APP):
        root = module / "test" / "kotlin"
        paths = [path for path in compiling.kotlin_sources(root) if path.name.endswith("Test.kt")]
        names += [".".join(path.relative_to(root).with_suffix("").parts) for path in paths]
    return names


def _oracle(bundle: Path) -> Path:
    """What the Python package answers; it computes with this machine's own libraries."""
    scripts = [Path(__file__).with_name(name) for name in ("oracle.py", "learned.py")]
    scripts.append(compiling.ROOT / "scripts" / "random_bundle.py")  # of which learned.py makes its bundle

    def make(to: Path) -> None:
        toolchain.run([sys.executable, scripts[0], to], env=_environment())

    try:
        toolchain.run([sys.executable, "-c", "import torch, gguf"])
    except CheckError:
        raise MissingTool("torch or gguf is missing: pip install 'pmpd-edge[train]'") from None
    version = toolchain.run([sys.executable, "-c", _VERSION])
    package = Path(toolchain.run([sys.executable, "-c", _PACKAGE]).strip())
    modules = sorted(package.rglob("*.py"))
    libraries = sorted(_installed_libraries().glob("lib*.so"))
    return toolchain.cached("oracle", [version, *scripts, bundle / "pmpd.json", *modules, *libraries], make)


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
