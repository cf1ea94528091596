"""Table 1 for readers: what was run, who is ahead by how much, all numbers beside the paper's."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from twophase.errors import InputError
from twophase.experiments import reached, table1
from twophase.experiments.config import RunConfig
from twophase.experiments.files import read_json
from twophase.experiments.runs import HISTORY, ONCE, PARTIAL
from twophase.experiments.statistics import ratio_text
from twophase.problems.image_files import SOURCES
from twophase.record import ADAM
from twophase.settings import Settings


def there(out: Path, swap: str) -> list[RunConfig]:
    """For `table1.table`: the paper's rows, run or not, and all others that lie below `out`."""
    paper = table1.PROTOCOLS["paper"]
    others = [name for name in SOURCES if name not in paper.datasets and (out / name).is_dir()]
    seeds = [int(folder.name.removeprefix("seed-")) for folder in out.glob("*/*/seed-*")]
    datasets = [*paper.datasets, *others]
    return table1.configs(paper, datasets, seeds=1 + max(seeds, default=0), swap=swap)


def choices() -> pd.DataFrame:
    """`table1.CHOICES` in three columns."""
    rows = [(name, _words(value), reason) for name, (value, reason) in table1.CHOICES.items()]
    return pd.DataFrame(rows, columns=["choice", "value", "reason"])


def made(chosen: Sequence[RunConfig], out: Path) -> pd.DataFrame:
    """The finished runs, a row for each: what was trained for how long, and its `summary`."""
    rows = [
        {"data set": config.problem.dataset, "network": config.problem.model, "strategy": strategy}
        | {"seed": config.seed, "examples": summary["train_examples"]}
        | {"epochs": summary["epochs"], "swap": str(summary["swap_epoch"] or "–")}
        | {"minutes": round(summary["seconds"] / 60, 1), "passes": summary["passes"]}
        | {"summary": summary}
        for config in chosen
        for strategy, _, summary in table1.finished(config, out)
    ]
    return pd.DataFrame(rows)


def advantages(table: pd.DataFrame) -> pd.DataFrame:
    """Adam's training loss over that of Adam, then CG, in the columns paper and own (runs).

    `table` is from `table1.table`; the index is data set and network, in its order.
    """
    losses = table.set_index(["dataset", "model", "strategy"])[["paper_train_loss", "train_loss"]]
    adam, both = (losses.xs(name, level="strategy").astype(float) for name in table1.STRATEGIES)
    return (adam / both).set_axis(["paper", "own"], axis=1)


def at_equal_cost(chosen: Sequence[RunConfig], out: Path) -> pd.DataFrame:
    """The lowest training losses after all epochs, and within passes and seconds of Adam alone.

    A row for each pair of finished runs: columns data set, network, seed; the loss of "Adam", of
    "Adam, then CG", and its losses "at equal passes" and "at equal seconds", what its switch reads
    charged; the validation losses of Adam and at equal passes, of the same weights; the passes.
    """
    rows = []
    for config in chosen:
        histories = [history for _, history, _ in table1.finished(config, out)]
        if len(histories) == len(table1.STRATEGIES):
            adam, both = histories
            spent = reached.charged(both, config)
            inside = {cost: both[spent[cost] <= adam[cost].sum()] for cost in spent}
            best = [of.loc[of.train_loss.idxmin()] for of in (adam, inside["passes"])]
            rows.append(
                {"data set": config.problem.dataset, "network": config.problem.model}
                | {"seed": config.seed, "Adam": adam.train_loss.min()}
                | {"Adam, then CG": both.train_loss.min()}
                | {f"at equal {cost}": of.train_loss.min() for cost, of in inside.items()}
                | {"Adam's val. loss": best[0].validation_loss}
                | {"val. loss at equal passes": best[1].validation_loss}
                | {"passes of Adam": adam.passes.sum(), "passes of both": both.passes.sum()}
            )
    return pd.DataFrame(rows)


def beside_paper(table: pd.DataFrame, columns: Mapping[str, tuple[str, int]]) -> pd.DataFrame:
    """Measured columns of `table1.table` and the paper's beside them, as text.

    `columns` has for each name in `table1.METRICS` its heading and its number of decimals.
    """
    names = {"dataset": "data set", "model": "network"}
    shown = table[["dataset", "model", "strategy"]].rename(columns=names)
    for name, (heading, digits) in columns.items():
        shown[heading] = table1.decimals(table[name], digits)
        shown[f"paper's {heading}"] = table1.decimals(table[f"paper_{name}"], digits)
    return shown


class Long(NamedTuple):
    """A run at the paper's length, finished or on its way: what it is, and its epochs so far."""

    dataset: str
    model: str
    strategy: str
    seed: int
    epochs: int  # that it will have
    history: pd.DataFrame

    @property
    def passes(self) -> int:
        """All that it has spent so far."""
        return int(self.history.passes.sum())

    def within(self, passes: int) -> "Long":
        """The run as it was after so many passes."""
        return self._replace(history=self.history[self.history.passes.cumsum() <= passes])


