#!/usr/bin/env python3
"""What stepping down loses, where and when: the figures of docs/benchmarks/schedules.md.

    python scripts/bench_schedules.py --data DIR --work DIR > docs/benchmarks/schedules.md

DIR holds multi30k.validation.jsonl.gz, to choose by, multi30k.train.jsonl.gz, to train the learned scheduler on, and
multi30k.test_2016.jsonl.gz, to report on. The model is the translator in the package. Answers are kept in --work, and
found again.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import shutil
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from pmpd_edge import Pmpd, cpu, device
from pmpd_edge import bundle as bundles
from pmpd_edge.batch import Batch
from pmpd_edge.bundle import Bundle, StaticSchedule, Switch
from pmpd_edge.calibrate import train
from pmpd_edge.calibrate.allocation import Allocation, Result
from pmpd_edge.calibrate.report import Report
from pmpd_edge.calibrate.run import Calibration, Options, calibrate
from pmpd_edge.evaluate import metrics, tasks
from pmpd_edge.evaluate.answers import Answers, Kept, Store
from pmpd_edge.evaluate.prompts import prompts_of
from pmpd_edge.predictor import Predictor, of_bundle
from pmpd_edge.schedule import Scheduler
from pmpd_edge.schedule.confidence import ConfidenceScheduler
from pmpd_edge.schedule.learned import LearnedScheduler, RandomScheduler
from pmpd_edge.schedule.patterns import PATTERNS, PatternScheduler
from pmpd_edge.schedule.spec import format_switches

SHARES = (0, 1 / 3, 2 / 3, 1)  # of an answer's steps, that the random control draws from
TITLES = {"multi30k-de-en": "German to English", "multi30k-fr-en": "French to English"}
SURE = (0.9, 0.5)  # the first one's choice has controls
CONFIDENCES = (0.5, 0.8, 0.95)
TRAINING = 2000  # prompts
LEARNED_LENGTH = 48  # tokens that shares are of: longer than nearly all answers
CURVE = (0, 1, 2, 4, 6, 8, 10, 12, 14, 16, 20)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Judge:
    """Answers one data set under schedules, against everything at the highest level."""

    def __init__(self, bundle: Bundle, found: Calibration, dataset: tasks.Dataset, batch: Batch, store: Store) -> None:
        length = dataset.task.max_new_tokens or bundle.schedule.max_new_tokens
        with closing(Pmpd(bundle.path, method="high", n_threads=1)) as llm:
            self.prompts = prompts_of(llm, dataset.task, dataset.examples)
        inputs = {"bundle": bundle.fingerprint, "data": dataset.sha256}
        self._answers = Answers(store, batch, self.prompts, length, inputs)
        self._length = length
        self.allocation = Allocation(
            self._answers,
            [example.reference for example in dataset.examples],
            metrics.make(dataset.task.metric),
            found.levels,
            tolerance=found.options.tolerance,
            sure=found.options.sure,
            objective=found.options.objective,
            max_new_tokens=length,
            progress=lambda label, fraction: None,
        )
        self.high = self.static(bundle.precisions[0], (1, bundle.precisions[0]))
        self.lengths = [len(answer.decode_precisions) for answer in self.answers(self.high)]

    def static(self, prefill: int, *switches: tuple[int, int]) -> Result:
        schedule = StaticSchedule(tuple(Switch(*switch) for switch in switches), self._length)
        return self.allocation.measure(prefill, schedule)

    def again(self, result: Result) -> Result:
        """The result of another data set's schedule on this one."""
        switches = tuple((switch.step, switch.precision) for switch in result.schedule.switches)
        return self.static(result.prefill, *switches)

    def steps_for(self, bits: float, high: int, low: int) -> int:
        """The number of high steps with which a static schedule comes closest to an average bitwidth."""

        def average(n: int) -> float:
            return low + (high - low) * sum(min(n, length) for length in self.lengths) / sum(self.lengths)

        return min(range(max(self.lengths) + 1), key=lambda n: abs(average(n) - bits))

    def answers(self, result: Result) -> list[Kept]:
        return self.allocation.answers(result.prefill, result.schedule)

    def other(self, name: str, like: Result, make: Callable[[int], Scheduler]) -> Result:
        """The result of a schedule that is not static; prefill as `like`'s."""
        say(name)
        kept = self._answers.make(name, like.prefill, make)
        return self.allocation.judge(kept, like.prefill, like.schedule)


