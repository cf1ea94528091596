"""The commands of reports/reference/README.md: what they name is there, and they make such files.

Each is read as a shell would read it, held against the kept rows, and run in miniature.
"""

import argparse
import importlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from functools import partialmethod
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import rosen, rosen_der

from twophase.__main__ import build_parser, main
from twophase.experiments import (
    bench,
    comparison,
    generalisation,
    methods,
    pattern,
    regret,
    table1,
)
from twophase.experiments.hessian import Hessian
from twophase.problems.images import DATASETS

PROJECT = Path(__file__).parent.parent
REFERENCE = PROJECT / "reports" / "reference"
AGAIN = "reports/again"
sys.path.append(str(PROJECT / "benchmarks"))

TEXT = (REFERENCE / "README.md").read_text(encoding="utf-8")
FIRST, *SECTIONS = re.split(r"^## ", TEXT, flags=re.MULTILINE)
FOLDERS = sorted(path.name for path in REFERENCE.iterdir() if path.is_dir())
# A single run says where it comes from in other files; losses of trainings that were made before.
OF_NO_COMMAND = {("digits-vit-mlp", "provenance.json"), ("switch-regret", "earlier.csv")}
# a command's arguments, a line for each, in place of the command
ECHO = "python() { printf '%s\\n' \"$@\" =; }\n"


