"""What the checks compile and run with: a Kotlin compiler from PyPI, packages from Debian, tools of the system.

All that is fetched lies in a cache directory (`PMPD_ANDROID_CACHE`, else below `XDG_CACHE_HOME`), each thing under the
hash of what it is, so that nothing is fetched twice and nothing stale is used. It knows nothing about what is compiled.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

# A compiler for checks only: a release is built by Gradle with the Kotlin of gradle/libs.versions.toml.
KOTLIN = "kotlin-jupyter-kernel==0.19.0.944"
KOTLIN_SHA256 = "dc654a426a28e6621aeb0bd7772d268a9a877aabae4a17b73383752a416281a3"
_JARS = "run_kotlin_kernel/jars/"
_COROUTINES = ("kotlinx/coroutines/", "_COROUTINE/", "META-INF/kotlinx-coroutines", "META-INF/kotlinx_coroutines")

JAVA = 17
JDK = f"openjdk-{JAVA}-jdk-headless"

TIMEOUT_SECONDS = 3600  # of whatever is started: a hang has to end as a failure

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class CheckError(Exception):
    """One line that says what failed, and the way out."""


class MissingTool(CheckError):
    """Something that the check needs is not on this machine, and cannot be fetched."""


@dataclass(frozen=True)
class Kotlin:
    """The jars of a Kotlin compiler, and those that what it compiles needs."""

    compiler: tuple[Path, ...]
    stdlib: Path
    coroutines: Path

    @property
    def runtime(self) -> tuple[Path, ...]:
        """What compiled code needs to run."""
        return (self.stdlib, self.coroutines)


def tool(name: str, package: str) -> str:
    """The path of a program of the system.

    Raises:
        MissingTool: it is not there; names the Debian package that brings it.
    """
    path = shutil.which(name)
    if path is None:
        raise MissingTool(f"{name} is not installed: apt-get install {package}")
    return path


def found(name: str) -> bool:
    """Whether there is such a program."""
    return shutil.which(name) is not None


@functools.cache
def java(name: str = "java") -> str:
    """The path of a program of a Java development kit that is new enough.

    Raises:
        MissingTool: it is not there, or too old.
    """
    path = tool(name, JDK)
    try:
        version = run([path, "--version"])
    except CheckError:  # of Java 8, which does not know the option
        version = ""
    number = re.search(r"\d+", version)
    if number is None or int(number[0]) < JAVA:
        raise MissingTool(f"{path} is older than Java {JAVA}: apt-get install {JDK}")
    return path


def java_home() -> Path:
    """The directory of the Java development kit."""
    return Path(java("javac")).resolve().parent.parent


def run(command: Sequence[object], **options: object) -> str:
    """Run a command and return its standard output.

    Raises:
        CheckError: it failed, with the end of what it printed; or it did not end.
    """
    words = [str(word) for word in command]
    options = {"capture_output": True, "encoding": "utf-8", "errors": "replace", "timeout": TIMEOUT_SECONDS, **options}
    try:
        done = subprocess.run(words, check=False, **options)  # type: ignore[call-overload]
    except subprocess.TimeoutExpired as error:
        printed = (error.stdout or b"").decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout
        raise CheckError(f"{' '.join(words[:3])} ... did not end in {error.timeout} s:\n{printed}") from None
    if done.returncode != 0:
        lines = f"{done.stdout}\n{done.stderr}".strip().splitlines()
        output = "\n".join([line for line in lines if not line.startswith("\tat ")][-60:])  # without stack traces
        raise CheckError(f"{' '.join(words[:3])} ... failed ({done.returncode}):\n{output}")
    return done.stdout


def fetch(command: Sequence[object], **options: object) -> None:
    """Run a command that downloads.

    Raises:
        MissingTool: it failed; CheckError where what came is not what was expected.
    """
    try:
        run(command, **options)
    except CheckError as error:
        if "DO NOT MATCH THE HASHES" in str(error):
            raise
        raise MissingTool(f"not fetched: {error}") from error


def cache() -> Path:
    """Where fetched and compiled things are kept."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = Path(os.environ.get("PMPD_ANDROID_CACHE") or base / "pmpd-edge" / "android")
    path.mkdir(parents=True, exist_ok=True)
    return path


def cached(name: str, key: Sequence[str | Path], make: Callable[[Path], None]) -> Path:
    """A directory that `make` fills, once for each key: texts, and files by their content.

    It appears when it is whole: `make` fills a temporary one.
    """
    digest = hashlib.sha256()
    for part in key:
        digest.update(b"%d:" % (part.stat().st_size if isinstance(part, Path) else len(part.encode())))
        digest.update(part.name.encode() + part.read_bytes() if isinstance(part, Path) else part.encode())
    target = cache() / f"{name}-{digest.hexdigest()[:16]}"
    if not target.is_dir():
        with tempfile.TemporaryDirectory(dir=cache(), prefix=f".{name}-") as scratch:
            fresh = Path(scratch, "fresh")
            fresh.mkdir()
            make(fresh)
            try:
                fresh.rename(target)
            except OSError:  # another process was quicker
                if not target.is_dir():
                    raise
    return target