def print_result(label: str, result: Result) -> None:
    score, loss = result.score, result.loss
    print(
        f"| {label} | {result.average_bitwidth:.2f} | {result.average_bpw:.2f} "
        f"| {score.value:.2f} ({score.low:.2f} to {score.high:.2f}) "
        f"| {loss.value:.2f} ({loss.low:.2f} to {loss.high:.2f}) |",
        flush=True,
    )


def print_calibration(found: Calibration) -> None:
    high = found.found.reference.prefill
    print("| prefill | decode | bits | bpw | BLEU | loss, % |")
    print("|---|---|---|---|---|---|")
    for pair in found.found.pairs:
        print_result(f"{pair.prefill} | {pair.schedule.switches[0].precision}", pair)
    for curve in found.found.curves:
        print(f"\nThe search for the switch from {curve.high} to {curve.low} bits; chosen: {curve.steps} steps.\n")
        print("| steps | bits | bpw | BLEU | loss, % |")
        print("|---|---|---|---|---|")
        for steps, point in curve.points.items():
            print_result(f"**{steps}**" if steps == curve.steps else str(steps), point)
    chosen = found.found.chosen
    loss = f"{chosen.loss.value:.2f}%"
    print(
        f"\nChosen: prefill {chosen.prefill}, {format_switches(chosen.schedule)}, at a loss of {loss} "
        f"against all at {high} bits; {chosen.loss.within:.0%} of the resamples are within the tolerance.\n"
    )


def print_latency(found: Calibration, judge: Judge) -> None:
    """What prefill at each precision costs, as a share of the whole answer."""
    n_prompt = sum(map(len, judge.prompts)) / len(judge.prompts)
    n_steps = sum(judge.lengths) / len(judge.lengths)
    top = found.bundle.precisions[0]
    print("| prefill | prefill, ms | decode at | decode, ms | more than the quickest prefill, % of the answer |")
    print("|---|---|---|---|---|")
    cost = {p: n_prompt / speed.prefill_tokens_per_second for p, speed in found.speeds.items()}
    for decode, speed in found.speeds.items():
        seconds = n_steps / speed.decode_tokens_per_second
        more = 100 * (cost[top] - min(cost.values())) / (seconds + cost[top])
        print(f"| {top} | {1e3 * cost[top]:.2f} | {decode} | {1e3 * seconds:.2f} | {more:.2f} |")
    print()


def print_test(judge: Judge, found: Mapping[float, Calibration], bundle: Bundle) -> None:
    low = bundle.precisions[-1]
    print("| schedule | bits | bpw | BLEU | loss, % |")
    print("|---|---|---|---|---|")
    print_result(f"all at {bundle.precisions[0]}", judge.high)
    for precision in bundle.precisions[1:]:
        print_result(f"all at {precision}, prefill too", judge.static(precision, (1, precision)))
    chosen = {sure: judge.again(calibration.found.chosen) for sure, calibration in found.items()}
    for sure, static in chosen.items():
        print_result(f"**static {format_switches(static.schedule)}**, {sure:.0%} sure", static)
    static = chosen[SURE[0]]
    print_controls(judge, static)
    ladder = tuple(precision for precision in bundle.precisions)
    confidence = judge.other(
        "confidence", replace(static, prefill=bundle.precisions[0]), lambda _: ConfidenceScheduler(ladder)
    )
    print_result("confidence (its own bits)", confidence)
    print_result(f"prefill {bundle.precisions[0]}, decode {low}", judge.static(bundle.precisions[0], (1, low)))
    print()


