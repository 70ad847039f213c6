"""Results for programs: a JSON document, and flat rows with llama-bench's field names for JSON lines and CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

from pmpd_edge.bench.levels import Row
from pmpd_edge.bench.ops import OpCost
from pmpd_edge.bench.peer import Pair
from pmpd_edge.bench.place import N_BATCH, N_UBATCH
from pmpd_edge.bench.run import OpsResult, Result
from pmpd_edge.bench.schedules import Answers, Comparison
from pmpd_edge.bench.switches import Alternating, Switching
from pmpd_edge.errors import PmpdError

FORMAT, VERSION = "pmpd-bench", 1


def document(result: Result | OpsResult) -> dict[str, Any]:
    """Everything that was measured, derived figures included."""
    place = result.options.place
    head = {
        "format": FORMAT,
        "version": VERSION,
        "kind": "ops" if isinstance(result, OpsResult) else "levels",
        "machine": dataclasses.asdict(result.machine),
        "threads": place.n_threads,
        "n_gpu_layers": place.n_gpu_layers,
        "device": dataclasses.asdict(place.main_device),
        "backend": place.backend,
        "repetitions": result.options.repetitions,
        "cores_of_others": result.others,
        "bandwidth": {"device": result.bandwidth.device, "bytes_per_second": result.bandwidth.bytes_per_second},
    }
    if isinstance(result, OpsResult):
        return {**head, "ops": [_op(cost, result.bandwidth.bytes_per_second) for cost in result.costs]}
    return {
        **head,
        "bundle": {"name": result.bundle.name, "fingerprint": result.bundle.fingerprint},
        "batch": N_BATCH,
        "ubatch": N_UBATCH,
        "flash_attention": True,
        "levels": [_level(result, precision) for precision in result.levels],
        "tests": [_test(result, row) for row in result.rows],
        "switches": [_switching(one) for one in result.switchings],
        "alternating": [_alternating(one) for one in result.alternating],
        "schedule": _comparison(result.answers) if result.answers else None,
        "llama_bench": [_pair(pair) for pair in result.pairs],
    }


def flat_rows(result: Result | OpsResult) -> list[dict[str, Any]]:
    """One row for each test or operator; of a test, with the fields of llama-bench's own rows."""
    machine, options = result.machine, result.options
    common = {
        "build_commit": machine.versions["llama-cpp-python"],
        "cpu_info": machine.device,
        "backends": options.place.backend,
        "n_threads": options.place.n_threads,
        "n_gpu_layers": options.place.n_gpu_layers,
        "test_time": machine.time,
    }
    if isinstance(result, OpsResult):
        return [{**common, **_op(cost, result.bandwidth.bytes_per_second)} for cost in result.costs]
    return [{**common, **_flat_test(result, row)} for row in result.rows]


def to_jsonl(rows: list[dict[str, Any]]) -> str:
    """A JSON object a line."""
    return "\n".join(json.dumps(row) for row in rows)


