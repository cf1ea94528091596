"""The command line, `python -m twophase COMMAND`, from `report` and `run` to `download`."""

import argparse
import io
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

from twophase.errors import InputError, TwoPhaseError

EXIT_RUNS_FAILED, EXIT_USER_ERROR = 1, 2
STOPPED = (
    "processes: another one has ended, or the job was stopped; a run goes on from its last "
    "checkpoint when it is started again"
)
ANYTHING = "anything"  # of which the line above is only said if it is the first
SAYING = threading.RLock()  # of the two threads of a process one has the last word
EXECUTORS = 'local, slurm, or such as "Local(4)" and "Slurm(partition=\'gpu\', gpus=1)"'


class OneLineParser(argparse.ArgumentParser):
    """A parser that raises `TwoPhaseError` where argparse prints its usage and exits."""

    def error(self, message: str) -> None:
        raise TwoPhaseError(message)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets `command` to the function that carries it out."""
    parser = OneLineParser(prog="twophase", description="Adam, then full batches.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('twophase')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=OneLineParser)

    def add(name: str, text: str, command: Callable[[argparse.Namespace], int | None]):
        added = commands.add_parser(name, help=text)
        added.set_defaults(command=command)
        return added

    report = add("report", "execute the notebooks, write HTML reports", _report)
    report.add_argument("--preset", default="quick", help="smoke, quick (default) or paper")
    report.add_argument("--out", type=_path, help="folder; default: reports/")
    report.add_argument("--notebooks", nargs="+", help="their numbers; default: all")
    report.add_argument("--jobs", type=_number("jobs", int), help="how many notebooks at a time")
    report.add_argument("--executor", help=f"of the ablations' runs: {EXECUTORS}")
    _device_option(report)
    _run_options(add("run", "train one model; leave a folder with its history", _run))
    plot = add("plot", "draw a run's gradient norm over its loss", _plot)
    plot.add_argument("run", type=_path, help="the folder of a finished run")
    plot.add_argument("--out", type=_path, help="PNG; default: in that folder")
    _table1_options(add("table1", "the paper's Table 1, resumable", _table1))
    _compare_options(add("compare", "second phases and their competitors, resumable", _compare))
    _regret_options(add("regret", "switch rules against the best fixed swap, resumable", _regret))
    _pattern_options(add("pattern", "does the paper's pattern hold? resumable", _pattern))
    sweep = add("sweep", "the runs of a YAML file, resumable", _sweep)
    sweep.add_argument("spec", type=_path, help="fields, each with a value or a list of them")
    _executor_options(sweep, "local")
    _place_options(sweep, "folder of the runs and of sweep.csv")
    traces = add("traces", "record gradient norms of Adam alone, resumable", _traces)
    _preset_options(traces, seeds=3)
    traces.add_argument("--audit", action="store_true", help="the Hessian's spectrum, too; hours")
    _executor_options(traces)
    _place_options(traces, "folder of the runs")
    bench = add("bench", "ratios of speed, work and memory, side by side", _bench)
    bench.add_argument("--preset", default="quick", help="smoke or quick (default)")
    bench.add_argument("--dataset", default="digits", help="default: digits")
    bench.add_argument("--model", default="vit-nomlp-wkewq-wvwo1", help="default: %(default)s")
    _place_options(bench, "folder for the results; default: none", required=False)
    download = add("download", "fetch a data set, or mend a damaged one", _download)
    download.add_argument("dataset", help="mnist, fashion-mnist, cifar10 or cifar100")
    download.add_argument("--data", type=_path, help="data folder")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command; what a user can put right is one line on stderr and exit code 2.

    `arguments` are without the program's name; None: those of this process. The exit code is 0, 1
    where some of many runs failed, 2 after a user's error or one of files and disks, 130 if
    interrupted.
    """
    from twophase.distributed.launch import at_sigterm

    given = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        # a path may have letters that the terminal has not
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with at_sigterm(_end):
        return _carry_out(given)