def print_training(reports: Sequence[Report]) -> None:
    print(
        "| pair | right | commonest class | random prior | log loss | of the prior | high share (enough) | constant |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for found in reports:
        print(
            f"| {found.pair[0]}-{found.pair[1]} | {found.accuracy:.1%} | {found.majority_accuracy:.1%} "
            f"| {found.random_accuracy:.1%} | {found.log_loss:.3f} | {found.prior_log_loss:.3f} "
            f"| {found.cost:.3f} ({found.enough:.1%}) | {found.constant_cost:.3f} ({found.constant_enough:.1%}) |"
        )
    for found in reports:
        print(f"\n{found.verdict}.")
    print()


def print_learned(judge: Judge, bundle: Bundle) -> None:
    """The learned scheduler beside its control, and beside static schedules that spend the same bits."""
    predictor = of_bundle(bundle)
    pair = predictor.pairs[0]
    like = replace(judge.high, prefill=bundle.precisions[0])
    key = predictor.path.read_bytes()
    print("| schedule | bits | bpw | BLEU | loss, % |")
    print("|---|---|---|---|---|")
    for confidence in CONFIDENCES:

        def learned(i: int, confidence: float = confidence) -> Scheduler:
            return LearnedScheduler(predictor, pair, confidence)

        name = f"learned {confidence} {hashlib.sha256(key).hexdigest()}"
        result = judge.other(name, like, learned)
        print_result(f"learned, confidence {confidence:g}", result)
        n = judge.steps_for(result.average_bitwidth, *pair)
        switches = [(1, pair[0]), (1 + n, pair[1])] if n else [(1, pair[1])]
        print_result(f"static, {n} steps", judge.static(like.prefill, *switches))
    prior = predictor.priors[pair]
    name = f"random prior {prior} {predictor.steps}"
    drawn = judge.other(name, like, lambda _: RandomScheduler(pair, predictor.steps, prior))
    print_result("random, by the labels' frequencies", drawn)
    print()


def print_controls(judge: Judge, static: Result) -> None:
    """The same bits spent elsewhere: each answer gets as many high steps as the static schedule gave it."""
    high, low = (static.schedule.switches[at].precision for at in (0, -1))
    if high == low:
        return
    kept = judge.answers(static)
    spent = [sum(p - low for p in answer.decode_precisions) / (high - low) for answer in kept]
    lengths = [len(answer.decode_precisions) for answer in kept]
    for pattern in PATTERNS:

        def make(i: int, pattern: str = pattern) -> Scheduler:
            return PatternScheduler(pattern, high, low, round(spent[i]), lengths[i])

        name = f"{pattern} {format_switches(static.schedule)}"
        print_result(f"{pattern} part" if pattern != "alternate" else pattern, judge.other(name, static, make))
    prior = tilted(sum(spent) / sum(lengths))

    def draw(i: int) -> Scheduler:
        return RandomScheduler((high, low), [round(share * lengths[i]) for share in SHARES], prior)

    print_result("random", judge.other(f"random {prior}", static, draw))


def tilted(mean: float) -> list[float]:
    """The frequencies of `SHARES` with this mean that are least far from equal ones."""

    def frequencies(tilt: float) -> list[float]:
        weights = [math.exp(tilt * (share - 0.5)) for share in SHARES]
        return [weight / sum(weights) for weight in weights]

    def expected(tilt: float) -> float:
        return sum(share * p for share, p in zip(SHARES, frequencies(tilt), strict=True))

    low, high = -60.0, 60.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if expected(middle) < mean else (low, middle)
    return frequencies(low)


def print_predictor_cost(bundle: Bundle, threads: int) -> None:
    """What asking the predictor takes beside the prefill that it follows."""
    predictor = of_bundle(bundle)
    print("| prompt, tokens | prefill, ms | reading K and V, ms | predicting, ms | of prefill |")
    print("|---|---|---|---|---|")
    with closing(Pmpd(bundle.path, method="high", n_threads=threads, n_gpu_layers=0)) as llm:
        for n_tokens in (32, 64, 128, 256):
            tokens = list(range(300, 300 + n_tokens))
            rounds = [_predictor_round(llm, predictor, tokens) for _ in range(15)]
            prefill, reading, predicting = map(statistics.median, zip(*rounds, strict=True))
            print(
                f"| {n_tokens} | {1e3 * prefill:.2f} | {1e3 * reading:.3f} | {1e3 * predicting:.3f} "
                f"| {(reading + predicting) / prefill:.2%} |"
            )
    print()


def _predictor_round(llm: Pmpd, predictor: Predictor, tokens: list[int]) -> tuple[float, float, float]:
    llm.reset()
    start = perf_counter()
    llm.eval(tokens)
    float(llm.logits()[0])  # waits for a GPU
    evaluated = perf_counter()
    keys, values = llm.keys_values(predictor.layer)
    read = perf_counter()
    predictor.probabilities(predictor.pairs[0], keys, values)
    return evaluated - start, read - evaluated, perf_counter() - read


def run(args: argparse.Namespace, name: str, title: str) -> None:
    folder = args.work / name
    if not folder.is_dir():
        shutil.copytree(bundles.default_bundle(), folder)
    bundle = bundles.load(folder)
    task = tasks.make_task(name)
    validation = tasks.read(task, args.data / "multi30k.validation.jsonl.gz", args.limit)
    test = tasks.read(task, args.data / "multi30k.test_2016.jsonl.gz", args.limit)
    options = Options(objective="bpw", n_threads=args.threads, parallel=args.parallel, n_gpu_layers=0)
    say(f"{name}: calibrating")
    found = {sure: calibrate(bundle, validation, replace(options, sure=sure)) for sure in SURE}
    say(f"{name}: training")
    prompts, bundle, reports = train_learned(args, name, found[SURE[0]].bundle)
    print(f"## {title}\n")
    print(f"Chosen on the {len(validation.examples)} sentences of the validation set, at a tolerance of 1%:\n")
    print_calibration(found[SURE[0]])
    for sure in SURE[1:]:
        chosen = found[sure].found.chosen
        print(f"With `--sure {sure}`: prefill {chosen.prefill}, {format_switches(chosen.schedule)}.\n")
    store = Store(folder / "test.jsonl")
    with Batch(bundle, n_ctx=512, parallel=args.parallel, n_threads=args.threads, n_gpu_layers=0) as batch:
        say(f"{name}: the whole curve")
        judge = Judge(bundle, found[SURE[0]], validation, batch, store)
        print_curve(judge, bundle)
        print("What prefill at the highest level costs, by the levels' speeds on this machine:\n")
        print_latency(found[SURE[0]], judge)
        say(f"{name}: the test set")
        judge = Judge(bundle, found[SURE[0]], test, batch, store)
        print(f"On the {len(test.examples)} sentences of test_2016, which were not used for choosing:\n")
        print_test(judge, found, bundle)
        print(LEARNED.format(n_prompts=len(prompts)))
        print_training(reports)
        print("What asking it takes, once an answer:\n")
        print_predictor_cost(bundle, args.threads)
        print("And on test_2016, beside static schedules of about the same bits:\n")
        print_learned(judge, bundle)


def train_learned(args: argparse.Namespace, name: str, bundle: Bundle) -> tuple[list[list[int]], Bundle, list[Report]]:
    """Train the learned scheduler on the training set's prompts."""
    rows = tasks.read(tasks.make_task(name), args.data / "multi30k.train.jsonl.gz", args.limit or TRAINING)
    with closing(Pmpd(bundle.path, method="high", n_threads=1)) as llm:
        prompts = prompts_of(llm, rows.task, rows.examples)
    options = train.Options(
        pairs=((bundle.precisions[0], bundle.precisions[-1]),),
        max_new_tokens=LEARNED_LENGTH,
        parallel=args.parallel,
        n_threads=args.threads,
        n_gpu_layers=0,
    )
    return prompts, *train.train_scheduler(bundle, prompts, options)


def print_curve(judge: Judge, bundle: Bundle) -> None:
    high, low = bundle.precisions[0], bundle.precisions[-1]
    print(f"From all decode steps at {low} bits to all at {high}, prefill at {high}, on the validation set:\n")
    print(f"| steps at {high} before {low} | bits | bpw | BLEU | loss, % |")
    print("|---|---|---|---|---|")
    for steps in CURVE:
        switches: Sequence[tuple[int, int]] = [(1, high), (1 + steps, low)] if steps else [(1, low)]
        print_result(str(steps), judge.static(high, *switches))
    print_result("all", judge.high)
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory of the sentences")
    parser.add_argument("--work", type=Path, required=True, help="directory for bundles and answers, kept")
    parser.add_argument("--limit", type=int, help="sentences of each set; by default all")
    parser.add_argument("--tasks", nargs="+", choices=TITLES, default=list(TITLES))
    parser.add_argument("--parallel", type=int, default=8)
    parser.add_argument("--threads", type=int, default=cpu.default_threads())
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    print(HEAD.format(machine=device.describe(), threads=args.threads))
    for name in args.tasks:
        run(args, name, TITLES[name])


LEARNED = """### Learned

Trained on {n_prompts} prompts of the training set. "Right" is how often the likeliest class is the label, on prompts
that the network has not seen, beside the commonest class and a draw from the labels' frequencies; the high share (of 48
steps) is what it chooses at a confidence of 0.8 and how often that is enough, beside the one constant share for all.
"""

HEAD = """# What stepping down loses

Made by `python scripts/bench_schedules.py --data DIR --work DIR`.

Machine: {machine}; {threads} threads.
Model: the translator in the package (7.3 M parameters; Q8_0, Q4_K, Q2_K), greedy. Data: Multi30k. BLEU is sacrebleu's,
with 95% bootstrap intervals; the loss is paired, against everything at 8 bits. Bits: average nominal precision of the
decode steps; bpw: real bits per weight. The objective is bpw, as a model of this size lies in the CPU's caches, where
fewer bits gain nothing. First, middle and last part, alternate and random spend the static schedule's bits elsewhere.
"""


if __name__ == "__main__":
    main()