def to_csv(rows: list[dict[str, Any]]) -> str:
    """A head, then a line a row; what is not a single value is left out."""
    names = [name for name, value in rows[0].items() if not isinstance(value, (dict, list))]
    out = io.StringIO()
    writer = csv.DictWriter(out, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().rstrip("\n")


def read(path: Path) -> dict[str, Any]:
    """A document that was written before; raises PmpdError where the file is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PmpdError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or found.get("format") != FORMAT or found.get("version") != VERSION:
        raise PmpdError(f"{path}: not a result of 'pmpd-edge bench'", "write one with --out")
    return found


def bytes_per_step(result: Result, row: Row) -> float:
    """Bytes of weights and KV cache that a decode step of a test reads."""
    return result.levels[row.precision].weight_bytes + row.cache_bytes


def bandwidth_share(result: Result, row: Row) -> float:
    """The share of the device's bandwidth at which a test's decode steps read."""
    return bytes_per_step(result, row) * row.rate.median / result.bandwidth.bytes_per_second


def _level(result: Result, precision: int) -> dict[str, Any]:
    facts = result.levels[precision]
    alone = dataclasses.asdict(facts.alone)
    return {**alone, "weight_bytes_per_step": facts.weight_bytes, "parameters_read": facts.parameters_read}


def _test(result: Result, row: Row) -> dict[str, Any]:
    workload = row.workload
    found = {
        "precision": row.precision,
        "test": workload.name,
        "n_prompt": workload.prompt,
        "n_gen": workload.steps,
        "n_depth": workload.depth,
        "tokens_per_second": row.rate.to_dict(),
        "joules_per_token": row.joules,
    }
    if workload.prompt:
        return {**found, "first_token_seconds": row.first_token.to_dict()}
    return {
        **found,
        "bytes_per_step": bytes_per_step(result, row),
        "share_of_bandwidth": bandwidth_share(result, row),
    }


def _flat_test(result: Result, row: Row) -> dict[str, Any]:
    alone, workload, rate = result.levels[row.precision].alone, row.workload, row.rate
    nanoseconds = rate.rate(1e9 * workload.tokens)
    level = result.bundle.level(row.precision)
    decodes = workload.steps > 0
    return {
        "model_filename": " + ".join(level.weights),
        "model_type": alone.description,
        "model_size": alone.size,
        "model_n_params": alone.parameters,
        "n_batch": N_BATCH,
        "n_ubatch": N_UBATCH,
        "flash_attn": 1,
        "precision": row.precision,
        "test": workload.name,
        "n_prompt": workload.prompt,
        "n_gen": workload.steps,
        "n_depth": workload.depth,
        "avg_ns": round(nanoseconds.mean),
        "stddev_ns": round(nanoseconds.deviation),
        "avg_ts": rate.mean,
        "stddev_ts": rate.deviation,
        "median_ts": rate.median,
        "first_token_s": None if decodes else row.first_token.median,
        "bytes_per_step": bytes_per_step(result, row) if decodes else None,
        "share_of_bandwidth": bandwidth_share(result, row) if decodes else None,
        "load_s": alone.load_seconds,
        "peak_memory": alone.memory.peak,
        "samples_ts": list(rate.values),
        "joules_per_token": row.joules,
    }


def _switching(one: Switching) -> dict[str, Any]:
    return {
        "before": one.before,
        "after": one.after,
        "call_seconds": one.call.to_dict(),
        "first_steps_seconds": [step.to_dict() for step in one.first],
        "step_seconds": one.normal.to_dict(),
        "first_over_normal": list(one.first_over_normal),
    }


def _alternating(one: Alternating) -> dict[str, Any]:
    return {
        "high": one.high,
        "low": one.low,
        "step_seconds": one.step.to_dict(),
        "mean_of_levels_seconds": one.mean.to_dict(),
        "over_mean": one.over_mean,
    }


def _comparison(found: Comparison) -> dict[str, Any]:
    return {
        "prompt_tokens": found.prompt,
        "steps": len(found.scheduled.precisions),
        "ideal_seconds": found.ideal_seconds,
        "over_ideal": found.over_ideal,
        "over_high": found.speedup(found.high),
        "over_low": found.speedup(found.low),
        **{name: _answers(getattr(found, name)) for name in ("scheduled", "high", "low")},
        "lossless": _answers(found.lossless) if found.lossless else None,
    }


def _answers(answers: Answers) -> dict[str, Any]:
    return {
        "scheduler": answers.scheduler,
        "prefill": answers.prefill,
        "seconds": answers.seconds.to_dict(),
        "first_token_seconds": answers.first_token.to_dict(),
        "decode_tokens_per_second": answers.decode_rate.to_dict(),
        "precisions": list(answers.precisions),
        "step_seconds": answers.steps(),
    }


def _pair(pair: Pair) -> dict[str, Any]:
    return {
        "precision": pair.precision,
        "test": pair.workload.name,
        "ours": pair.ours.to_dict(),
        "llama_bench": pair.theirs.to_dict(),
        "ratio": pair.ratios.to_dict(),
        "standard_error": pair.standard_error,
    }


def _op(cost: OpCost, bandwidth: float) -> dict[str, Any]:
    return {
        "model": cost.model,
        "part": cost.part,
        "type": cost.type,
        "bytes": cost.bytes,
        "buffer": cost.buffer,
        "median_s": cost.seconds.median,
        "reference_s": cost.reference.median,
        "speedup": cost.speedup,
        "bytes_per_second": cost.bytes_per_second,
        "share_of_bandwidth": cost.bytes_per_second / bandwidth,
        "samples_s": list(cost.seconds.values),
    }
