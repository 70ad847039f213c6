"""Compiles Kotlin, and the C++ of the JNI side. Knows where sources lie, and nothing of what results are used for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import toolchain
from toolchain import Kotlin

HERE = Path(__file__).resolve().parent.parent  # android_demo
ROOT = HERE.parent
EDGELLM = HERE / "edgellm" / "src"
APP = HERE / "app" / "src"
JNI_SOURCE = EDGELLM / "main" / "cpp" / "edgellm.cpp"
# Of the app, what needs no Android: it runs on a desktop's JVM, in tests.
APP_PURE = ("Benchmark.kt", "ChatModel.kt", "ChatState.kt")


@dataclass(frozen=True)
class Target:
    """What class files are made for.

    Attributes:
        jvm: the version of class files.
        jdk: whether the compiler's own JDK is the platform; else it is on the class path.
    """

    jvm: str = "17"
    jdk: bool = True
    options: tuple[str, ...] = ()


DESKTOP = Target()
# dx takes class files up to Java 9 without invokedynamic
ANDROID = Target("1.8", jdk=False, options=("-Xlambdas=class", "-Xsam-conversions=class", "-Xstring-concat=inline"))


def kotlin_sources(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*.kt"))


def compile_kotlin(
    kotlin: Kotlin,
    name: str,
    sources: Sequence[Path],
    classpath: Sequence[Path] = (),
    target: Target = DESKTOP,
    friends: Sequence[Path] = (),
) -> Path:
    """Compile to a jar, once for the same sources, libraries and options. Warnings are errors.

    Args:
        name: of the module.
        friends: jars whose `internal` declarations may be used: those of the module that is tested.
    """
    libraries = [*classpath, *kotlin.runtime]
    options = ["-jvm-target", target.jvm, *target.options, "-no-stdlib", "-no-reflect", "-Werror", "-module-name", name]
    if not target.jdk:
        options.append("-no-jdk")
    key: list[str | Path] = [toolchain.KOTLIN, name, *options, *sources, *classpath]

    def make(to: Path) -> None:
        command = [toolchain.java(), "-Xmx1g", "-cp", _path(kotlin.compiler)]
        command += ["org.jetbrains.kotlin.cli.jvm.K2JVMCompiler", *options, "-cp", _path(libraries)]
        if friends:
            command.append(f"-Xfriend-paths={','.join(map(str, friends))}")
        toolchain.run([*command, "-d", to / f"{name}.jar", *sources])

    return toolchain.cached(f"kotlin-{name}", key, make) / f"{name}.jar"


def compile_jni(libraries: Path, compiler: Sequence[str] = ("g++",)) -> Path:
    """Compile libedgellm.so against libpmpd and return the directory that holds it.

    Args:
        libraries: the directory of libpmpd.so, where it will be when the library runs too.
        compiler: a C++ compiler for the machine that runs it, with its options.
    """
    include = toolchain.java_home() / "include"
    header = ROOT / "native" / "pmpd" / "pmpd.h"
    options = ["-std=c++17", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
    options += ["-Wl,-z,defs", "-Wl,-z,max-page-size=16384", f"-Wl,-rpath,{libraries}"]

    def make(directory: Path) -> None:
        toolchain.tool(compiler[0], "g++")
        includes = [f"-I{path}" for path in (header.parent, include, include / "linux")]
        command = [*compiler, *options, *includes, JNI_SOURCE, "-o", directory / "libedgellm.so"]
        toolchain.run([*command, f"-L{libraries}", f"-Wl,-rpath-link,{libraries}", "-lpmpd"])

    return toolchain.cached("jni", [*compiler, *options, JNI_SOURCE, header, libraries / "libpmpd.so"], make)


def _path(jars: Sequence[Path]) -> str:
    return ":".join(map(str, jars))
