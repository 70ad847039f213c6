#!/usr/bin/env python3
"""Whether stock llama.cpp runs every file of a separate bundle: the page docs/stock.md.

    python scripts/check_stock.py --stock VENV/bin/python --work DIR > docs/stock.md

VENV is an environment of its own with llama-cpp-python as it comes, with its own library and nothing of ours:
`python -m venv VENV && VENV/bin/pip install llama-cpp-python==0.3.36`. The translator in tests/data is converted to all
precisions, and to the types that need an importance matrix; each file is loaded by the stock library, and by ours at
that level. Both answer the same prompts, with the same options; the tokens must be equal.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from pmpd_edge import Pmpd, bundle, native
from pmpd_edge.convert import convert

MODEL = Path(__file__).parent.parent / "tests" / "data" / "translator-7m"
PROMPTS = (
    "<s><|user|>Translate from German to English: Ein Hund läuft über die Wiese.<|assistant|>",
    "<s><|user|>Translate from French to English: Une femme âgée tricote ; elle porte un chapeau bleu.<|assistant|>",
    "<s><|user|>Translate from German to English: Zwei Männer stehen am Herd und bereiten Essen zu.<|assistant|>",
)
STEPS = 24

_STOCK = """
import json, sys, llama_cpp
assert not hasattr(llama_cpp.llama_cpp._lib, "llama_set_weights"), "not stock"
path, prompts, steps = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
llm = llama_cpp.Llama(path, n_ctx=512, n_threads=1, flash_attn=True, use_mmap=False, verbose=False)
answers = []
for prompt in prompts:
    llm.reset()
    ids = llm.tokenize(prompt.encode(), add_bos=False, special=True)
    answers.append([token for token, _ in zip(llm.generate(ids, temp=0.0), range(steps))])
print(json.dumps({"version": llama_cpp.__version__, "answers": answers}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stock", required=True, help="the Python of an environment with stock llama-cpp-python")
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    bundles = [
        make(args.work / "k", (16, 8, 6, 5, 4, 3, 2), {}),
        make(args.work / "legacy", (5, 4, 2), {5: "Q5_1", 4: "Q4_0", 2: "Q2_0"}),
        make(args.work / "iq", (4, 3, 2), {4: "IQ4_NL", 3: "IQ3_S", 2: "IQ2_XS"}),
    ]
    rows, failed = [], 0
    for made in bundles:
        llm = Pmpd(made.path, n_ctx=512, n_threads=1)
        for level in made.levels:
            command = [args.stock, "-c", _STOCK, str(made.paths(level)[0]), json.dumps(PROMPTS), str(STEPS)]
            # Without what native.load() sets: it would have stock llama_cpp load our library.
            environment = {
                key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", native.LIB_PATH)
            }
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            stock = json.loads(done.stdout) if done.returncode == 0 else {"answers": done.stderr[-200:], "version": "?"}
            ours = answers(llm, level.precision)
            failed += stock["answers"] != ours
            verdict = "equal" if stock["answers"] == ours else f"differ: {stock['answers']} instead of {ours}"
            rows.append(f"| {made.files[level.weights[0]].type} | {level.precision} | {verdict} |")
    print(HEAD.format(version=stock["version"], prompts=len(PROMPTS), steps=STEPS))
    print("\n".join(rows))
    sys.exit(1 if failed else 0)


def make(path: Path, precisions: tuple[int, ...], types: dict[int, str]) -> bundle.Bundle:
    shutil.rmtree(path, ignore_errors=True)
    return convert(MODEL, path, precisions=precisions, types=types, threads=1)


def answers(llm: Pmpd, precision: int) -> list[list[int]]:
    """Greedy answers at one precision, prefill included."""
    found = []
    for prompt in PROMPTS:
        llm.reset()
        llm.set_precision(precision)
        llm.eval(llm.tokenize(prompt.encode(), add_bos=False, special=True))
        tokens = []
        for _ in itertools.repeat(None, STEPS):
            tokens.append(int(llm.logits().argmax()))
            llm.eval([tokens[-1]])
        found.append(tokens)
    return found


HEAD = """# Stock llama.cpp

Made by `python scripts/check_stock.py --stock VENV/bin/python --work DIR`.

Every file of a separate bundle is an ordinary GGUF. Here the translator, converted to many types; each file run by
llama-cpp-python {version} as it comes, in an environment without pmpd-edge, and by ours at that level: {prompts}
prompts, {steps} tokens each.

| type | level | tokens |
|---|---|---|"""


if __name__ == "__main__":
    main()
