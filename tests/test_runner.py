"""`Pmpd`: it follows its schedule, stops when it is told to, and says what is wrong."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from capi import Context, Model
from talk import SENTENCES, answer, prompt

from pmpd_edge import Pmpd, bundle, gguf_info, native
from pmpd_edge.bench.random_model import quantize, write_llama
from pmpd_edge.errors import BundleError, Cancelled, ContextFullError, PmpdError
from pmpd_edge.schedule import Evaluation


def test_follows_the_bundles_schedule(llm):
    answer(llm, prompt(llm, SENTENCES[0]), 15)
    expected = [8] + [8] * 5 + [4] * 5 + [2] * 4  # prefill's token, then steps 1-5, 6-10, 11-14
    assert llm.stats.precisions == expected
    assert [(s.step, s.precision) for s in llm.stats.switches] == [(6, 4), (11, 2)]
    assert llm.stats.average_bitwidth == pytest.approx(np.mean(expected[1:]))
    bpw = {level.precision: llm.bundle.bpw(level) for level in llm.bundle.levels}
    assert llm.stats.average_bpw == pytest.approx(np.mean([bpw[p] for p in expected[1:]]))


def test_tokens_are_those_of_moving_states_between_models(llm):
    """The whole run against the slow way: one stock context per level, its state moved at every switch."""
    tokens = prompt(llm, SENTENCES[0])
    got = answer(llm, tokens, 16)
    models = {level.precision: Model(llm.bundle.paths(level)[0]) for level in llm.bundle.levels}
    context = Context(models[8], n_ctx=512)
    expected = [int(context.decode(tokens).argmax())]
    precision = 8
    for needed in llm.stats.precisions[1:]:
        if needed != precision:
            context, precision = context.moved_to(models[needed]), needed
        expected.append(int(context.decode([expected[-1]]).argmax()))
    assert got == expected


def test_a_user_written_scheduler(llm):
    class UpAndDown:
        precisions = (8, 2)

        def __init__(self) -> None:
            self.seen: list[tuple[int, int, float]] = []

        def start(self, prefill: Evaluation) -> None:
            self.seen.append((0, prefill.n_tokens, float(prefill.logits().max())))

        def next(self, step: int, last: Evaluation) -> int:
            self.seen.append((step, last.n_tokens, float(last.logits().max())))
            return 2 if step % 2 else 8

    scheduler = UpAndDown()
    llm.configure(scheduler=scheduler)
    tokens = prompt(llm, SENTENCES[0])
    answer(llm, tokens, 6)
    assert llm.stats.precisions == [8, 2, 8, 2, 8, 2]
    assert [step for step, _, _ in scheduler.seen] == [0, 1, 2, 3, 4, 5]
    assert [n for _, n, _ in scheduler.seen] == [len(tokens)] + [len(tokens) + i for i in range(5)]


@pytest.mark.parametrize("spec", ["static", "confidence", "random:3", "alternate:0.1"])
def test_the_same_seed_gives_the_same_tokens_and_switches(spec):
    """In two processes' worth of models, and again after another answer."""
    found = []
    for _ in range(2):
        other = Pmpd(scheduler=spec, n_threads=1)
        for text in (SENTENCES[0], SENTENCES[1], SENTENCES[0]):
            other.set_seed(7)
            tokens = list(itertools.islice(other.generate(prompt(other, text), temp=1.5, top_k=0), 16))
            found.append((tokens, list(other.stats.precisions)))
        other.close()
    assert found[0] == found[2] == found[3] == found[5]
    assert found[1] == found[4] != found[0]


def test_leaving_an_answer_and_asking_again(llm):
    tokens = prompt(llm, SENTENCES[0])
    expected = answer(llm, tokens, 12)
    for n in (1, 3, 7, 11):
        running = llm.generate(tokens, temp=0.0)
        for _ in range(n):
            next(running)
        running.close()
        assert answer(llm, tokens, 12) == expected
        assert llm.stats.precisions[0] == 8