def commands(text):
    """The arguments of each `python` in the blocks of a section."""
    blocks = "".join(re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL))
    done = subprocess.run(["bash", "-euc", ECHO + blocks], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [part.splitlines() for part in done.stdout.split("=\n")[:-1]]


def folder_of(arguments):
    """The folder that a command is for: what comes after `AGAIN` in its last path."""
    paths = [one for one in arguments if one.startswith(f"{AGAIN}/")]
    return Path(paths[-1]).relative_to(AGAIN).parts[0]


COMMANDS = {name: [] for name in FOLDERS}
for section in SECTIONS:
    for command in commands(section):
        COMMANDS.setdefault(folder_of(command), []).append(command)


def call(arguments):
    """Carry out a command in this process."""
    if arguments[:2] == ["-m", "twophase"]:
        assert main(arguments[2:]) == 0
    else:
        importlib.import_module(Path(arguments[0]).stem).main(arguments[1:])


class Stopped(Exception):
    """What a function was given that should not run."""


@pytest.fixture
def given_to(monkeypatch):
    """Tells what a command gives to a function, at which it stops."""

    def stop(*given):
        raise Stopped(*given)

    def given(function, arguments):
        with monkeypatch.context() as patch, pytest.raises(Stopped) as stopped:
            patch.setattr(function, stop)
            call(arguments)
        return stopped.value.args

    return given


@pytest.fixture
def options_of(monkeypatch):
    """Tells the options that a command's own parser finds in it."""
    parse = argparse.ArgumentParser.parse_args

    def stop(parser, given=None, into=None):
        raise Stopped(parse(parser, given, into))

    def options(arguments):
        if arguments[:2] == ["-m", "twophase"]:
            return build_parser().parse_args(arguments[2:])
        with monkeypatch.context() as patch, pytest.raises(Stopped) as stopped:
            patch.setattr(argparse.ArgumentParser, "parse_args", stop)
            call(arguments)
        return stopped.value.args[0]

    return options


def test_every_folder_has_a_section_and_every_section_its_commands():
    headings = [re.findall(r"`([^`]+)`", section.splitlines()[0]) for section in SECTIONS]
    assert sorted(name for heading in headings for name in heading) == FOLDERS
    assert list(COMMANDS) == FOLDERS and all(COMMANDS.values())
    for heading, section in zip(headings, SECTIONS, strict=True):
        assert {folder_of(command) for command in commands(section)} == set(heading)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_says_where_it_comes_from(folder):
    facts = json.loads((REFERENCE / folder / "provenance.json").read_text(encoding="utf-8"))
    for run in facts.get("runs", facts.get("commands", [{}])):
        known = facts | run
        assert {"command", "revision", "versions", "time"} <= known.keys()
        assert {"device", "hardware"} & known.keys()


def test_what_is_needed_first_is_there():
    install, *downloads = commands(FIRST)
    assert install == ["-m", "pip", "install", "-e", ".[test,bench]"]
    for download in downloads:
        assert build_parser().parse_args(download[2:]).dataset in DATASETS


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_command_is_understood(folder, options_of):
    for command in COMMANDS[folder]:
        assert command[0] == "-m" or (PROJECT / command[0]).is_file()
        options = options_of(command)
        out = options.out or options.run
        assert Path(AGAIN, folder) in [out, *out.parents]


def of_comparison(todo):
    """Keys of entries; equations have no batches, and self-scaled BFGS was their default."""
    keys = pd.DataFrame([entry.keys for entry in todo])
    was = keys.model.eq("") & keys.method.eq("default-tuned")
    return keys.assign(method=keys.method.mask(was, "default"))


def of_regret(cases, rules, seeds, place, executor, passes, *_):
    for (name, case), seed in product(regret.CASES.items(), range(seeds)):
        if cases is None or name in cases:
            case = case if passes is None else replace(case, passes=passes)
            trained = regret.entries(case, seed, rules or regret.RULES)
            yield from ((name, seed, rule) for rule in trained)


def of_ideas(options):
    ideas = importlib.import_module("second_phase_ideas")
    for network, swap, seed in product(options.networks, options.swap, options.seeds):
        start = ideas.start(network, swap, seed)
        for idea in options.ideas:
            for method in ideas.ideas(start)[idea]:
                yield start.problem.name, method, seed, swap


# for each table: the columns that name its rows, the rows that a command makes by its options, or
# by what it gives to a function of the library
ROWS = {
    "clients/clients.csv": (
        ["way", "seed"],
        lambda options: product(options.way, range(options.seeds)),
    ),
    "convexity-audit/audit.csv": (
        ["dataset", "model", "seed"],
        lambda chosen, *_: [(c.problem.dataset, c.problem.model, c.seed) for c in chosen],
        "twophase.experiments.traces.record",
    ),
    "cutest/runs.csv": (
        ["method"],
        lambda options: [(name,) for name in importlib.import_module("cutest").METHODS],
    ),
    "generalisation/generalisation.csv": (
        ["dataset", "model", "examples", "seed"],
        lambda options: [
            (problem.dataset, problem.model, problem.train_examples, seed)
            for problem in generalisation.problems(options.dataset, options.model)
            for seed in range(options.seeds)
        ],
    ),
    "global-search/searches.csv": (
        ["problem", "parameters", "method", "seed"],
        lambda o: product(o.problems, o.parameters, o.methods, range(o.seeds)),
    ),
    "global-search/ends.csv": (
        ["problem", "parameters", "method", "seed"],
        lambda o: product(o.problems, o.parameters, o.methods, range(o.draws)),
    ),
    **{
        f"pattern-{name}/ends.csv": (
            ["seed", "strategy"],
            lambda config, seeds, *_: product(range(seeds), pattern.strategies(config)),
            "twophase.experiments.pattern.run",
        )
        for name in (folder.removeprefix("pattern-") for folder in pattern.KEPT.values())
    },
    "physics-networks/curves.csv": (
        ["problem", "method", "seed"],
        lambda options: product(options.problems, options.methods, options.seeds),
    ),
    "processes/seconds.csv": (
        ["processes", "threads"],
        lambda options: importlib.import_module("processes").WAYS,
    ),
    "second-phase-ideas/curves.csv": (["problem", "method", "seed", "swap_epoch"], of_ideas),
    **{
        f"{name}/regret.csv": (
            ["case", "seed", "rule"],
            of_regret,
            "twophase.experiments.regret.run",
        )
        for name in ("switch-regret", "switch-regret-10000")
    },
}


@pytest.mark.parametrize("name", ROWS)
def test_the_commands_make_the_kept_rows(name, options_of, given_to):
    columns, rows, *function = ROWS[name]
    made = set()
    for command in COMMANDS[name.split("/")[0]]:
        given = given_to(*function, command) if function else [options_of(command)]
        made |= set(rows(*given))
    kept = pd.read_csv(REFERENCE / name)[columns].drop_duplicates()
    assert set(kept.itertuples(index=False, name=None)) <= made


@pytest.mark.parametrize(
    "folder",
    [name for name in FOLDERS if (REFERENCE / name / "runs.csv").is_file() and name != "cutest"],
)
def test_comparisons_make_the_kept_runs(folder, monkeypatch):
    """With the settings that the kept runs of tuning choose."""
    kept = comparison.load(REFERENCE / folder)
    tuned = kept[kept.seed == comparison.TUNING_SEED]
    made = []

    def run(todo, *_):
        made.append(of_comparison(todo))
        if set(made[-1].seed) == {comparison.TUNING_SEED}:
            return tuned.merge(made[-1][["method", "candidate"]].drop_duplicates())
        raise Stopped

    monkeypatch.setattr(comparison, "run", run)
    for command in COMMANDS[folder]:
        with pytest.raises(Stopped):
            call(command)

    def runs(table):
        table = table.assign(batch_size=table.batch_size.where(table.model.ne("")))
        columns = [name for name in table if name not in (*comparison.MEASURED, "switched")]
        rows = table[columns].drop_duplicates().fillna({"batch_size": 0, "train_examples": 0})
        return set(rows[sorted(columns)].itertuples(index=False, name=None))

    here = [name for name, method in methods.METHODS.items() if method.installed]
    assert runs(kept[kept.method.isin(here)]) <= runs(pd.concat(made, ignore_index=True))


def test_table_1_has_the_kept_folders(given_to):
    (command,) = COMMANDS["table1-mnist-2048"]
    chosen, *_ = given_to("twophase.experiments.table1.run", command)
    made = {table1.folder_name(run) for config in chosen for run in (config, config.trunk())}
    folder = REFERENCE / "table1-mnist-2048"
    assert {path.parent.relative_to(folder).as_posix() for path in folder.rglob("*.csv")} == made


# Options in place of those printed, after which a command takes a second or so.
TINY = "--seeds 1 --train-examples 16 --batch-size 8".split()
COMPARED = [*TINY, *"--swap-epoch 1 --passes 6".split()]
BENCH = "--preset smoke --dataset digits".split()
PATTERN = [*TINY, *"--problem digits --model mlp-4 --validation-examples 8 --passes 30".split()]
SMALLEST = "vit-nomlp-wkewq-wvwo1"
SMALLER = {
    "bench": BENCH,
    "bench-digits-vit-mlp": BENCH,
    "bench-mnist": BENCH,
    "bench-mnist-vit-mlp": BENCH,
    "clients": ["--seeds", "1", "--way", "minimize, a sum of squares"],
    "convexity-audit": f"--preset smoke --dataset digits --seeds 1 --model {SMALLEST}".split(),
    "cutest": "--processes 1".split(),
    "digits-vit-mlp": f"--model {SMALLEST} --train-examples 16 --epochs 3 --switch 1".split(),
    "fair-comparison": [*COMPARED, "--model", SMALLEST],
    "fair-comparison-networks": [*COMPARED, "--model", SMALLEST],
    "fair-comparison-vgg5": [*COMPARED, "--model", SMALLEST],
    "fair-comparison-mnist-cifar": [
        *(*COMPARED, "--problem", "digits", "--validation-examples", "20"),
    ],
    "generalisation": "--dataset digits --model mlp-4 --seeds 1 --passes 30".split(),
    "global-search": (
        "--problems conflict --parameters 1 --seeds 1 --starts 1 --evaluations 30".split()
    ),
    **dict.fromkeys(pattern.KEPT.values(), PATTERN),
    "payoff-map": "--seeds 1 --swap-epoch 1 --passes 6".split(),  # equations have no batches
    "physics-networks": "--problems regression --methods Adam --seeds 0 --seconds 0.1".split(),
    "processes": "--scale 0.002 --turns 1 --repetitions 1".split(),
    "scale": "--parameters 300 --examples 20".split(),
    "second-phase-ideas": "--networks tanh-regression --seeds 0 --swap 2 --passes 12".split(),
    "switch-regret": ["--case", "mlp-4", "--seeds", "1"],
    "switch-regret-10000": "--case poisson --seeds 1 --passes 30".split(),
    "table1-mnist-2048": (
        "--dataset digits --model vit-mlp --epochs 2 --swap-epoch 1 --train-examples 16".split()
    ),
}
# Of earlier revisions: histories; a comparison that had no validation; patterns that did not count
# what was left for Adam.
FEWER_COLUMNS = {"digits-vit-mlp", "table1-mnist-2048", "payoff-map"}
FEWER_COLUMNS |= set(pattern.KEPT.values())


@pytest.fixture
def small_problems(monkeypatch):
    """What no option makes small: other modules' problems, and packages that need not be here."""
    clients, cutest = map(importlib.import_module, ("clients", "cutest"))
    monkeypatch.setattr(clients, "STEPS", 5)
    monkeypatch.setitem(bench.SIZES, "smoke", bench.Size(8, 8, 1, 2, 2, (8, 16), (2, 4), 8))
    monkeypatch.setattr(Hessian, "audit", partialmethod(Hessian.audit, max_products=4, steps=2))
    case = regret.CASES["mlp-4"]
    monkeypatch.setitem(regret.CASES, "mlp-4", replace(case, passes=30))
    problem = SimpleNamespace(x0=np.array([-1.2, 1.0]), fun=rosen, grad=rosen_der)
    monkeypatch.setattr(cutest, "load", lambda name: problem)
    monkeypatch.setattr(cutest, "unconstrained", lambda: ["ROSENBR", "ANOTHER"])
    monkeypatch.delitem(cutest.METHODS, "pytorch-minimize, CG")


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS)
def test_in_miniature_the_commands_make_such_files(folder, small_problems, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in COMMANDS[folder]:
        call(command if "plot" in command else [*command, *SMALLER[folder]])
    for kept in (REFERENCE / folder).rglob("*.*"):
        made = [path for path in Path(AGAIN, folder).rglob(kept.name) if "runs" not in path.parts]
        assert made or (folder, kept.name) in OF_NO_COMMAND, kept.name
        for path in made if kept.suffix == ".csv" else []:
            before, now = pd.read_csv(kept), pd.read_csv(path)
            added = set(now) - set(before)
            assert list(before) == [name for name in now if name not in added]
            assert not added or folder in FEWER_COLUMNS
            if "measure" in before:
                assert set(before.measure) <= set(now.measure)