def _carry_out(given: Sequence[str]) -> int:
    try:
        options = build_parser().parse_args(given, argparse.Namespace(arguments=given))
        if options.command is not _run:
            _check_alone(given[0])
        _check_device(options)
        _check_folders(options)
        return options.command(options) or 0
    except TwoPhaseError as error:
        _say(f"twophase: error: {error}")
        return getattr(error, "exit_code", EXIT_USER_ERROR)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _say(f"twophase: error: {where}{error.strerror or error}")
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        _say("twophase: interrupted; the same command goes on from here")
        return 130


def _end() -> None:
    """End this process, as torchrun asks where another has ended; say so if none has said why."""
    with SAYING:
        _say(f"twophase: error: {STOPPED}", of=ANYTHING)
        os._exit(EXIT_USER_ERROR)


def _say(line: str, of: str | None = None) -> None:
    """A line on stderr, once of all processes that torchrun has started; or one `of` some lines."""
    from twophase.distributed.launch import first_to_say

    with SAYING:
        if first_to_say(of or line):
            # a text of a user's may have what a terminal takes for the end of a line
            shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
            print("".join(shown), file=sys.stderr)
            first_to_say(ANYTHING)


def _check_alone(command: str) -> None:
    from twophase.distributed.launch import launched

    if launched():
        allowed = "run; this command has --executor to make several runs at a time"
        raise InputError("torchrun -m twophase", command, allowed)


def _check_device(options: argparse.Namespace) -> None:
    """Before anything is made; a cluster's nodes may have other devices than this machine."""
    from twophase.device import resolve_device
    from twophase.experiments.executors import ALONE, named

    device = getattr(options, "device", "cpu")
    elsewhere = named(getattr(options, "executor", None) or ALONE).shared
    if not (elsewhere and re.fullmatch(r"cuda(:\d+)?", device)):
        resolve_device(device)


def _check_folders(options: argparse.Namespace) -> None:
    """Of many runs, before any of them is made."""
    from twophase.experiments.files import check_folder

    for name in ("out", "work") if hasattr(options, "executor") else ():
        if getattr(options, name, None) is not None:
            check_folder(name, getattr(options, name))


def _report(options: argparse.Namespace) -> None:
    from twophase.reporting import report

    _executor(options)
    index = report.build(
        *(options.preset, options.out, options.notebooks),
        parameters={"executor": options.executor} if options.executor else None,
        device=options.device,
        jobs=options.jobs,
    )
    print(f"reports: {index}")


PROBLEMS = "a data set of images; poisson, burgers, ...; topics (English) or a UTF-8 file"

FREEZE = "second phase in eval mode: BatchNorm frozen, no dropout"


def _run_options(parser: argparse.ArgumentParser) -> None:
    text = parser.add_argument
    text("--problem", default="digits", help=PROBLEMS)
    text("--model", help="of images, by default vit-nomlp-wkewq-wvwo1, or of a text, gpt-50k")
    _number_options(parser, "train-examples", "validation-examples", help="default: all")
    text("--strategy", default="adam+second", help="adam, second or adam+second (default)")
    _number_options(parser, "epochs", default=40)
    _number_options(parser, "seed", default=0)
    text("--dtype", default="float32", help="float32 (default) or float64")
    _number_options(parser, "batch-size", help="default: 512; equations have none")
    _number_options(parser, "learning-rate", kind=float, default=1e-3)
    parser.add_argument("--freeze", action="store_true", help=FREEZE)
    text(
        "--second",
        default="default",
        help="default, paper (the paper's rule, conjugate gradient, golden section, no fallback), "
        "or such as LevenbergMarquardt",
    )
    for name, example in (
        ("direction", "ConjugateDirection('FR'), SelfScaledBFGSDirection, LBFGSDirection(100)"),
        ("line-search", "GoldenSection(rtol=1e-3), StrongWolfe(c2=0.1), ParabolaFirst"),
        ("preconditioner", "Identity, AdamMoments(min_batches=1)"),
        ("switch", "20 (epochs), Race(passes=30), GradientNormPeak(0.9), SmoothedNormPeak"),
        ("fallback", "Fallback(trial=5), None"),
    ):
        text(f"--{name}", help=f"in place of that of --second; such as {example}")
    text(
        "--precision",
        help="of mini-batches: AsSet (as torch is set, the default), Full, BFloat16, TF32",
    )
    text("--monitor", default="Exact", help="Exact (default) or FromBatches: Adam's loss and norm")
    text("--keep", default="train", help="weights and trials by train (default) or validation loss")
    _place_options(parser, "the run's folder")


