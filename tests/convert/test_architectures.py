"""Every architecture that we name: tiny random checkpoints by transformers' own classes, against transformers.

Each is converted once to 16, 8 and 4 bits, and to a float32 file on the same path. Set PMPD_ARCHITECTURES_MD to a file
name to have the table of docs/architectures.md written there.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is needed: pip install 'pmpd-edge[convert]'")

from capi import F32, Context, Model
from models import BPE_NAME, BPE_SIZE, calibration_text, random_checkpoint

from pmpd_edge import Pmpd
from pmpd_edge.bundle import Bundle
from pmpd_edge.convert import convert, hf
from pmpd_edge.errors import ConvertError, NativeError

pytestmark = pytest.mark.filterwarnings("default")  # those of transformers and torch are not ours

DOCS = Path(__file__).parents[2] / "docs" / "architectures.md"

COMPARED = 64  # tokens whose logits are compared; also the sliding window where llama.cpp takes none
TOKENS = 80
EXACT = {"flash_attn": False, "type_k": F32, "type_v": F32}  # nothing rounds but the weights


@dataclass(frozen=True)
class Architecture:
    """One architecture, in the shape of a model that users have.

    Attributes:
        title: what it is known as.
        config: the class of its transformers configuration, and what that is given.
        tokenizer: which one `random_checkpoint` writes.
        not_summed: the tensors for which llama.cpp refuses sums, a regular expression; empty where sums work.
        gelu: it has GELUs, which llama.cpp looks up in a table of 16-bit floats on CPUs.
        window: "kept" by llama.cpp or "ignored"; empty where there is no sliding window.
        type_16: the type of the 16-bit level. BF16 is what converting keeps of a BF16 checkpoint, and exact. But the
            products round their other factor to the same type, to 8 bits; where that alone misses the bound, it is F16.
    """

    title: str
    config: str
    options: dict[str, Any] = field(default_factory=dict)
    tokenizer: str = "sentencepiece"
    not_summed: str = ""
    gelu: bool = False
    window: str = ""
    type_16: str = "BF16"

    @property
    def limit(self) -> float:
        """Of the error of float32 weights. An entry of the GELU's table has 11 bits, which is 5e-4."""
        return 1e-3 if self.gelu else 1e-4

    def make_config(self, **changed: Any) -> Any:
        import transformers

        ids = {"vocab_size": 4096, "bos_token_id": 1, "eos_token_id": 5, "pad_token_id": 0}
        if self.tokenizer == "bpe":
            ids = {"vocab_size": BPE_SIZE, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
        common = {
            "hidden_size": 256,  # K-quants need 256 columns
            "intermediate_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
        }
        return getattr(transformers, self.config)(**{**ids, **common, **self.options, **changed})


ARCHITECTURES = {
    "llama": Architecture("Llama (Vicuna, MobileLLaMA)", "LlamaConfig", {"num_key_value_heads": 4}),
    "stablelm": Architecture("StableLM (Zephyr-3B)", "StableLmConfig", {"num_key_value_heads": 4}, "bpe"),
    "phi": Architecture(
        "Phi-1.5", "PhiConfig", {"num_key_value_heads": 4, "intermediate_size": 1024}, "bpe", gelu=True
    ),
    "phi-three": Architecture(  # llama.cpp changes the tokenizer of what has "phi3" or "phi-3" in its name
        "Phi-3",
        "Phi3Config",
        {"original_max_position_embeddings": 256, "sliding_window": COMPARED},
        window="ignored",
    ),
    "qwen2": Architecture("Qwen2", "Qwen2Config"),
    "qwen3": Architecture("Qwen3", "Qwen3Config", {"head_dim": 64}),
    "qwen3-moe": Architecture(
        "Qwen3-MoE (4 experts, 2 used)",
        "Qwen3MoeConfig",
        {
            "head_dim": 64,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 256,
            "norm_topk_prob": True,
        },
        "bpe",
    ),
    "gemma": Architecture("Gemma", "GemmaConfig", {"num_key_value_heads": 1, "head_dim": 64}, gelu=True),
    "gemma2": Architecture(
        "Gemma 2",
        "Gemma2Config",
        {
            "head_dim": 64,
            "query_pre_attn_scalar": 64,
            "sliding_window": 16,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
        gelu=True,
        window="kept",
        type_16="F16",
    ),
    "gemma3": Architecture(
        "Gemma 3 (text)",
        "Gemma3TextConfig",
        {  # every sixth layer sees beyond the window
            "num_hidden_layers": 6,
            "intermediate_size": 256,
            "head_dim": 64,
            "query_pre_attn_scalar": 64,
            "sliding_window": 16,
        },
        gelu=True,
        window="kept",
        type_16="F16",
    ),
    "mistral": Architecture("Mistral", "MistralConfig", {"head_dim": 64, "sliding_window": COMPARED}, window="ignored"),
    "mixtral": Architecture(
        "Mixtral (4 experts, 2 used)", "MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}
    ),
    "mamba": Architecture("Mamba", "MambaConfig", {}, "sentencepiece-only", r"ssm_a|ssm_conv1d\.weight", type_16="F16"),
    "lfm2": Architecture(
        "LFM2",
        "Lfm2Config",
        {
            "layer_types": ["conv", "full_attention", "conv"],
            "num_hidden_layers": 3,
            "block_auto_adjust_ff_dim": False,
        },
        "bpe",
        r"shortconv\.conv\.weight",
        type_16="F16",
    ),
}


class Case:
    """An architecture, its checkpoint, and what it was converted to."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.architecture = ARCHITECTURES[name]
        self.folder = folder
        self.source = random_checkpoint(
            folder / f"tiny-{name}", self.architecture.make_config(), tokenizer=self.architecture.tokenizer
        )
        # llama.cpp knows pre-tokenizers by what they make of a text, and so only with the vocabularies of known models.
        pre_tokenizer = BPE_NAME if self.architecture.tokenizer == "bpe" else None
        self.float32 = folder / "float32.gguf"
        hf.to_gguf(self.source, self.float32, "F32", pre_tokenizer=pre_tokenizer)
        self.bundle: Bundle = convert(
            self.source,
            folder / "bundle",
            precisions=(16, 8, 4),
            types={16: self.architecture.type_16},
            max_new_tokens=12,
            threads=1,
            pre_tokenizer=pre_tokenizer,
            calibration_text=calibration_text(folder / "text.txt"),
        )
        size = self.architecture.make_config().vocab_size
        self.tokens: list[int] = np.random.default_rng(1).integers(260, size, TOKENS).tolist()

    @cached_property
    def models(self) -> dict[int, Model]:
        return {level.precision: Model(self.bundle.paths(level)[0]) for level in self.bundle.levels}

    @cached_property
    def float32_model(self) -> Model:
        return Model(self.float32)

    @cached_property
    def expected(self) -> np.ndarray:
        """The float32 logits of transformers, `[TOKENS, n_vocab]`."""
        return reference(self.source, self.tokens)


def reference(source: Path, tokens: list[int], *, gelu_table: bool = False, feed_forward: bool = True) -> np.ndarray:
    """The float32 logits of transformers; `gelu_table`: with llama.cpp's GELU; `feed_forward`: or without it."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    if any("Attention" in type(module).__name__ for module in model.modules()):
        model.set_attn_implementation("eager")  # the one that knows soft-capping
    if gelu_table:
        replaced = [
            (parent, name)
            for parent in model.modules()
            for name, child in parent.named_children()
            if "GELU" in type(child).__name__
        ]
        assert replaced
        for parent, name in replaced:
            setattr(parent, name, TableGelu())
    if not feed_forward:
        for name, weights in model.named_parameters():
            if name.endswith(("mlp.down_proj.weight", "mlp.fc2.weight")):
                weights.data.zero_()
    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits[0].numpy()


def TableGelu() -> Any:
    """GELU as llama.cpp computes it on CPUs: argument and result rounded to 16 bits."""
    import torch

    class Gelu(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            rounded = x.half().float()
            table = torch.nn.functional.gelu(rounded, approximate="tanh").half().float()
            return torch.where(x <= -10, 0.0, torch.where(x >= 10, x, table))

    return Gelu()


def logits(model: Model, tokens: list[int]) -> np.ndarray:
    """One token after the other, as decoding does."""
    context = Context(model, **EXACT)
    return np.array([context.decode([token]) for token in tokens])


def error(got: np.ndarray, expected: np.ndarray) -> float:
    """The worst error, relative to the largest logit."""
    return float(np.abs(got - expected).max() / np.abs(expected).max())


RESULTS: defaultdict[str, dict[str, float]] = defaultdict(dict)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    yield
    if "PMPD_ARCHITECTURES_MD" in os.environ:
        Path(os.environ["PMPD_ARCHITECTURES_MD"]).write_text(make_table(), encoding="utf-8")  # of a whole, passing run


def test_logits_are_those_of_transformers(case: Case) -> None:
    tokens, expected = case.tokens[:COMPARED], case.expected[:COMPARED]
    got = logits(case.float32_model, tokens)
    found = {"float32": error(got, expected), "16": error(logits(case.models[16], tokens), expected)}
    RESULTS[case.name] |= found
    assert np.abs(expected).max() < 16 * expected.std()  # of one size: the largest one hides no error
    assert found["float32"] < case.architecture.limit
    assert found["16"] < 5e-3
    prompt = Context(case.float32_model, **EXACT).decode(tokens)  # all at once
    assert error(prompt, got[-1]) < case.architecture.limit


def test_logits_but_for_the_table_of_gelus(case: Case) -> None:
    """Where llama.cpp's GELUs miss the bound, that nothing else does."""
    if not case.architecture.gelu:
        pytest.skip("no GELUs")
    tokens = case.tokens[:COMPARED]
    path = Path(shutil.copyfile(case.float32, case.folder / "without.gguf"))
    edited = gguf.GGUFReader(path, "r+")
    for tensor in edited.tensors:
        if "ffn_down.weight" in tensor.name:
            tensor.data[:] = 0
    edited.data.flush()
    del tensor, edited
    expected = reference(case.source, tokens, feed_forward=False)
    RESULTS[case.name]["without"] = error(logits(Model(path), tokens), expected)
    path.unlink()
    assert RESULTS[case.name]["without"] < 1e-4

    # With the same table it is close too. A value between two entries of it goes to the one or to the other after
    # another rounding: that shows at some positions.
    got, expected = logits(case.float32_model, tokens), reference(case.source, tokens, gelu_table=True)
    assert np.median(np.abs(got - expected).max(-1)) / np.abs(expected).max() < 1e-4


def test_text_beyond_the_sliding_window(case: Case) -> None:
    if case.architecture.window == "ignored":
        assert case.bundle.context_length == COMPARED  # llama.cpp would attend to everything before it
        return
    assert case.bundle.context_length > COMPARED
    got = logits(case.float32_model, case.tokens)
    assert error(got[COMPARED:], case.expected[COMPARED:]) < case.architecture.limit


@pytest.mark.parametrize(
    ("name", "options", "value"),
    [("Qwen3MoeConfig", {"norm_topk_prob": False}, "false"), ("OlmoeConfig", {"norm_topk_prob": True}, "true")],
)
def test_expert_weights_that_llama_cpp_would_normalise_otherwise(
    tmp_path: Path, name: str, options: dict[str, Any], value: str
) -> None:
    import transformers

    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = getattr(transformers, name)(vocab_size=BPE_SIZE, num_key_value_heads=2, num_experts=4, **sizes, **options)
    source = random_checkpoint(tmp_path / "tiny", config, tokenizer="bpe")
    with pytest.raises(ConvertError, match=f"norm_topk_prob is {value}"):
        convert(source, tmp_path / "out", pre_tokenizer=BPE_NAME)
    assert not (tmp_path / "out").exists()


def test_every_level_generates(case: Case) -> None:
    llm = Pmpd(case.bundle.path, n_threads=1, n_ctx=256)
    tokens = list(itertools.islice(llm.generate(case.tokens[:24], temp=0.0), 12))
    precisions = list(dict.fromkeys(llm.stats.precisions))
    llm.close()
    assert len(tokens) == 12 and precisions == [16, 8, 4]


def test_a_saved_state_goes_on_like_transformers(case: Case) -> None:
    """The oracle of the following tests, against another."""
    context = Context(case.float32_model, **EXACT)
    half = COMPARED // 2
    context.decode(case.tokens[:half])
    restored = context.moved_to(case.float32_model)
    got = np.array([restored.decode([token]) for token in case.tokens[half:COMPARED]])
    assert error(got, case.expected[half:COMPARED]) < case.architecture.limit


def assert_switches_like_the_oracle(case: Case, before: list[Model], after: list[Model], flash_attn: bool) -> None:
    """Prefill and decode, then switch: against the saved state, restored into a context of the other weights."""
    context = Context(*before, flash_attn=flash_attn)
    token = int(context.decode(case.tokens[:24]).argmax())
    _, token = context.greedy(token, 4)
    if case.architecture.window == "kept":
        # A saved state leaves out the cells that have left the window. Another order of the cells is another rounding,
        # without any switch too, so both sides go on from a restored state.
        context = context.moved_to(*before)
    oracle = context.moved_to(*after)
    context.set_weights(*after)
    np.testing.assert_array_equal(context.greedy(token, 6)[0], oracle.greedy(token, 6)[0])


@pytest.mark.parametrize("flash_attn", [True, False], ids=["flash", "no-flash"])
def test_switching_is_like_the_oracle(case: Case, flash_attn: bool) -> None:
    for before, after in itertools.permutations(case.models.values(), 2):
        assert_switches_like_the_oracle(case, [before], [after], flash_attn)


def test_sums_are_like_the_oracle_or_refused(case: Case) -> None:
    high, middle, low = case.models.values()
    if not case.architecture.not_summed:
        for before, after in (([low], [low, middle]), ([low, middle], [low]), ([middle, low], [high, middle, low])):
            assert_switches_like_the_oracle(case, before, after, flash_attn=True)
        return
    context, undisturbed = Context(low), Context(low)
    for c in (context, undisturbed):
        c.decode(case.tokens[:24])
    with pytest.raises(NativeError, match=rf"\(blk\.\d\.({case.architecture.not_summed}) is not summed\)"):
        context.set_weights(low, middle)
    np.testing.assert_array_equal(context.greedy(400, 3)[0], undisturbed.greedy(400, 3)[0])


def test_a_sum_is_the_model_of_the_sum(case: Case) -> None:
    """An oracle that knows nothing of sums: one float32 file whose layer matrices are the sums."""
    if case.architecture.not_summed:
        pytest.skip("sums are refused")
    rng = np.random.default_rng(2)
    residual, whole = (case.folder / f"{name}.gguf" for name in ("residual", "sum"))
    for path in (residual, whole):
        shutil.copyfile(case.float32, path)
    written = [gguf.GGUFReader(path, "r+") for path in (residual, whole)]
    for part, total in zip(*(reader.tensors for reader in written), strict=True):
        is_matrix = len(part.shape) > 1 and part.name.startswith("blk.") and "ffn_gate_inp" not in part.name
        noise = rng.standard_normal(part.data.shape, np.float32)
        part.data[:] = 0.5 * part.data.std() * noise if is_matrix else noise  # of the others nothing is read
        total.data[:] += part.data if is_matrix else 0
    for reader in written:
        reader.data.flush()
    del part, total, reader, written

    tokens = case.tokens[:COMPARED]
    base = case.float32_model
    expected = logits(Model(whole), tokens)
    context = Context(base, Model(residual), **EXACT)
    got = np.array([context.decode([token]) for token in tokens])
    assert error(got, expected) < case.architecture.limit
    assert error(logits(base, tokens), expected) > 1e-1, "the residual makes no difference here"
    for path in (residual, whole):
        path.unlink()


def test_the_table_in_the_docs_has_every_architecture() -> None:
    rows = re.findall(r"^\| ([^|]+?) +\| `(\w+)`", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [(one.title, one.config.replace("Config", "")) for one in ARCHITECTURES.values()]


def make_table() -> str:
    lines = [
        "| model | transformers | tokenizer | float32 | 16 bits | switching | sums of levels |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in ARCHITECTURES.items():
        found = {kind: f"{value:.1e}" for kind, value in RESULTS[name].items()}
        without = f" ({found['without']})" if one.gelu else ""
        refused = " or ".join(f"`{part}`" for part in one.not_summed.replace("\\", "").split("|"))
        sums = f"refused: {refused}" if one.not_summed else "equal"
        tokenizer = "byte-level BPE" if one.tokenizer == "bpe" else "sentencepiece"
        cells = [one.title, f"`{one.config.removesuffix('Config')}`", tokenizer, found["float32"] + without]
        cells += [f"{found['16']} {one.type_16}", "equal", sums]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
