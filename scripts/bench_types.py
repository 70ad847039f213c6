#!/usr/bin/env python3
"""What each weight type costs and gives: the figures of docs/benchmarks/types.md, and of `plan.DEFAULT_TYPES`.

    python scripts/bench_types.py --data DIR --work DIR > docs/benchmarks/types.md

DIR holds multi30k.train.jsonl.gz and multi30k.validation.jsonl.gz. Quality is measured on the translator in tests/data,
against its 16-bit file, over reference translations: without importance matrix, with that of the text that comes with
the converter (as bundles are made), and with that of sentences of the translator's own kind. Speed is measured on a
random model that is larger than caches are, by turns. Run it alone.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
from pathlib import Path

import numpy as np
from measure import MODEL, N_DECODE, N_PREFILL, Quality, Store, importance, once, say, speeds

from pmpd_edge import cpu, device
from pmpd_edge.bench.random_model import write_llama
from pmpd_edge.convert import hf, imatrix, plan
from pmpd_edge.convert.quantize import NEED_IMATRIX

SHAPE = {"hidden": 2048, "layers": 8, "heads": 32, "kv_heads": 4, "ff": 5632, "metadata": {"context_length": 2048}}
TYPES = {
    8: ("Q8_0",),
    6: ("Q6_K",),
    5: ("Q5_K", "Q5_1", "Q5_0"),
    4: ("Q4_K", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS"),
    3: ("Q3_K", "IQ3_S", "IQ3_XXS"),
    2: ("Q2_K", "IQ2_S", "Q2_0"),
}


def in_domain(data: Path, out: Path, count: int = 1000) -> Path:
    """Sentences as the translator meets them."""
    lines = []
    with gzip.open(data / "multi30k.train.jsonl.gz", "rt", encoding="utf-8") as rows:
        for i, (row, _) in enumerate(zip(rows, range(count), strict=False)):
            document = json.loads(row)
            language, key = ("German", "de") if i % 2 else ("French", "fr")
            lines.append(f"Translate from {language} to English: {document[key]} {document['en']}")
    out.write_text("\n".join(lines), encoding="utf-8")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory of the sentences")
    parser.add_argument("--work", type=Path, required=True, help="directory for the files, kept")
    parser.add_argument("--sentences", type=int, default=500)
    parser.add_argument("--threads", type=int, default=cpu.default_threads())
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    args.work.mkdir(parents=True, exist_ok=True)
    translator = once(args.work / "translator.gguf", lambda path: hf.to_gguf(MODEL, path))
    default = Store(translator, args.threads, importance(translator, imatrix.DEFAULT_TEXT, args.threads))
    text = in_domain(args.data, args.work / "sentences.txt")
    own = Store(translator, args.threads, importance(translator, text, args.threads))
    quality = Quality(default, args.data / "multi30k.validation.jsonl.gz", args.sentences, args.threads)

    large = once(args.work / "large8.gguf", lambda path: write_llama(path, dtype=np.float16, **SHAPE))
    timed = Store(large, args.threads, importance(large, imatrix.DEFAULT_TEXT, args.threads))
    names = [f"{name}*" if name in NEED_IMATRIX else name for types in TYPES.values() for name in types]
    for name in names:
        timed.files((name,))  # all before the first is timed
    speed = speeds(timed, [(name,) for name in names], args.repeats, args.threads)
    fastest = statistics.median(speed["Q8_0",].decode)

    print(
        HEAD.format(
            machine=device.describe(),
            threads=args.threads,
            positions=quality.positions,
            repeats=args.repeats,
            n_prefill=N_PREFILL,
            n_decode=N_DECODE,
        )
    )
    for precision, types in TYPES.items():
        for name in types:
            needs = name in NEED_IMATRIX
            plain = None if needs else quality.of((name,))
            starred = quality.of((f"{name}*",))
            calibrated = quality.of((f"{name}*",), own)
            found = speed[f"{name}*" if needs else name,]
            decode, prefill = statistics.median(found.decode), statistics.median(found.prefill)
            shown = f"**{name}**" if plan.DEFAULT_TYPES[precision] == name else name
            print(
                f"| {precision} | {shown} | {timed.bpw((f'{name}*' if needs else name,)):.2f} "
                f"| {f'{plain[1]:.4f}' if plain else 'noise'} | {f'{plain[2]:.4f}' if plain else ''} "
                f"| {starred[2]:.4f} | {calibrated[2]:.4f} | {starred[3]:.3f} "
                f"| {prefill:.0f} | {decode:.1f} | {decode / fastest:.2f} |",
                flush=True,
            )
    say("done")


HEAD = """# Weight types

Made by `python scripts/bench_types.py --data DIR --work DIR`.

Machine: {machine}. {threads} thread(s).

Quality: the translator (7.3 M parameters), against its 16-bit file, over {positions} tokens of reference translations.
error: of the layers' matrices, relative, without importance matrix; KL: divergence of the next token's distribution,
nats, without importance matrix, with that of the text that comes with the converter, and with that of sentences of the
translator's own kind; top-1: how often both take the same token, with the text that comes with the converter. bpw and
speed: random weights, 2048 wide, 8 layers; tokens/s of {n_prefill} tokens of prefill and {n_decode} steps after it,
medians of {repeats} runs by turns. Bold: the default.

| level | type | bpw | error | KL | KL, default text | KL, own text | top-1 | prefill, t/s | decode, t/s | of Q8_0's |
|---|---|---|---|---|---|---|---|---|---|---|"""


if __name__ == "__main__":
    main()