def kotlin() -> Kotlin:
    """The Kotlin compiler, fetched where it is not in the cache."""
    jars = cached("kotlin", [KOTLIN, KOTLIN_SHA256, *_COROUTINES], _unpack_kotlin)
    compiler = tuple(sorted(jars.glob("kotlin-*.jar"))) + tuple(sorted(jars.glob("annotations-*.jar")))
    return Kotlin(compiler, next(jars.glob("kotlin-stdlib-*.jar")), jars / "coroutines.jar")


def _unpack_kotlin(to: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        requirements = Path(scratch, "requirements.txt")
        requirements.write_text(f"{KOTLIN} --hash=sha256:{KOTLIN_SHA256}\n")
        options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes", "--dest", scratch]
        fetch([sys.executable, "-m", "pip", "download", *options, "-r", requirements])
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            for name in wheel.namelist():
                if name.startswith(_JARS) and name.endswith(".jar"):
                    (to / Path(name).name).write_bytes(wheel.read(name))
    _extract_coroutines(next(to.glob("kotlin-jupyter-kernel-*-all.jar")), to / "coroutines.jar")


def _extract_coroutines(everything: Path, to: Path) -> None:
    """The coroutines library is inside the compiler's jar, with its declarations for the compiler."""
    with zipfile.ZipFile(everything) as jar, zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as out:
        for name in sorted(set(jar.namelist())):
            if name.startswith(_COROUTINES) and not name.endswith("/"):
                out.writestr(name, jar.read(name))


def debian(suite: str, packages: Sequence[str], sha256: Sequence[str] = ()) -> Path:
    """A directory with the content of Debian packages, unpacked and not installed. Needs no root.

    Args:
        suite: such as `bookworm`.
        packages: names, `:arm64` after those of another architecture. Their dependencies are not fetched.
        sha256: where given, the hashes that their files must have.
    """
    if not KEYRING.is_file():
        raise MissingTool(f"{KEYRING} is missing: apt-get install debian-archive-keyring")
    return cached("debian", [suite, *packages, *sha256], lambda to: _unpack_debian(suite, packages, sha256, to))


def _mirror() -> str:
    """Where this system's packages come from: a mirror of Debian has those of every release."""
    of_debian = ["Origin: Debian", "Label: Debian"]
    found = run([tool("apt-get", "apt"), "indextargets", "--format", "$(REPO_URI)", *of_debian]).split()
    if not found:
        raise MissingTool("no mirror of Debian is among the sources of apt: run the check on Debian, or in a container")
    return found[0]


def _unpack_debian(suite: str, packages: Sequence[str], sha256: Sequence[str], to: Path) -> None:
    mirror = _mirror()
    with tempfile.TemporaryDirectory() as scratch:
        for directory in ("state/lists/partial", "cache/archives/partial", "debs"):
            Path(scratch, directory).mkdir(parents=True)
        Path(scratch, "status").touch()
        Path(scratch, "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror} {suite} main\n")
        options = [
            f"Dir::State={scratch}/state", f"Dir::State::status={scratch}/status", f"Dir::Cache={scratch}/cache",
            f"Dir::Etc::sourcelist={scratch}/sources.list", "Dir::Etc::sourceparts=-", "Dir::Etc::preferencesparts=-",
            "APT::Sandbox::User=root", "APT::Architectures::=amd64", "APT::Architectures::=arm64",
        ]  # fmt: skip
        apt = ["apt-get", *(word for option in options for word in ("-o", option))]
        fetch([*apt, "update"])
        fetch([*apt, "download", *packages], cwd=f"{scratch}/debs")
        debs = sorted(Path(scratch, "debs").glob("*.deb"))
        wrong = {hashlib.sha256(deb.read_bytes()).hexdigest(): deb.name for deb in debs}
        if sha256 and set(wrong) != set(sha256):
            raise CheckError(f"{', '.join(wrong.values())}: not the files that were expected (SHA-256)")
        for deb in debs:
            run(["dpkg", "-x", deb, to])


def junit() -> tuple[Path, ...]:
    """The jars of JUnit 4."""
    root = debian("bookworm", ["junit4", "libhamcrest-java"])
    return tuple(root / "usr/share/java" / name for name in ("junit4.jar", "hamcrest.jar"))
