"""The benchmarks run; what they measure is not asserted."""

import argparse
import csv
import dataclasses
import json
import pathlib
import runpy
import sys

import pytest
import torch

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def run(monkeypatch):
    """Run a script in this process, which has loaded everything already."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    threads = torch.get_num_threads()

    def run(script, *arguments):
        path = str(BENCHMARKS / script)
        arguments = ["--quick", "--device", "cpu", "--threads", "1", *arguments]
        monkeypatch.setattr(sys, "argv", [path, *arguments])
        with torch.random.fork_rng(devices=[]):
            runpy.run_path(path, run_name="__main__")

    yield run
    torch.set_num_threads(threads)


@pytest.fixture
def table(run, tmp_path):
    """Run rows of a script and return the lines of the table."""

    def table(script, *rows):
        # loading other libraries takes longer than the rest
        alone = ["--peers"] if script == "attacks.py" else []
        path = tmp_path / "table.csv"
        run(script, "--csv", str(path), *alone, "--rows", *rows)
        with path.open() as file:
            return list(csv.DictReader(file))

    return table


def check(lines):
    for line in lines:
        assert float(line["ratio (spread)"].split()[0]) >= 0
        accuracies = [line["robust accuracy"], line["of yardstick"]]
        # a candidate that does less work would find fewer adversarial examples
        if all(accuracies):
            assert float(accuracies[0]) == pytest.approx(float(accuracies[1]), abs=0.1)


def test_attacks(table):
    lines = table("attacks.py", "pgd", "bf16", "score", "ceiling")
    check(lines)
    named = {(line["candidate"], line["yardstick"]) for line in lines}
    assert ("robustsk perturb", "plain loop") in named
    assert ("robustsk generate", "plain loop") in named


def test_training(table):
    lines = table("training.py", "pgd_at-small_cnn", "spat-small_cnn")
    check(lines)
    losses = [line["remarks"].split()[1::2] for line in lines if "loss" in line["remarks"]]
    assert len(losses) == 2
    for ours, plain in losses:
        assert float(ours) == pytest.approx(float(plain), rel=1e-2)


@pytest.mark.slow
def test_other_rows(run, table, capsys):
    check(table("attacks.py", "digits", "memory"))
    check(table("training.py", "trades-small_cnn", "cce-small_cnn"))
    run("attacks.py", "--ablation")
    assert "batch norms folded" in capsys.readouterr().out


def test_tables(monkeypatch, capsys, tmp_path):
    path, out = str(BENCHMARKS / "tables.py"), tmp_path / "table.csv"
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    options = ["--small", "--csv", str(out), "--models", "LR", "DecisionTree"]
    monkeypatch.setattr(sys, "argv", [path, *options])
    runpy.run_path(path, run_name="__main__")
    with out.open() as file:
        lines = {line["model"]: line for line in csv.DictReader(file)}
    assert list(lines) == ["LR", "DecisionTree"]
    for line in lines.values():
        assert 0 <= float(line["GreedySearch"]) <= float(line["clean"]) <= 1
        assert float(line["frozen"]) <= float(line["clean"])
        assert float(line["queries per row"]) > 1
    assert float(lines["LR"]["GreedySearch"]) < float(lines["LR"]["frozen"])
    assert "| LR |" in capsys.readouterr().out


def test_cost_of_several_objectives(monkeypatch, capsys):
    path = str(BENCHMARKS / "multi_objective.py")
    options = ["--setting", "cost", "--n", "2", "--n-steps", "1", "--repeat", "1"]
    monkeypatch.setattr(sys, "argv", [path, *options])
    with torch.random.fork_rng(devices=[]):
        runpy.run_path(path, run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["PGD", "1.000"]
    assert any(line.startswith("TA-MOO ") for line in lines)


def test_clocks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from _timing import Clocked, in_turns, ratio

    seen = []
    candidates = {name: lambda name=name: seen.append(name) or name for name in "ab"}
    clocks = in_turns(candidates, repeats=2)
    assert "".join(seen) == "ababab"
    assert [len(clock.seconds) for clock in clocks.values()] == [2, 2]
    assert clocks["b"].result == "b"
    # the machine was twice as slow in the second turn
    found = ratio(Clocked([1.0, 2.0, 3.0]), Clocked([2.0, 4.0, 3.0]))
    assert (found.median, found.low, found.high) == (0.5, 0.5, 1.0)


def test_plain_loops_stay_in_the_threat_model(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from _problems import BatchNormNet, plain_pgd

    torch.manual_seed(0)
    x, y = torch.rand(4, 1, 28, 28), torch.arange(4)
    z = plain_pgd(BatchNormNet(2).eval(), x, y, 0.1, 0.05, 3)
    assert z.min() >= 0
    assert z.max() <= 1
    assert 0.05 < (z - x).abs().max() <= 0.1 + 1e-6


def test_rows_of_the_tables_are_trained_as_their_sources_say(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import reproduce

    args = argparse.Namespace(model=None, precision=None, device="cpu", seed=0, verbose=0)
    found = {}
    for name, table in reproduce.TABLES.items():
        recipe = dataclasses.replace(reproduce.RECIPES[table.data, "short"])
        found[name] = table.rows(recipe, args)
        assert table.source.keys() <= found[name].keys()
    start = {
        row: found["hou-3.2"][row]._adversary().random_start
        for row in ("Madry", "TRADES", "MART", "MAIL-AT", "SPAT", "AR")
    }
    assert start.pop("Madry") == "uniform"
    assert start.pop("AR") == "none"
    assert set(start.values()) == {"gaussian"}
    for table, row in [("fat-1", "FAT"), ("fat-1", "FAT-TRADES b=6"), ("gairat-1", "GAIR-FAT")]:
        clf = found[table][row]
        # nothing stands in the way of the schedule
        assert (clf.tau, clf.adversary.tau) == (None, 0)
    betas = [found["bui-mnist"][row].beta for row in ("TRADES", "MART", "UDR-TRADES", "UDR-MART")]
    assert betas == [1, 1, 1, 1]
    assert found["bui-5.1"]["UDR-TRADES"]._adversary().random_start == "uniform"


@pytest.mark.slow
def test_gpu_runs_on_a_cpu(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    path = str(BENCHMARKS / "gpu.py")
    arguments = ["--small", "--device", "cpu", "--train-seconds", "1", "--limit", "10"]
    sections = ["env", "throughput", "perturb", "same", "recipe", "judge"]
    monkeypatch.setattr(sys, "argv", [path, *arguments, "--sections", *sections])
    with torch.random.fork_rng(devices=[]):
        runpy.run_path(path, run_name="__main__")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert not any("error" in line for line in lines)
    assert {line["section"] for line in lines} == {"data", *sections}
    assert sum("images_per_s" in line for line in lines) > 1
    assert sum("ms" in line for line in lines) > 1
    assert 0 <= next(line["clean"] for line in lines if line["section"] == "judge") <= 1
