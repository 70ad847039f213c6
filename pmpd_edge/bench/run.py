"""Benchmarks a bundle on this machine: plans, refuses what is impossible, and measures one thing after the other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pmpd_edge.bench import bandwidth, child, levels, machine, memory, ops, peer, schedules, switches, traffic
from pmpd_edge.bench import shapes as shapes_of
from pmpd_edge.bench.bandwidth import Bandwidth
from pmpd_edge.bench.ggml import Backend, devices
from pmpd_edge.bench.levels import Row, Workload
from pmpd_edge.bench.machine import Machine
from pmpd_edge.bench.place import Place
from pmpd_edge.bundle import Bundle
from pmpd_edge.errors import PmpdError
from pmpd_edge.schedule.spec import make_scheduler

PROMPT_LENGTHS, DEPTHS, STEPS, REPETITIONS = (128, 512), (0, 1024), 128, 5
_BANDWIDTH_REPETITIONS = 5

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Options:
    """What is measured, and where.

    Attributes:
        prompt_lengths, depths, steps: of the tests; None takes those of the usual ones that fit the context.
        repetitions: of everything, after a warm-up.
        scheduler: whose answers are measured, as `make_scheduler` takes it.
        draft_tokens: of `lossless`, as `Pmpd` takes them.
        peer: llama-bench, to be measured beside.
        force: measure although the machine is busy or has too little memory.
    """

    place: Place
    prompt_lengths: tuple[int, ...] | None = None
    depths: tuple[int, ...] | None = None
    steps: int | None = None
    repetitions: int = REPETITIONS
    scheduler: str = "static"
    draft_tokens: int | str = "auto"
    peer: Path | None = None
    force: bool = False


@dataclass(frozen=True)
class Plan:
    """The tests, and the answers under a schedule: tokens of the prompt and decode steps."""

    workloads: tuple[Workload, ...]
    prompt: int
    steps: int

    @property
    def n_ctx(self) -> int:
        """The context that all of it needs."""
        return max(self.prompt + self.steps + 1, switches.TOKENS, *(workload.n_ctx for workload in self.workloads))


@dataclass(frozen=True)
class LevelFacts:
    """What a level is and takes.

    Attributes:
        weight_bytes: that a decode step reads.
        parameters_read: weights that a decode step multiplies with.
    """

    alone: child.Alone
    weight_bytes: int
    parameters_read: float


@dataclass(frozen=True)
class Result:
    """Everything that was measured of a bundle.

    Attributes:
        others: cores that other processes used while it was measured; None where that is not known.
        levels: by precision, from the highest.
        answers: None where the bundle has one level only.
        pairs: with llama-bench, where that was asked for.
    """

    bundle: Bundle
    machine: Machine
    options: Options
    others: float | None
    bandwidth: Bandwidth
    levels: dict[int, LevelFacts]
    rows: list[Row]
    switchings: list[switches.Switching]
    alternating: list[switches.Alternating]
    answers: schedules.Comparison | None
    pairs: list[peer.Pair]


@dataclass(frozen=True)
class OpsResult:
    """What was measured of operators."""

    machine: Machine
    options: Options
    others: float | None
    bandwidth: Bandwidth
    costs: list[ops.OpCost]


def make_plan(bundle: Bundle, options: Options) -> Plan:
    """The tests that were asked for, or those of the usual ones that fit.

    Raises:
        PmpdError: one that was asked for needs a longer context than the model was trained on.
    """
    limit = bundle.context_length
    steps = options.steps or min(STEPS, limit // 2)
    lengths = options.prompt_lengths or tuple(n for n in PROMPT_LENGTHS if n <= limit) or (limit // 2,)
    depths = options.depths or tuple(depth for depth in DEPTHS if not depth or depth + steps <= limit)
    workloads = (*(Workload(prompt=n) for n in lengths), *(Workload(steps=steps, depth=depth) for depth in depths))
    for workload in workloads:
        if workload.n_ctx > limit:
            raise PmpdError(
                f"{workload.name} needs a context of {workload.n_ctx} tokens, and {bundle.name} has {limit}",
                "ask for shorter prompts, smaller depths or fewer steps",
            )
    longest = max(bundle.schedule.max_new_tokens - 1, 1)  # decode steps of the longest answer
    prompt = max((n for n in lengths if n + longest < limit), default=min(*lengths, limit // 2))
    return Plan(workloads, prompt, min(longest, limit - prompt - 1))


def check_room(bundle: Bundle, place: Place, n_ctx: int) -> None:
    """Raise PmpdError where weights and KV cache are larger than the memory that is free for them."""
    device = place.main_device
    room = sum(d.free for d in devices() if d.is_gpu and place.device in (None, d.name)) if device.is_gpu else 0
    if not device.is_gpu or place.n_gpu_layers >= 0:
        free = memory.available()
        if free is None:
            return
        room += free
    weights, cache = sum(file.bytes for file in bundle.files.values()), traffic.cache_bytes_wanted(bundle, n_ctx)
    if weights + cache > room:
        raise PmpdError(
            f"{weights / 2**20:.0f} MiB of weights and {cache / 2**20:.0f} MiB for a context of {n_ctx} tokens "
            f"do not fit the {room / 2**20:.0f} MiB of memory that are free",
            "ask for shorter prompts and smaller depths, free memory, or measure anyway with --force",
        )


def bench(bundle: Bundle, options: Options, progress: Progress = lambda label, done: None) -> Result:
    """Measure the levels of a bundle, switching between them, and answers under a schedule.

    Raises:
        PmpdError: what was asked for is impossible, or the machine is busy.
    """
    from pmpd_edge.runner import Pmpd

    plan, place = make_plan(bundle, options), options.place
    make_scheduler(options.scheduler, bundle)  # says now what is wrong with it
    if not options.force:
        check_room(bundle, place, plan.n_ctx)
        machine.check_idle()
    others, found_machine = machine.Others(), machine.describe()
    read_rate = bandwidth.measure(place.main_device, place.n_threads, _BANDWIDTH_REPETITIONS)
    facts = _facts(bundle, place, plan, progress)
    with closing(Pmpd(bundle.path, scheduler=options.scheduler, n_ctx=plan.n_ctx, **place.options())) as llm:
        llm.levels.load(*bundle.precisions)
        rows = levels.measure(llm, bundle.precisions, plan.workloads, options.repetitions, progress)
        switchings, alternating = switches.measure(llm, bundle.precisions, options.repetitions, progress)
        answers = None
        if len(bundle.levels) > 1:
            answers = schedules.measure(
                llm, options.scheduler, plan.prompt, plan.steps, options.repetitions, progress, options.draft_tokens
            )
    pairs = []
    if options.peer:
        n_ctx = max(workload.n_ctx for workload in plan.workloads)
        pairs = peer.compare(options.peer, bundle, place, plan.workloads, n_ctx, options.repetitions, progress)
    return Result(
        bundle,
        found_machine,
        options,
        others.cores(),
        read_rate,
        facts,
        rows,
        switchings,
        alternating,
        answers,
        pairs,
    )


def _facts(bundle: Bundle, place: Place, plan: Plan, progress: Progress) -> dict[int, LevelFacts]:
    facts = {}
    for i, level in enumerate(bundle.levels):
        progress("loading levels alone", i / len(bundle.levels))
        alone = child.alone(bundle, level.precision, place, plan.prompt, plan.n_ctx)
        weights, parameters = traffic.weight_bytes(bundle, level), traffic.parameters_read(bundle, level)
        facts[level.precision] = LevelFacts(alone, weights, parameters)
    return facts


def bench_ops(bundle: Bundle | None, options: Options, progress: Progress = lambda label, done: None) -> OpsResult:
    """Measure the operators of a bundle's layer, or of the paper's models.

    Raises:
        PmpdError: the bundle has no such layer, the device lacks memory, or the machine is busy.
    """
    measured = [shapes_of.of_bundle(bundle)] if bundle else shapes_of.of_paper()
    if not options.force:
        machine.check_idle()
    others, found_machine, place = machine.Others(), machine.describe(), options.place
    device = place.main_device
    read_rate = bandwidth.measure(device, place.n_threads, _BANDWIDTH_REPETITIONS)
    with Backend(device, place.n_threads) as backend:
        costs = ops.measure(backend, measured, options.repetitions, progress=progress)
    return OpsResult(found_machine, options, others.cores(), read_rate, costs)
