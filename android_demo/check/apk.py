"""The sample app as an APK, with what Debian has: compiled, dexed, packaged, aligned, signed, verified.

It shows that sources, resources and manifest fit together, against the platform of Android 6, the newest that Debian
has. It is no app for a phone: in place of the native library lies an empty one, which bears a name of its own.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
import zipfile
from dataclasses import dataclass
from pathlib import Path

import compiling
import elf
import toolchain
from toolchain import CheckError

PACKAGES = ("dalvik-exchange", "libandroid-23-java")  # of bullseye: later Debians have neither
PACKAGES_SHA256 = (
    "8fc128db7c27253d963eb9b33de79b197162a4749d2ba69019b2fd0664cbd7fe",
    "8af1b6df556971dda0a6da3536ea526a838e0c363afcdd454213d8bce94793e3",
)
ANDROID = "{http://schemas.android.com/apk/res/android}"
NEWER = ("dataExtractionRules",)  # attributes that Android 6 does not know
ID = "pmpd.edgellm.demo"
PLACEHOLDER = "lib/arm64-v8a/libplaceholder.so"
MIN_SDK, TARGET_SDK = "28", "35"


@dataclass(frozen=True)
class Sdk:
    """The pieces of an SDK that Debian has."""

    platform: Path
    dx: Path


def sdk() -> Sdk:
    root = toolchain.debian("bullseye", PACKAGES, PACKAGES_SHA256)
    return Sdk(root / "usr/share/java/com.android.android-23.jar", root / "usr/share/java/com.android.dx.jar")


def make(to: Path) -> list[str]:
    """Make `app.apk` in a directory, verify it, and return a line for each thing that was found right."""
    pieces = sdk()
    main = compiling.APP / "main"
    manifest = _manifest(main / "AndroidManifest.xml", to)
    classes = _compile(pieces, manifest, main / "res", to)
    dex = _dex(pieces, classes, to)
    unsigned = _package(pieces, manifest, main / "res", dex, to)
    signed = _sign(_align(unsigned, to), to)
    return verify(signed, classes)


def verify(apk: Path, classes: list[Path]) -> list[str]:
    """Check what the package says of itself, its alignment, its signature, and that its classes are there."""
    badging = toolchain.run([toolchain.tool("aapt", "aapt"), "dump", "badging", apk])
    expected = (f"package: name='{ID}'", f"sdkVersion:'{MIN_SDK}'", f"targetSdkVersion:'{TARGET_SDK}'",
                f"launchable-activity: name='{ID}.MainActivity'", "native-code: 'arm64-v8a'")  # fmt: skip
    for line in expected:
        if line not in badging:
            raise CheckError(f"{apk.name}: no {line} in what aapt says of it")
    if "uses-permission" in badging:
        raise CheckError(f"{apk.name}: asks for a permission; it needs none")
    _check_alignment(apk)
    toolchain.run([toolchain.tool("apksigner", "apksigner"), "verify", "--min-sdk-version", MIN_SDK, apk])
    n_classes = _check_classes(apk, classes)
    return [
        "manifest: package, versions, activity, no permission",
        f"classes.dex with {n_classes} classes, those that the manifest names among them",
        f"uncompressed libraries aligned to {elf.PAGE} bytes",
        "signature verified",
    ]


def _manifest(source: Path, to: Path) -> Path:
    """The manifest as aapt wants it: with the package's name, which Gradle adds, and without what is newer."""
    ElementTree.register_namespace("android", ANDROID.strip("{}"))
    tree = ElementTree.parse(source)
    tree.getroot().set("package", ID)
    for name in NEWER:
        tree.getroot().find("application").attrib.pop(ANDROID + name)  # type: ignore[union-attr]
    (to / "manifest").mkdir()
    tree.write(to / "manifest" / "AndroidManifest.xml", encoding="utf-8", xml_declaration=True)
    return to / "manifest" / "AndroidManifest.xml"


def _compile(pieces: Sdk, manifest: Path, resources: Path, to: Path) -> list[Path]:
    """The jars of library, app and what they need."""
    kotlin = toolchain.kotlin()
    library = compiling.compile_kotlin(
        kotlin,
        "edgellm",
        compiling.kotlin_sources(compiling.EDGELLM / "main" / "kotlin"),
        [pieces.platform],
        compiling.ANDROID,
    )
    (to / "gen").mkdir()
    aapt = [toolchain.tool("aapt", "aapt"), "package", "-f", "-m", "-J", to / "gen"]
    toolchain.run([*aapt, "-M", manifest, "-S", resources, "-I", pieces.platform])
    ids = _compile_ids(pieces, to)
    app = compiling.compile_kotlin(
        kotlin,
        "app",
        compiling.kotlin_sources(compiling.APP / "main"),
        [library, ids, pieces.platform],
        compiling.ANDROID,
    )
    return [app, library, ids, *kotlin.runtime]


