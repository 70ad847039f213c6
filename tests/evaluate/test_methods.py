"""Methods by name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pmpd_edge import bundle
from pmpd_edge.bundle import StaticSchedule, Switch
from pmpd_edge.errors import PmpdError
from pmpd_edge.evaluate.methods import Dns, Method, make, split
from pmpd_edge.schedule.patterns import PATTERNS


@pytest.fixture(scope="module")
def default() -> bundle.Bundle:
    return bundle.load(bundle.default_bundle())


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("high,low", ["high", "low"]),
        ("high, pmpd:static:8@1,4@9,2@20,low", ["high", "pmpd:static:8@1,4@9,2@20", "low"]),
        ("pmpd:learned:8-2,0.9,dns", ["pmpd:learned:8-2,0.9", "dns"]),
        ("pmpd:confidence:0.85,0.55,uniform:4,dns:4.5", ["pmpd:confidence:0.85,0.55", "uniform:4", "dns:4.5"]),
        ("dns-sensitive,dns-sensitive:4.5,dns", ["dns-sensitive", "dns-sensitive:4.5", "dns"]),
        ("pmpd:highest:Mine,high", ["pmpd:highest:Mine", "high"]),
        ("pmpd,lowest", ["pmpd,lowest"]),
        ("", []),
    ],
)
def test_a_list_is_divided_at_its_methods(text, names):
    assert split(text) == names


def test_levels(default):
    found = make(["high", "low", "uniform"], default)
    assert [(method.name, method.prefill) for method in found] == [
        ("high", 8),
        ("low", 2),
        ("uniform:8", 8),
        ("uniform:4", 4),
        ("uniform:2", 2),
    ]
    assert all(method.scheduler().precisions == (method.prefill,) for method in found)
    high, _, same, *_ = found
    assert high.key == same.key, "what has the same answers is answered once"


@pytest.mark.parametrize(
    "spec", ["static", "static:8@1,4@9", "confidence", "random:3", *(f"{p}:0.5" for p in PATTERNS)]
)
def test_progressive_ones_prefill_as_the_bundle_does(default, spec):
    changed = replace(default, prefill=4)
    (method,) = make([f"pmpd:{spec}"], changed)
    assert isinstance(method, Method) and method.prefill == 4
    assert method.scheduler() is not method.scheduler() or spec.startswith("static")


def test_what_changes_answers_changes_the_key(default, tmp_path, monkeypatch):
    other = replace(default, schedule=StaticSchedule((Switch(1, 8), Switch(3, 2)), 64))
    keys = [make([name], model)[0].key for name in ("pmpd", "pmpd:confidence") for model in (default, other)]
    assert len(set(keys)) == 4
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "own_scheduler.py"
    code = "from pmpd_edge.schedule.fixed import FixedScheduler\nclass Mine(FixedScheduler):\n"
    module.write_text(code + "    def __init__(self, bundle):\n        super().__init__(4)\n")
    before = make(["pmpd:own_scheduler:Mine"], default)[0]
    module.write_text(module.read_text() + "    # another version\n")
    assert make(["pmpd:own_scheduler:Mine"], default)[0].key != before.key


def test_dns_takes_a_budget_or_that_of_pmpd(default):
    assert make(["pmpd", "dns", "dns:4.5"], default)[1:] == [Dns("dns", None), Dns("dns:4.5", 4.5)]
    assert make(["dns-sensitive:5"], default) == [Dns("dns-sensitive:5", 5, "sensitivity")]
    with pytest.raises(PmpdError, match=r"dns without a pmpd .* dns:4\.5"):
        make(["high", "dns"], default)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("best", "no method 'best'"),
        ("high:8", "no method 'high:8'"),
        ("uniform:x", "no method 'uniform:x'"),
        ("uniform:5", "no level of precision 5"),
        ("pmpd:nothing", "no scheduler 'nothing'"),
        ("pmpd:learned", "no predictor"),
        ("dns:x", "no method 'dns:x'"),
        ("dns:nan", "no method 'dns:nan'"),
        ("dns:-1", "no method 'dns:-1'"),
    ],
)
def test_wrong_names(default, name, message):
    with pytest.raises(PmpdError, match=message):
        make([name], default)


def test_no_methods(default):
    with pytest.raises(PmpdError, match="no methods"):
        make([], default)