def _run(options: argparse.Namespace) -> None:
    from twophase.distributed.launch import joined
    from twophase.distributed.processes import processes
    from twophase.experiments.runs import run

    config = _config(options)
    with joined(options.device) as device:
        summary = run(config, options.out, options.data, device)
        if processes().rank > 0:
            return
    print(
        f"{summary['status']} after {summary['epochs']} epochs and {summary['passes']} passes: "
        f"train loss {summary['train_loss']:.4g}, {options.out / 'summary.json'}"
    )


def _config(options: argparse.Namespace):
    """The configuration of a run: the library's defaults or the paper's, and what was given."""
    from twophase.experiments.options import Options

    chosen = Options(**{field.name: getattr(options, field.name) for field in fields(Options)})
    chosen.check_used()
    return chosen.config()


def _plot(options: argparse.Namespace) -> None:
    from twophase.experiments import runs
    from twophase.figures import training

    history, summary = runs.read(options.run)
    out = options.out or options.run / "grad_norm_over_loss.png"
    training.save_grad_norm_over_loss(history, summary, out)
    print(f"figure: {out}")


def _table1_options(parser: argparse.ArgumentParser) -> None:
    _preset_options(parser, seeds=1)
    parser.add_argument("--list", action="store_true", help="parameters and Q only, as CSV")
    parser.add_argument("--swap", default="fixed", help="fixed (the paper's epoch) or rule")
    _number_options(
        *(parser, "epochs", "swap-epoch", "train-examples"),
        help="for all networks; default: the preset's",
    )
    _executor_options(parser)
    _place_options(parser, "folder; default: reports/table1/PRESET", required=False)


def _table1(options: argparse.Namespace) -> None:
    from twophase.experiments import table1
    from twophase.experiments.files import project_folder

    lengths = options.epochs, options.swap_epoch, options.train_examples
    protocol = table1.protocol(options.preset, *lengths)
    chosen = table1.configs(protocol, options.dataset, options.model, options.seeds, options.swap)
    if options.list:
        print(table1.listing(chosen).to_csv(index=False), end="")
        return
    reports = (project_folder() or Path()) / "reports"
    options.out = options.out or reports / "table1" / options.preset
    place = table1.place(options.out, options.data, options.device)
    executor = _executor(options)
    with _recorded(options, executor):
        table = table1.run(chosen, place, executor)
    print(table1.as_text(table))
    print(f"table: {options.out / 'table1.csv'}")


def _compare_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", default="quick", help="smoke, quick (default) or paper")
    parser.add_argument("--problem", nargs="+", help=PROBLEMS)
    parser.add_argument("--model", nargs="+", help="networks; default: the preset's")
    parser.add_argument(
        "--method", nargs="+", help="beside adam; default: all of twophase.experiments.methods"
    )
    _number_options(
        *(parser, "seeds", "passes", "swap-epoch", "batch-size"),
        *("train-examples", "validation-examples"),
        help="default: the preset's",
    )
    parser.add_argument("--dtype", help="default: float32, of full-batch problems float64")
    parser.add_argument("--no-tuning", action="store_true", help="all methods as shipped")
    _executor_options(parser)
    _number_options(parser, "processes", help="the same as --executor 'Local(N)'")
    parser.add_argument("--work", type=_path, help="folder to resume from; default: OUT/runs")
    _place_options(parser, "folder of the tables")