def long_runs(out: Path) -> list[Long]:
    """The runs that have begun in folders of tables, whatever version wrote their configurations.

    `InputError` where a configuration or a history is damaged.
    """
    found = []
    for path in sorted(out.glob("*/*/*/seed-*/*/config.json")):
        *_, dataset, model, _, strategy = path.parent.parts
        config = read_json(path)
        names = (HISTORY, PARTIAL)
        histories = [path.with_name(name) for name in names if path.with_name(name).exists()]
        if not histories:
            continue
        try:
            epochs, seed = int(config["epochs"]), int(config["seed"])
            history = pd.read_csv(histories[0])
            history = history.replace(ONCE).dropna(subset=["train_loss"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError("results", str(path.parent), "a whole run") from error
        found.append(Long(dataset, model, strategy, seed, epochs, history))
    return sorted(found, key=lambda one: one[:4])


def how_far(found: Sequence[Long]) -> pd.DataFrame:
    """A row for each long run: its epochs, and where it is, beside the paper's end."""
    paper = table1.paper_table().set_index(["dataset", "model", "strategy"])
    rows = []
    for one in found:
        last = one.history.iloc[-1]
        key = one.dataset, one.model, one.strategy.removesuffix("-fixed")
        printed = paper.loc[key] if key in paper.index else {}
        rows.append(
            {"data set": one.dataset, "network": one.model, "strategy": one.strategy}
            | {"seed": one.seed, "epochs": f"{len(one.history)}/{one.epochs}"}
            | {"passes": one.passes, "hours": one.history.seconds.sum() / 3600}
            | {"train loss": last.train_loss, "paper's train loss": printed.get("train_loss")}
            | {"val. loss": last.validation_loss, "val. acc.": last.validation_accuracy}
            | {"paper's val. acc.": printed.get("validation_accuracy")}
        )
    return pd.DataFrame(rows)


def long_beside_adam(found: Sequence[Long]) -> pd.DataFrame:
    """Long runs of both phases beside Adam alone from the same seed, at the passes of the shorter.

    A row for each: the weights with the lowest training loss by then, of both; the lowest
    validation losses by then; and whether, with both phases, it is of an epoch of Adam.
    """
    alone = {one[:2] + (one.seed,): one for one in found if one.strategy == "adam"}
    rows = []
    for one in found:
        adam = alone.get((*one[:2], one.seed))
        if adam is None or one is adam:
            continue
        passes = min(one.passes, adam.passes)
        pair = {"": one.within(passes).history, "Adam's ": adam.within(passes).history}
        row = {"data set": one.dataset, "network": one.model, "strategy": one.strategy}
        row |= {"seed": one.seed, "passes": passes}
        for whose, history in pair.items():
            lowest = history.loc[history.train_loss.idxmin()]
            row |= {f"{whose}train loss": lowest.train_loss}
            row |= {f"{whose}val. loss": lowest.validation_loss}
            row |= {f"{whose}lowest val. loss": history.validation_loss.min()}
        phase = pair[""].phase[pair[""].validation_loss.idxmin()]
        rows.append(row | {"by Adam": phase == ADAM})
    return pd.DataFrame(rows)


def long_in_words(beside: pd.DataFrame) -> str:
    """What `long_beside_adam` says of who is lower."""
    said = []
    for _, row in beside.iterrows():
        training, validation = (
            ratio_text(row[loss] / row[f"Adam's {loss}"]) for loss in ("train loss", "val. loss")
        )
        said.append(
            f"*{row.strategy}* of {row['data set']} {row.network} has **{training}** times Adam's "
            f"training loss and **{validation}** times its validation loss after {row.passes:,} "
            "passes"
        )
    return "; ".join(said) or "no run of both phases has begun"


def lowest_in_words(beside: pd.DataFrame) -> str:
    """The lowest validation losses of `long_beside_adam`, and which phase had them; "" for none."""
    if beside.empty:
        return ""
    both, alone = (beside[f"{whose}lowest val. loss"].min() for whose in ("", "Adam's "))
    return (
        f"On the way the lowest validation loss is **{both:.4f}** with both phases and "
        f"**{alone:.4f}** with Adam alone; with both phases it is of an epoch of Adam, before the "
        f"swap, in {beside['by Adam'].sum()} of {len(beside)}"
    )


def without_constants(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """A table without data set, network or seed where that is always the same; that in words."""
    names = [name for name in ("data set", "network", "seed") if name in table]
    same = [name for name in names if table[name].nunique() == 1]
    words = ", ".join(f"{name} {table[name].iloc[0]}" for name in same)
    return unbroken(table.drop(columns=same)), words[:1].upper() + words[1:]


def norms_of(found: Long) -> pd.DataFrame:
    """Loss and gradient norm of a long run's epochs of Adam, in the columns of `traces.COLUMNS`."""
    adam = found.history[found.history.phase == ADAM]
    key = {"dataset": found.dataset, "model": found.model, "seed": found.seed}
    return adam[["epoch", "grad_norm"]].assign(**key, loss=adam.train_loss)


def _words(value: object) -> str:
    if not isinstance(value, Settings):
        return "–" if value is None else str(value)
    given = {field.name: getattr(value, field.name) for field in fields(value)}
    parts = [f"{name.replace('_', ' ')} {of}" for name, of in given.items() if of is not None]
    return f"{type(value).__name__}: {', '.join(parts)}"


def unbroken(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame whose texts have no place for a line break, for narrow tables."""
    unbreakable = str.maketrans({"-": "\N{NON-BREAKING HYPHEN}", " ": "\N{NO-BREAK SPACE}"})
    return frame.map(lambda v: v.translate(unbreakable) if isinstance(v, str) else v)