def test_evaluating_by_hand_is_at_the_precision_that_was_set(llm):
    tokens = prompt(llm, SENTENCES[0])
    logits = {}
    for precision in llm.bundle.precisions:
        llm.reset()
        llm.set_precision(precision)
        llm.eval(tokens)
        logits[precision] = llm.logits().copy()
        model = Model(llm.bundle.paths(llm.bundle.level(precision))[0])
        np.testing.assert_array_equal(logits[precision], Context(model, n_ctx=512).decode(tokens))
    assert llm.kv_precision[: len(tokens)].tolist() == [2] * len(tokens)


def test_logprobs_and_pickling(llm):
    other = pickle.loads(pickle.dumps(Pmpd(method="low", n_threads=1, logits_all=True)))
    assert other.method == "low"
    out = other.create_completion(prompt(llm, SENTENCES[1]), max_tokens=4, temperature=0, logprobs=2)
    assert len(out["choices"][0]["logprobs"]["tokens"]) == 4


def test_pickling_after_a_change(llm):
    llm.configure(method="low")
    llm.keep_low_kv = True
    other = pickle.loads(pickle.dumps(llm))
    assert (other.method, other.keep_low_kv, other.precision) == ("low", True, 2)


def test_a_cancelled_answer_does_not_cancel_the_next(llm):
    tokens = prompt(llm, SENTENCES[0])
    expected = answer(llm, tokens, 5)
    llm.cancel()
    llm.eval([300])
    assert answer(llm, tokens, 5) == expected


def test_a_closed_model_says_so(llm):
    llm.close()
    with pytest.raises(PmpdError, match="closed"):
        answer(llm, [5, 6, 7])


def test_logits_of_nothing(llm):
    with pytest.raises(PmpdError, match="no logits"):
        llm.logits()


def test_a_token_that_does_not_exist(llm):
    with pytest.raises(PmpdError, match=r"invalid token\[0\] = 99999"):
        answer(llm, [99999])


def tokenizer_of(path: Path) -> str:
    return gguf_info.read(path).tokenizer_sha256


