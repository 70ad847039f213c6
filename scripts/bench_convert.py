#!/usr/bin/env python3
"""What converting takes: the figures of docs/benchmarks/convert.md.

    python scripts/bench_convert.py --work DIR > docs/benchmarks/convert.md

A Llama of a billion random parameters is converted to {8, 4, 2} as it is by default, importance matrix included, in
both layouts, and by upstream's own tools doing the same work one after another: convert_hf_to_gguf.py, llama-imatrix,
and for each level what llama-quantize does (`llama_model_quantize`, types pure as ours). Peak memory is that of all
processes of a conversion together, sampled: what is anonymous, and what is resident of files, which the system takes
back when it needs to. Run it alone.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep

import psutil
from measure import say

from pmpd_edge import device, native
from pmpd_edge.convert import imatrix

PRECISIONS = "8,4,2"
TYPES = {"Q8_0": False, "Q4_K": True, "Q2_K": True}  # of the levels: whether an importance matrix is used
TOKENIZER = Path(__file__).parent.parent / "tests" / "data" / "translator-7m"

_MAKE = """
import sys, torch
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
config = LlamaConfig(
    vocab_size=4096, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
    num_key_value_heads=4, max_position_embeddings=2048, bos_token_id=1, eos_token_id=5,
)
torch.manual_seed(0)
torch.set_default_dtype(torch.bfloat16)
LlamaForCausalLM(config).save_pretrained(sys.argv[1], max_shard_size="500MB")
"""

_QUANTIZE = """
import ctypes, os, sys
from pathlib import Path
from pmpd_edge import native
from pmpd_edge.convert import imatrix
from pmpd_edge.convert.quantize import FTYPES
llama_cpp = native.load()
source, out, kind, matrix = sys.argv[1:]
params = llama_cpp.llama_model_quantize_default_params()
params.ftype, params.pure = getattr(llama_cpp, FTYPES[kind]), True
params.token_embedding_type = params.output_tensor_type = 8
if matrix:
    values = imatrix.read(Path(matrix))
    pointer = ctypes.POINTER(ctypes.c_float)
    entries = [(name.encode(), means.ctypes.data_as(pointer), means.size) for name, means in values.items()]
    params.imatrix = (llama_cpp.llama_model_imatrix_data * (len(entries) + 1))(*entries)
sys.exit(llama_cpp.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(params)))
"""


@dataclass
class Cost:
    """Seconds, and peak memory in bytes."""

    seconds: float = 0.0
    anonymous: int = 0
    resident: int = 0

    def then(self, other: Cost) -> Cost:
        """Of one after the other."""
        return Cost(
            self.seconds + other.seconds,
            max(self.anonymous, other.anonymous),
            max(self.resident, other.resident),
        )


def run(command: Sequence[str | Path], **environment: str) -> Cost:
    """Run a command, and sample the memory of it and all processes that it starts."""
    start, cost = perf_counter(), Cost()
    output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    # The installed package, not the sources that may lie here.
    environment = {**os.environ, "PYTHONSAFEPATH": "1", **environment}
    process = subprocess.Popen([str(part) for part in command], env=environment, **output)
    while process.poll() is None:
        sample(cost, process.pid)
        sleep(0.05)
    cost.seconds = perf_counter() - start
    if process.returncode:
        assert process.stderr
        sys.exit(f"{command[0]}: {process.stderr.read().decode()[-2000:]}")
    return cost


def sample(cost: Cost, pid: int) -> None:
    anonymous = resident = 0
    try:
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            memory = process.memory_info()
            anonymous += memory.rss - memory.shared
            resident += memory.rss
    except psutil.NoSuchProcess:
        return
    cost.anonymous, cost.resident = max(cost.anonymous, anonymous), max(cost.resident, resident)


def ours(model: Path, out: Path, *options: str) -> Cost:
    shutil.rmtree(out, ignore_errors=True)
    cost = run([sys.executable, "-m", "pmpd_edge", "convert", model, out, "--precisions", PRECISIONS, *options])
    shutil.rmtree(out)
    return cost


def theirs(model: Path, work: Path, calibrate: bool, threads: int) -> Cost:
    """The same files by upstream's tools."""
    upstream = native.upstream_dir()
    base, matrix = work / "theirs-16.gguf", work / "theirs-imatrix.gguf"
    script = [sys.executable, upstream / "convert_hf_to_gguf.py", "--outtype", "auto", "--outfile", base, model]
    cost = run(script, PYTHONPATH=str(upstream), NO_LOCAL_GGUF="1", HF_HUB_OFFLINE="1")
    if calibrate:
        program = native.program("llama-imatrix")
        options = ["--threads", str(threads), "--ctx-size", "512", "--batch-size", "512"]
        cost = cost.then(run([program, "-m", base, "-f", imatrix.DEFAULT_TEXT, "-o", matrix, *options]))
    for kind, wants in TYPES.items():
        out = work / f"theirs-{kind}.gguf"
        given = str(matrix) if wants and calibrate else ""
        cost = cost.then(run([sys.executable, "-c", _QUANTIZE, base, out, kind, given]))
        out.unlink()
    base.unlink()
    return cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="directory for the model and the results")
    parser.add_argument("--imatrix", action=argparse.BooleanOptionalAction, default=True, help="with one, or without")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    threads = os.cpu_count() or 1
    model, out = args.work / "random-1b", args.work / "out"
    if not model.is_dir():
        say("making the random model ...")
        run([sys.executable, "-c", _MAKE, model])
        for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
            shutil.copyfile(TOKENIZER / name, model / name)

    print(HEAD.format(machine=device.describe()))
    print("| what | seconds | of upstream's | anonymous, MB | with mapped files, MB |")
    print("|---|---|---|---|---|")
    options = [] if args.imatrix else ["--no-imatrix"]
    peer = theirs(model, args.work, args.imatrix, threads)
    show("upstream's tools", peer, peer)
    show("pmpd-edge", ours(model, out, *options), peer)
    show("pmpd-edge, nested", ours(model, out, *options, "--layout", "nested"), peer)


def show(label: str, cost: Cost, peer: Cost) -> None:
    ratio = "" if cost is peer else f"{cost.seconds / peer.seconds:.2f}"
    print(
        f"| {label} | {cost.seconds:.0f} | {ratio} | {cost.anonymous / 1e6:.0f} | {cost.resident / 1e6:.0f} |",
        flush=True,
    )


HEAD = """# What converting takes

Made by `python scripts/bench_convert.py --work DIR`.

Machine: {machine}.
Model: Llama, random BF16 weights, 2048 wide, 22 layers, 0.99 billion parameters, in shards of 500 MB; to {{8, 4, 2}}.
Ours also looks for NaN, compares token ids, checks that llama.cpp loads the result, and takes the hash of every file.
Memory is that of all processes together; what is resident of mapped files, the system takes back when it needs to.
"""


if __name__ == "__main__":
    main()
