"""The command line, `python -m twophase COMMAND`, from `report` and `run` to `download`."""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from twophase.errors import InputError, TwoPhaseError

EXIT_USER_ERROR = 2


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line that names the argument, the value and what is allowed.

    >>> OneLineParser().parse_args(["dance"])
    Traceback (most recent call last):
    twophase.errors.TwoPhaseError: unrecognized arguments: dance
    """

    def error(self, message: str) -> None:
        """Raise the message as `TwoPhaseError`, where argparse prints its usage and exits."""
        raise TwoPhaseError(message)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets `command` to the function that carries it out.

    Returns:
        The parser; its `parse_args` raises `TwoPhaseError` for arguments that are not allowed.

    >>> build_parser().parse_args(["download", "mnist"]).dataset
    'mnist'
    """
    parser = OneLineParser(prog="twophase", description="Adam, then conjugate gradient.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=OneLineParser)
    _add_report(commands)
    _add_run(commands)
    _add_plot(commands)
    _add_table1(commands)
    _add_compare(commands)
    _add_traces(commands)
    _add_bench(commands)
    _add_download(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command; what a user can put right is one line on stderr and exit code 2.

    Args:
        arguments: without the program's name; None: those of this process.

    Returns:
        The exit code: 0, 2 after a user's error or one of files and disks, 130 if interrupted.

    Raises:
        SystemExit: help was asked for.

    >>> main(["table1", "--list", "--preset", "paper", "--dataset", "mnist", "--model", "vit-mlp"])
    dataset,model,parameters,q
    mnist,vit-mlp,...
    0
    """
    try:
        given = sys.argv[1:] if arguments is None else arguments
        options = build_parser().parse_args(given, argparse.Namespace(arguments=given))
        options.command(options)
    except TwoPhaseError as error:
        print(f"twophase: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"twophase: error: {where}{error.strerror or error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("twophase: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _add_report(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("report", help="execute the notebooks, write HTML reports")
    parser.add_argument("--preset", default="quick", help="smoke, quick (default) or paper")
    parser.add_argument("--out", type=Path, default=None, help="folder; default: reports/")
    parser.add_argument("--notebooks", nargs="+", help="their numbers; default: all")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.set_defaults(command=_report)


def _report(options: argparse.Namespace) -> None:
    from twophase.reporting import report

    index = report.build(options.preset, options.out, options.notebooks, device=options.device)
    print(f"reports: {index}")


def _add_run(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("run", help="train one model; leave a folder with its history")
    numbers = {
        "epochs": int,
        "seed": int,
        "swap_epoch": int,
        "factor": float,
        "batch_size": int,
        "learning_rate": float,
        "tolerance": float,
        "restart_every": int,
        "train_examples": int,
        "validation_examples": int,
    }
    from twophase.experiments.config import RunConfig

    for field in fields(RunConfig):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=_number(field.name, numbers[field.name]) if field.name in numbers else str,
            default=field.default,
            help=f"default: {field.default}",
        )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--data", type=Path, default=None, help="data folder")
    parser.add_argument("--out", type=Path, required=True, help="the run's folder")
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    from twophase.experiments.config import RunConfig
    from twophase.experiments.runs import run

    config = RunConfig(**{f.name: getattr(options, f.name) for f in fields(RunConfig)})
    summary = run(config, options.out, options.data, options.device)
    print(
        f"{summary['status']} after {summary['epochs']} epochs and {summary['passes']} passes: "
        f"train loss {summary['train_loss']:.4g}, {options.out / 'summary.json'}"
    )


def _add_plot(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("plot", help="draw a run's gradient norm over its loss")
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    parser.add_argument("--out", type=Path, default=None, help="PNG; default: in that folder")
    parser.set_defaults(command=_plot)


def _plot(options: argparse.Namespace) -> None:
    from twophase.experiments import runs
    from twophase.figures import training as training_figures

    history, summary = runs.read(options.run)
    out = options.out or options.run / "grad_norm_over_loss.png"
    training_figures.save_grad_norm_over_loss(history, summary, out)
    print(f"figure: {out}")


def _add_table1(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("table1", help="the paper's Table 1, resumable")
    parser.add_argument("--preset", default="quick", help="smoke, quick (default) or paper")
    parser.add_argument("--list", action="store_true", help="parameters and Q only, as CSV")
    parser.add_argument("--dataset", nargs="+", help="default: the preset's")
    parser.add_argument("--model", nargs="+", help="default: all five")
    parser.add_argument("--seeds", type=_number("seeds", int), default=1, help="default: 1")
    parser.add_argument("--swap", default="fixed", help="fixed (the paper's epoch) or rule")
    for name in ("epochs", "swap-epoch", "train-examples"):
        kind = _number(name.replace("-", "_"), int)
        parser.add_argument(f"--{name}", type=kind, help="for all networks; default: the preset's")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--data", type=Path, help="data folder")
    parser.add_argument("--out", type=Path, help="folder; default: reports/table1/PRESET")
    parser.set_defaults(command=_table1)


def _table1(options: argparse.Namespace) -> None:
    from twophase.experiments import table1

    protocol = table1.protocol(
        options.preset, options.epochs, options.swap_epoch, options.train_examples
    )
    if options.list:
        print(table1.listing(protocol, options.dataset, options.model).to_csv(index=False), end="")
        return
    chosen = table1.pairs(protocol, options.dataset, options.model, options.seeds, options.swap)
    out = options.out or table1.default_folder(options.preset)
    print(table1.as_text(table1.run(chosen, out, options.data, options.device)))
    print(f"table: {out / 'table1.csv'}")


def _add_compare(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("compare", help="second phases and their competitors, resumable")
    parser.add_argument("--preset", default="quick", help="smoke, quick (default) or paper")
    parser.add_argument("--problem", nargs="+", help="data sets, poisson, burgers, regression")
    parser.add_argument("--model", nargs="+", help="networks; default: the preset's")
    parser.add_argument(
        "--method", nargs="+", help="beside adam; default: all of twophase.experiments.competitors"
    )
    for name in ("seeds", "passes", "swap-epoch", "batch-size", "train-examples"):
        kind = _number(name.replace("-", "_"), int)
        parser.add_argument(f"--{name}", type=kind, help="default: the preset's")
    parser.add_argument("--dtype", help="of networks for images: float32 (default) or float64")
    parser.add_argument("--no-tuning", action="store_true", help="all methods as shipped")
    parser.add_argument("--processes", type=_number("processes", int), default=1)
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--data", type=Path, help="data folder")
    parser.add_argument("--work", type=Path, help="folder to resume from; default: OUT/jobs")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables")
    parser.set_defaults(command=_compare)


def _compare(options: argparse.Namespace) -> None:
    from twophase.experiments import comparison, profiles
    from twophase.experiments.competitors import METHODS

    plan = comparison.plan(
        options.preset,
        problems=options.problem and tuple(options.problem),
        models=options.model and tuple(options.model),
        **{name: getattr(options, name) for name in ("seeds", "passes", "swap_epoch")},
        **{name: getattr(options, name) for name in ("batch_size", "train_examples", "dtype")},
    )
    began = time.perf_counter()
    curves = comparison.compare(
        plan,
        # what the others are measured against
        list(dict.fromkeys(["adam", *(options.method or METHODS)])),
        options.work or options.out / "jobs",
        not options.no_tuning,
        options.data,
        options.device,
        options.processes,
    )
    seconds = time.perf_counter() - began
    facts = comparison.facts(options.arguments, options.device, options.processes, seconds)
    comparison.save(curves, options.out, facts)
    found = profiles.costs(curves[curves.seed != comparison.TUNING_SEED], plan.passes)
    shown = profiles.ratios(found, ["problem", "model", "method"]).drop(columns="text")
    print(shown.to_string(index=False, float_format="{:.3g}".format))
    print(f"curves: {options.out / 'curves.csv'}")


def _add_traces(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("traces", help="record gradient norms of Adam alone, resumable")
    parser.add_argument("--preset", default="quick", help="smoke, quick (default) or paper")
    parser.add_argument("--dataset", nargs="+", help="default: the preset's")
    parser.add_argument("--model", nargs="+", help="default: all five")
    parser.add_argument("--seeds", type=_number("seeds", int), default=3, help="default: 3")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--data", type=Path, help="data folder")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.set_defaults(command=_traces)


def _traces(options: argparse.Namespace) -> None:
    from twophase.experiments import traces

    chosen = traces.configs(options.preset, options.dataset, options.model, options.seeds)
    traces.record(chosen, options.out, options.data, options.device)
    print(f"traces: {options.out / 'grad_norm_traces.csv'}")


def _add_bench(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("bench", help="ratios of speed, work and memory, side by side")
    parser.add_argument("--preset", default="quick", help="smoke or quick (default)")
    parser.add_argument("--dataset", default="digits", help="default: digits")
    model = "vit-nomlp-wkewq-wvwo1"
    parser.add_argument("--model", default=model, help=f"default: {model}")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--data", type=Path, help="data folder")
    parser.add_argument("--out", type=Path, help="folder for the results; default: none")
    parser.set_defaults(command=_bench)


def _bench(options: argparse.Namespace) -> None:
    from twophase.experiments import bench

    table = bench.run(
        options.preset, options.dataset, options.model, options.data, options.device, options.out
    )
    print(bench.as_text(table))
    if options.out is not None:
        print(f"benchmark: {options.out / 'bench.csv'}")


def _add_download(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("download", help="fetch a data set, or mend a damaged one")
    parser.add_argument("dataset", help="mnist, fashion-mnist, cifar10 or cifar100")
    parser.add_argument("--data", type=Path, default=None, help="data folder")
    parser.set_defaults(command=_download)


def _download(options: argparse.Namespace) -> None:
    from twophase.problems import images

    print(f"{options.dataset}: complete in {images.download(options.dataset, options.data)}")


def _number(name: str, kind: type):
    def parse(text: str) -> int | float:
        try:
            return kind(text)
        except ValueError:
            allowed = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(str(InputError(name, text, allowed))) from None

    return parse


if __name__ == "__main__":
    sys.exit(main())