@pytest.fixture(scope="module")
def nested_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three levels of one footprint: any models of one shape can be summed."""
    folder = tmp_path_factory.mktemp("nested")
    files, levels, names = {}, [], []
    for precision, kind in ((2, "Q2_K"), (4, "Q3_K"), (8, "Q4_K")):
        source = write_llama(folder / "f32.gguf", layers=28, seed=precision)
        path = quantize(source, folder / f"r{precision}.gguf", kind)
        source.unlink()
        files[path.name] = bundle.WeightsFile(kind, path.stat().st_size, bundle.sha256_file(path), 3.0)
        names.append(path.name)
        levels.append(bundle.Level(precision, tuple(names)))
    schedule = bundle.StaticSchedule((bundle.Switch(1, 8), bundle.Switch(3, 4), bundle.Switch(5, 2)), 16)
    made = bundle.Bundle(
        folder, "nested", {}, "llama", 1, 512, tokenizer_of(path), "nested", files, tuple(reversed(levels)), 8, schedule
    )
    bundle.write(made)
    return folder


def test_a_nested_bundle_runs_like_moved_states(nested_bundle):
    llm = Pmpd(nested_bundle, n_threads=1)
    tokens = list(range(300, 320))
    got = answer(llm, tokens, 8)
    assert llm.stats.precisions == [8, 8, 8, 4, 4, 2, 2, 2]
    assert llm.stats.average_bpw == pytest.approx((9 * 2 + 6 * 2 + 3 * 3) / 7)
    parts = [Model(nested_bundle / f"r{precision}.gguf") for precision in (2, 4, 8)]
    sums = {2: parts[:1], 4: parts[:2], 8: parts}
    context = Context(*sums[8], n_ctx=512)
    expected = [int(context.decode(tokens).argmax())]
    precision = 8
    for needed in llm.stats.precisions[1:]:
        if needed != precision:
            context, precision = context.moved_to(*sums[needed]), needed
        expected.append(int(context.decode([expected[-1]]).argmax()))
    assert got == expected


def test_a_prompt_longer_than_the_context(llm):
    with pytest.raises(ContextFullError, match="513 tokens in a context of 512"):
        answer(llm, [1] * 513)
    assert answer(llm, prompt(llm, SENTENCES[0]), 3), "the conversation goes on"


def test_an_answer_longer_than_the_context():
    llm = Pmpd(n_threads=1, n_ctx=200)
    assert llm.n_ctx() == 256
    with pytest.raises(ContextFullError, match="context of 256 tokens is full"):
        answer(llm, prompt(llm, SENTENCES[0]), 300)


def test_an_empty_prompt(llm):
    with pytest.raises(PmpdError, match="empty"):
        answer(llm, [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "medium"}, "no method 'medium'"),
        ({"scheduler": "fixed:3"}, "no level of precision 3"),
        ({"scheduler": "static:8@1,4@x"}, "'x' in a schedule is not a number"),
        ({"scheduler": "static:8@2"}, "steps"),
        ({"scheduler": "sometimes"}, "no scheduler 'sometimes'"),
        ({"high_steps": -1}, "-1 high steps"),
        ({"type_v": 8, "flash_attn": False}, "requires flash_attn"),
        ({"hig_steps": 3}, "no option 'hig_steps'"),
        ({"draft_model": object()}, "leave draft_model out"),
        ({"lora_path": "/nonexistent.gguf"}, "no adapter for this model"),
        ({"tensor_split": [1.0] * 1000}, "do not fit"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(PmpdError, match=message):
        Pmpd(n_threads=1, **options)


@pytest.fixture(scope="module")
def slow_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose prefill of 1200 tokens takes about a second."""
    folder = tmp_path_factory.mktemp("slow")
    options = {"hidden": 512, "layers": 8, "heads": 8, "kv_heads": 8, "ff": 2048, "metadata": {"context_length": 2048}}
    source = write_llama(folder / "f32.gguf", **options)
    files, levels = {}, []
    for precision, kind in ((8, "Q8_0"), (4, "Q4_K")):
        path = quantize(source, folder / f"q{precision}.gguf", kind)
        files[path.name] = bundle.WeightsFile(kind, path.stat().st_size, bundle.sha256_file(path), float(precision))
        levels.append(bundle.Level(precision, (path.name,)))
    source.unlink()
    schedule = bundle.StaticSchedule((bundle.Switch(1, 8), bundle.Switch(3, 4)), 16)
    tokenizer = tokenizer_of(path)
    made = bundle.Bundle(folder, "slow", {}, "llama", 1, 2048, tokenizer, "separate", files, tuple(levels), 8, schedule)
    bundle.write(made)
    return folder


@pytest.mark.parametrize("how", ["cancel", "interrupt"])
def test_a_running_prefill_stops(slow_bundle, how):
    llm = Pmpd(slow_bundle, n_threads=1, n_batch=2048, n_ubatch=2048)
    tokens = np.random.default_rng(0).integers(300, 4000, 1200).tolist()
    start = time.perf_counter()
    whole = answer(llm, tokens, 4)
    seconds = time.perf_counter() - start

    llm.reset()
    stop = llm.cancel if how == "cancel" else lambda: os.kill(os.getpid(), signal.SIGINT)
    timer = threading.Timer(seconds / 10, stop)
    timer.start()
    start = time.perf_counter()
    with pytest.raises(Cancelled if how == "cancel" else KeyboardInterrupt):
        answer(llm, tokens, 4)
    assert time.perf_counter() - start < seconds * 0.7
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert answer(llm, tokens, 4) == whole, "nothing of the stopped prefill is left"