def _compare(options: argparse.Namespace) -> None:
    from twophase.experiments import branches, comparison, findings, profiles
    from twophase.experiments.methods import METHODS

    names = ("seeds", "passes", "swap_epoch", "batch_size", "dtype")
    names += ("train_examples", "validation_examples")
    changes = {name: getattr(options, name) for name in names}
    for name, given in (("problems", options.problem), ("models", options.model)):
        changes[name] = given and tuple(given)
    plan = comparison.plan(options.preset, **changes)
    # what the others are measured against
    methods = list(dict.fromkeys(["adam", *(options.method or METHODS)]))
    place = branches.Place(options.work or options.out / "runs", options.data, options.device)
    executor = _executor(options)
    with _recorded(options, executor):
        curves = comparison.compare(plan, methods, place, not options.no_tuning, executor)
        comparison.save(curves, options.out)
    judged = curves[curves.seed != comparison.TUNING_SEED]
    found = profiles.costs(judged, plan.passes)
    shown = profiles.ratios(found, ["problem", "model", "method"]).drop(columns="text")
    print("passes to Adam's last loss, in parts of Adam's")
    print(shown.to_string(index=False, float_format="{:.3g}".format))
    validation = findings.in_validation(judged, plan.passes)
    if len(validation):
        print("validation of the weights with the lowest training loss")
        print(validation.to_string(index=False))
    print(f"curves: {options.out / 'curves.csv'}")


def _regret_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--case", nargs="+", help="of twophase.experiments.regret; default: all")
    parser.add_argument("--rule", nargs="+", help="beside all fixed swaps; default: all")
    _number_options(parser, "seeds", default=3)
    _number_options(parser, "passes", help="for each training; default: those of the case")
    _executor_options(parser)
    _number_options(parser, "processes", help="the same as --executor 'Local(N)'")
    parser.add_argument("--work", type=_path, help="folder to resume from; default: OUT/runs")
    _place_options(parser, "folder of the table")


def _regret(options: argparse.Namespace) -> None:
    from twophase.experiments import branches, regret, regret_results
    from twophase.experiments.files import write_atomically

    def write(table) -> None:
        options.out.mkdir(parents=True, exist_ok=True)
        text = table.to_csv(index=False, float_format="%.6g")
        write_atomically(options.out / "regret.csv", text)

    place = branches.Place(options.work or options.out / "runs", options.data, options.device)
    executor, chosen = _executor(options), (options.case, options.rule, options.seeds)
    with _recorded(options, executor):
        table = regret.run(*chosen, place, executor, options.passes, write)
    print(regret_results.summary(table).to_string(float_format="{:.2f}".format))
    print(f"table: {options.out / 'regret.csv'}")


def _pattern_options(parser: argparse.ArgumentParser) -> None:
    text = parser.add_argument
    text("--problem", default="digits", help="a data set of images; topics or a UTF-8 file")
    text("--model", help="of images or of a text; default: as for run")
    _number_options(parser, "train-examples", "validation-examples", help="default: all")
    _number_options(parser, "passes", default=600)
    _number_options(parser, "seeds", default=3)
    _number_options(parser, "batch-size", help="default: 64")
    _number_options(parser, "learning-rate", kind=float, default=1e-3)
    parser.add_argument("--freeze", action="store_true", help=FREEZE)
    _executor_options(parser)
    parser.add_argument("--work", type=_path, help="folder to resume from; default: OUT/runs")
    _place_options(parser, "folder of the tables")


def _pattern(options: argparse.Namespace) -> None:
    from twophase.experiments import branches, pattern
    from twophase.experiments.options import Options

    names = ("problem", "model", "train_examples", "validation_examples", "batch_size")
    names += ("learning_rate", "freeze")
    asked = Options(**{name: getattr(options, name) for name in names}).config(usual_batch=64)
    config = pattern.config(asked.problem, options.passes, asked.adam, asked.freeze)
    place = branches.Place(options.work or options.out / "runs", options.data, options.device)
    executor = _executor(options)
    with _recorded(options, executor):
        found = pattern.run(config, options.seeds, place, executor)
        pattern.save(found, options.out)
    print(pattern.answers(found))
    print(f"tables: {options.out}")


def _sweep(options: argparse.Namespace) -> int:
    from twophase.experiments import branches, sweep
    from twophase.reporting import report

    spec, executor = sweep.read(options.spec), _executor(options)
    with _recorded(options, executor):
        if spec.notebook is None:
            place = branches.Place(options.out, options.data, options.device)
            table = sweep.run(spec, place, executor)
        else:
            pages = report.pages(spec, options.out, options.device)
            table = sweep.run_pages(spec, options.out, pages, report.build_page, executor)
    failed = table[table.error != ""]
    for _, row in failed.iterrows():
        print(f"failed: {sweep.label(row[list(spec.swept)])}: {row.error}")
    if spec.notebook is not None:
        print(f"reports: {options.out / 'index.html'}")
    print(f"table: {options.out / 'sweep.csv'}, {len(table)} runs, {len(failed)} failed")
    return EXIT_RUNS_FAILED if len(failed) else 0


