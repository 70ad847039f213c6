"""Checks of the Kotlin library and the sample app that need neither Google's SDK nor a phone.

    python android_demo/check jvm      the Kotlin tests on this machine's JVM
    python android_demo/check arm64    the same on an emulated arm64 JVM, CPU kernels, ELF files
    python android_demo/check apk      the app compiled, dexed, packaged, aligned, signed and verified

It wants the Python of an environment in which pmpd-edge is installed, with its extra `train`. What it fetches is kept
in $XDG_CACHE_HOME/pmpd-edge/android.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import apk
import arm64
import jvm
from toolchain import CheckError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name in ("jvm", "arm64", "apk"):
        verb = verbs.add_parser(name)
        if name != "apk":
            verb.add_argument("--only", nargs="*", default=[], metavar="CLASS", help="test classes to run")
    args = parser.parse_args()
    try:
        for line in _check(args):
            print(line, flush=True)
    except CheckError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _check(args: argparse.Namespace) -> Iterator[str]:
    if args.verb == "jvm":
        yield jvm.run_tests(jvm.here(), args.only)
    elif args.verb == "arm64":
        yield from arm64.check_files()
        yield from arm64.check_kernels()
        yield jvm.run_tests(arm64.machine(), args.only)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            yield from apk.make(Path(scratch))


if __name__ == "__main__":
    sys.exit(main())