LOADING = """
import logging, signal, sys
from pmpd_edge import Pmpd, bundle
from llama_cpp import _logger

class Interrupting:
    armed = False

    def setLevel(self, level):
        pass

    @property
    def level(self):  # the callback of the log asks for it at every message
        if Interrupting.armed:
            Interrupting.armed = False
            signal.raise_signal(signal.SIGINT)
        return logging.ERROR

def check_tokenizer(_, name):  # called before a file is loaded
    Interrupting.armed = name == sys.argv[1]

_logger.logger = Interrupting()
bundle.Bundle.check_tokenizer = check_tokenizer
try:
    Pmpd()
except KeyboardInterrupt:
    print("heard", signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""


@pytest.mark.parametrize("file", ["translator-7m-q8.gguf", "translator-7m-q4.gguf"])
def test_ctrl_c_while_a_file_is_loaded_is_not_lost_in_the_log(file, tmp_path):
    """Python runs the handler in the log's callback, and ctypes drops what a callback raises."""
    command = [sys.executable, "-c", LOADING, file]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=60)
    assert (done.stdout, done.stderr) == ("heard True\n", "")


def test_closing_frees_the_weights(slow_bundle):
    import psutil

    Pmpd(slow_bundle, n_threads=1).close()
    before = psutil.Process().memory_info().rss
    for _ in range(20):  # 41 MiB each
        llm = Pmpd(slow_bundle, n_threads=1)
        answer(llm, [5, 6, 7], 6)
        del llm
    assert psutil.Process().memory_info().rss - before < 300 << 20, "more than the allocator keeps for itself"


def test_a_level_that_does_not_match_is_refused(tmp_path):
    folder = shutil.copytree(bundle.default_bundle(), tmp_path / "bundle")
    other = quantize(write_llama(tmp_path / "f32.gguf", layers=8, ff=768), folder / "other.gguf", "Q4_K")
    manifest = json.loads((folder / "pmpd.json").read_text())
    manifest["files"]["other.gguf"] = {
        "type": "Q4_K", "bytes": other.stat().st_size, "sha256": bundle.sha256_file(other), "bpw": 4.5,
    }  # fmt: skip
    next(level for level in manifest["levels"] if level["precision"] == 4)["weights"] = ["other.gguf"]
    (folder / "pmpd.json").write_text(json.dumps(manifest))
    with pytest.raises(PmpdError, match="cannot be switched: the models differ in"):
        Pmpd(folder, n_threads=1)
    llm = Pmpd(folder, n_threads=1, method="high")
    expected = answer(llm, prompt(llm, SENTENCES[0]), 3)
    llm.configure(method="pmpd")
    with pytest.raises(PmpdError, match="cannot be switched"):
        next(llm.generate(prompt(llm, SENTENCES[0]), temp=0.0))  # before any token, not in mid-answer
    llm.configure(method="high")
    assert answer(llm, prompt(llm, SENTENCES[0]), 3) == expected


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_damaged_weights(tmp_path, damage):
    folder = shutil.copytree(bundle.default_bundle(), tmp_path / "bundle")
    loaded = bundle.load(folder)
    path = loaded.paths(loaded.levels[0])[0]
    data = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(BundleError, match=r"bytes, the manifest says"):
            Pmpd(folder)
    else:
        data[100] ^= 0x40  # within the metadata
        path.write_bytes(data)
        with pytest.raises(BundleError, match="damaged"):
            loaded.verify()


STOCK = """
import llama_cpp
try:
    from pmpd_edge import Pmpd
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_stock_library_is_named(tmp_path):
    """A copy of the library whose added function has another name stands for the stock one."""
    source = Path(native.load().llama_cpp._lib._name).parent
    shutil.copytree(source, tmp_path / "lib")
    library = tmp_path / "lib" / Path(native.load().llama_cpp._lib._name).name
    library.write_bytes(library.read_bytes().replace(b"llama_set_weights\0", b"llama_set_weightz\0"))
    environment = {**os.environ, "LLAMA_CPP_LIB_PATH": str(tmp_path / "lib")}
    alone = STOCK.replace("import llama_cpp\n", "")
    for script, message in ((STOCK, "imported before pmpd_edge"), (alone, "a stock llama.cpp library")):
        run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
        assert run.stdout.startswith("NativeError"), run.stderr
        assert message in run.stdout