def _traces(options: argparse.Namespace) -> None:
    from twophase.experiments import convexity_audit, traces

    chosen = traces.configs(options.preset, options.dataset, options.model, options.seeds)
    executor = _executor(options)
    where = options.out, options.data, options.device, executor
    with _recorded(options, executor):
        traces.record(chosen, *where)
        print(f"traces: {options.out / 'grad_norm_traces.csv'}")
        if options.audit:
            convexity_audit.audit(chosen, *where)
            print(f"audits: {options.out / 'audit.csv'}")


def _bench(options: argparse.Namespace) -> None:
    from twophase.experiments import bench

    table = bench.run(
        options.preset, options.dataset, options.model, options.data, options.device, options.out
    )
    print(bench.as_text(table))
    if options.out is not None:
        print(f"benchmark: {options.out / 'bench.csv'}")


def _download(options: argparse.Namespace) -> None:
    from twophase.problems import image_files

    folder = image_files.download(options.dataset, options.data)
    print(f"{options.dataset}: complete in {folder}")


def _preset_options(parser: argparse.ArgumentParser, seeds: int) -> None:
    parser.add_argument("--preset", default="quick", help="smoke, quick (default) or paper")
    parser.add_argument("--dataset", nargs="+", help="default: the preset's")
    parser.add_argument("--model", nargs="+", help="default: all five")
    _number_options(parser, "seeds", default=seeds)


def _executor_options(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    shown = default or "one run after the other"
    parser.add_argument("--executor", default=default, help=f"{EXECUTORS}; default: {shown}")


def _executor(options: argparse.Namespace):
    from twophase.experiments.executors import ALONE, Local, named

    processes = getattr(options, "processes", None)
    if processes is not None:
        if options.executor is not None:
            raise InputError("processes", processes, "nothing with --executor")
        return Local(processes)
    executor = ALONE if options.executor is None else named(options.executor)
    executor.check()
    return executor


@contextmanager
def _recorded(options: argparse.Namespace, executor) -> Iterator[None]:
    """`provenance.json` for tables that are made within, however that ends.

    Where none of them has become another one, what is said of them holds still.
    """
    from twophase.experiments import comparison, provenance

    began, before = time.perf_counter(), provenance.tables(options.out)
    note = options.out / "provenance.json"
    try:
        yield
    finally:
        now = provenance.tables(options.out)
        if now and (now != before or not note.exists()):
            seconds = time.perf_counter() - began
            facts = comparison.facts(options.arguments, options.device, executor, seconds)
            provenance.add(note, facts)


def _place_options(parser: argparse.ArgumentParser, out: str, required: bool = True) -> None:
    _device_option(parser)
    parser.add_argument("--data", type=_path, help="data folder")
    parser.add_argument("--out", type=_path, required=required, help=out)


def _device_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")


def _number_options(
    parser: argparse.ArgumentParser,
    *names: str,
    kind: type = int,
    default: float | None = None,
    help: str = "default: %(default)s",
) -> None:
    for name in names:
        parse = _number(name.replace("-", "_"), kind)
        parser.add_argument(f"--{name}", type=parse, default=default, help=help)


def _path(text: str) -> Path:
    """A path; an empty one would be the working folder."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(
            str(InputError("path", text, "the path of a folder or file"))
        )
    return Path(text)


def _number(name: str, kind: type):
    def parse(text: str) -> int | float:
        try:
            return kind(text)
        except ValueError:
            allowed = "a whole number" if kind is int else "a number"
            # Python reads no number of thousands of digits
            if kind is int and text.strip().lstrip("+-").isdecimal():
                allowed += " of at most 19 digits"
            raise argparse.ArgumentTypeError(str(InputError(name, text, allowed))) from None

    return parse


if __name__ == "__main__":
    sys.exit(main())