def _compile_ids(pieces: Sdk, to: Path) -> Path:
    (to / "ids").mkdir()
    sources = sorted((to / "gen").rglob("R.java"))
    javac = [toolchain.java("javac"), "-nowarn", "-source", "8", "-target", "8"]
    toolchain.run([*javac, "-bootclasspath", pieces.platform, "-d", to / "ids", *sources])
    jar = to / "ids.jar"
    with zipfile.ZipFile(jar, "w") as out:
        for path in sorted((to / "ids").rglob("*.class")):
            out.write(path, path.relative_to(to / "ids"))
    return jar


def _dex(pieces: Sdk, classes: list[Path], to: Path) -> Path:
    cleaned = []
    for jar in classes:  # dx reads class files up to Java 9's, and would stumble over a module's description
        clean = to / f"dex-{jar.name}"
        with zipfile.ZipFile(jar) as source, zipfile.ZipFile(clean, "w") as out:
            for name in sorted(set(source.namelist())):
                if name.endswith(".class") and not name.startswith("META-INF/") and name != "module-info.class":
                    out.writestr(name, source.read(name))
        cleaned.append(clean)
    command = [toolchain.java(), "-Xmx1g", "-cp", pieces.dx]
    command += ["com.android.dx.command.Main", "--dex", f"--min-sdk-version={MIN_SDK}"]
    toolchain.run([*command, f"--output={to / 'classes.dex'}", *cleaned])
    return to / "classes.dex"


def _package(pieces: Sdk, manifest: Path, resources: Path, dex: Path, to: Path) -> Path:
    apk = to / "unaligned.apk"
    versions = ["--min-sdk-version", MIN_SDK, "--target-sdk-version", TARGET_SDK]
    versions += ["--version-code", "1", "--version-name", "0.1.0"]
    aapt = [toolchain.tool("aapt", "aapt"), "package", "-f", *versions, "-F", apk]
    toolchain.run([*aapt, "-M", manifest, "-S", resources, "-I", pieces.platform])
    with zipfile.ZipFile(apk, "a") as package:
        package.write(dex, "classes.dex", zipfile.ZIP_DEFLATED)
        package.write(_placeholder(to), PLACEHOLDER, zipfile.ZIP_STORED)
    return apk


def _placeholder(to: Path) -> Path:
    """A library for arm64 that holds nothing and needs no C library."""
    compiler = toolchain.tool("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu")
    (to / "placeholder.c").write_text("int pmpd_placeholder;\n")
    options = ["-shared", "-nostdlib", f"-Wl,-z,max-page-size={elf.PAGE}"]
    toolchain.run([compiler, *options, to / "placeholder.c", "-o", to / "libplaceholder.so"])
    elf.check_alignment(to / "libplaceholder.so")
    return to / "libplaceholder.so"


def _align(apk: Path, to: Path) -> Path:
    toolchain.run([toolchain.tool("zipalign", "zipalign"), "-f", str(elf.PAGE), apk, to / "aligned.apk"])
    return to / "aligned.apk"


def _sign(apk: Path, to: Path) -> Path:
    """With a key that is made for this and thrown away."""
    key = ["-keystore", to / "key.p12", "-storepass", "android", "-alias", "check"]
    about = ["-keyalg", "EC", "-validity", "2", "-dname", "CN=check", "-storetype", "pkcs12"]
    toolchain.run([toolchain.tool("keytool", toolchain.JDK), "-genkeypair", *key, *about])
    signed = to / "app.apk"
    sign = [toolchain.tool("apksigner", "apksigner"), "sign", "--ks", to / "key.p12", "--ks-pass", "pass:android"]
    toolchain.run([*sign, "--min-sdk-version", MIN_SDK, "--out", signed, apk])
    (to / "key.p12").unlink()
    return signed


def _check_alignment(apk: Path) -> None:
    with zipfile.ZipFile(apk) as package, apk.open("rb") as file:
        for entry in package.infolist():
            if not entry.filename.endswith(".so"):
                continue
            file.seek(entry.header_offset + 26)  # lengths of name and extra field, then those, then the data
            lengths = file.read(4)
            start = entry.header_offset + 30 + sum(int.from_bytes(lengths[i : i + 2], "little") for i in (0, 2))
            if entry.compress_type != zipfile.ZIP_STORED or start % elf.PAGE:
                raise CheckError(f"{entry.filename}: compressed, or at {start}, which {elf.PAGE} does not divide")


def _check_classes(apk: Path, classes: list[Path]) -> int:
    """The number of classes; the names of those of the app and the library have to be among them."""
    with zipfile.ZipFile(apk) as package:
        dex = package.read("classes.dex")
    if not re.match(rb"dex\n03\d\0", dex):
        raise CheckError(f"{apk.name}: classes.dex is none")
    for jar in classes[:2]:
        with zipfile.ZipFile(jar) as archive:
            for name in archive.namelist():
                if name.endswith(".class") and f"L{name.removesuffix('.class')};".encode() not in dex:
                    raise CheckError(f"{apk.name}: no class {name} in classes.dex")
    return int.from_bytes(dex[96:100], "little")  # class_defs_size of the header
