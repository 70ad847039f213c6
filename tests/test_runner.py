"""`Pmpd`: phases, the record of KV precisions, and what may be reused, on the default model."""

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

from pmpd_edge import Pmpd, bundle, native
from pmpd_edge.bench.random_model import quantize, write_llama
from pmpd_edge.errors import BundleError, Cancelled, ContextFullError, PmpdError
from pmpd_edge.schedule import Evaluation

SENTENCES = [
    "Ein Mann in einem blauen Hemd steht auf einer Leiter und putzt ein Fenster.",
    "Zwei Hunde spielen im Schnee.",
    "Translate from French to English: Une femme joue de la guitare dans la rue.",
]


def messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.fixture
def llm():
    with_one_thread = Pmpd(n_threads=1)  # a busy machine makes two threads wait for each other
    yield with_one_thread
    with_one_thread.close()


def prompt(llm: Pmpd, text: str) -> list[int]:
    return llm.tokenize(f"<|user|>Translate from German to English: {text}<|assistant|>".encode(), special=True)


def answer(llm: Pmpd, tokens: list[int], n: int = 14) -> list[int]:
    return list(itertools.islice(llm.generate(tokens, temp=0.0), n))


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


FRESH = """
import json, sys
from pmpd_edge import Pmpd
method, text = sys.argv[1:]
llm = Pmpd(method=method, n_threads=1)
out = llm.create_chat_completion([{"role": "user", "content": text}], temperature=0, max_tokens=40)
print(json.dumps([out["choices"][0]["message"]["content"], llm.stats.precisions]))
"""


@pytest.mark.parametrize("text", SENTENCES)
def test_every_method_after_every_other_equals_a_fresh_process(llm, text):
    fresh = {}
    for method in ("pmpd", "high", "low"):
        run = subprocess.run([sys.executable, "-c", FRESH, method, text], capture_output=True, text=True, check=True)
        fresh[method] = json.loads(run.stdout)
    for order in itertools.permutations(fresh):
        for method in (*order, *order):
            llm.configure(method=method)
            out = llm.create_chat_completion(messages(text), temperature=0, max_tokens=40)
            assert [out["choices"][0]["message"]["content"], llm.stats.precisions] == fresh[method], order


def test_the_record_says_at_which_precision_each_position_was_computed(llm):
    tokens = prompt(llm, SENTENCES[0])
    answer(llm, tokens, 14)
    n = len(tokens)
    assert llm.kv_precision[: llm.n_tokens].tolist() == [8] * n + [8] * 5 + [4] * 5 + [2] * 3


def test_only_rows_that_prefill_would_compute_are_reused(llm):
    tokens = prompt(llm, SENTENCES[0])
    longer = tokens + answer(llm, tokens, 14)
    answer(llm, longer, 1)
    assert llm.stats.reused_tokens == len(tokens) + 5, "the prompt and the five high steps"
    assert set(llm.kv_precision[: llm.n_tokens]) == {8}

    llm.configure(method="low")
    answer(llm, longer, 1)
    assert llm.stats.reused_tokens == 0


def test_keeping_low_rows_is_an_option_that_shows(llm):
    llm.keep_low_kv = True
    tokens = prompt(llm, SENTENCES[0])
    longer = tokens + answer(llm, tokens, 14)
    answer(llm, longer, 1)
    assert llm.stats.reused_tokens == len(longer) - 1
    assert llm.stats.reused_low_tokens == 8
    assert llm.stats.to_dict()["reused_low_tokens"] == 8


def test_logits_are_never_reused(llm):
    tokens = prompt(llm, SENTENCES[0])
    answer(llm, tokens, 1)
    before = llm.n_tokens
    llm.set_precision(2)
    answer(llm, tokens, 1)
    assert (before, llm.stats.reused_tokens, llm.stats.prefill_precision) == (len(tokens), len(tokens) - 1, 8)
    assert llm.kv_precision[: len(tokens)].tolist() == [8] * len(tokens)


def test_saved_states_carry_the_record(llm):
    tokens = prompt(llm, SENTENCES[0])
    expected = answer(llm, tokens, 14)
    state = pickle.loads(pickle.dumps(llm.save_state()))
    answer(llm, prompt(llm, SENTENCES[1]), 10)
    llm.load_state(state)
    assert answer(llm, tokens + expected, 1)
    assert llm.stats.reused_tokens == len(tokens) + 5

    del state.kv_precision  # as a stock Llama saves it
    llm.load_state(state)
    answer(llm, tokens, 1)
    assert llm.stats.reused_tokens == 0


def test_llama_cpps_cache_does_not_mix_precisions(llm):
    from llama_cpp import LlamaRAMCache

    llm.set_cache(LlamaRAMCache())
    texts: dict[str, set[str]] = {}
    for method in ("high", "low", "high", "low"):
        llm.configure(method=method)
        out = llm.create_chat_completion(messages(SENTENCES[0]), temperature=0, max_tokens=30)
        texts.setdefault(method, set()).add(out["choices"][0]["message"]["content"])
        assert set(llm.kv_precision[: llm.n_tokens]) == {llm.stats.prefill_precision}
    assert all(len(found) == 1 for found in texts.values())


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
    bundle.write(bundle.Bundle(folder, "slow", {}, "llama", 1, 2048, "", "separate", files, tuple(levels), 8, schedule))
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


def test_closing_frees_the_weights(slow_bundle):
    import psutil

    Pmpd(slow_bundle, n_threads=1).close()
    before = psutil.Process().memory_info().rss
    for _ in range(8):
        llm = Pmpd(slow_bundle, n_threads=1)
        answer(llm, [5, 6, 7], 6)
        del llm
    assert psutil.Process().memory_info().rss - before < 40 << 20


def test_a_level_that_does_not_match_is_refused(tmp_path):
    folder = shutil.copytree(bundle.default_bundle(), tmp_path / "bundle")
    other = quantize(write_llama(tmp_path / "f32.gguf", layers=8, ff=768), folder / "other.gguf", "Q4_K")
    manifest = json.loads((folder / "pmpd.json").read_text())
    manifest["files"]["other.gguf"] = {
        "type": "Q4_K", "bytes": other.stat().st_size, "sha256": bundle.sha256_file(other), "bpw": 4.5,
    }  # fmt: skip
    next(level for level in manifest["levels"] if level["precision"] == 4)["weights"] = ["other.gguf"]
    (folder / "pmpd.json").write_text(json.dumps(manifest))
    llm = Pmpd(folder, n_threads=1)
    with pytest.raises(PmpdError, match="cannot be switched: the models differ in"):
        answer(llm, prompt(llm, SENTENCES[0]), 14)
    llm.configure(method="high")
    assert answer(llm, prompt(llm, SENTENCES[0]), 3)


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
