"""Other ways to the global minimum, beside two-phase training; see notebook 18.

    python benchmarks/global_search.py --out FOLDER

leaves `searches.csv`, a row for each problem, number of parameters, seed and method, `ends.csv`, a
row for each start of the local methods, and `provenance.json`. What is there is not made again.
"""

import argparse
import json
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pandas as pd
import torch

from twophase.experiments import comparison
from twophase.experiments.files import write_atomically, write_json
from twophase.experiments.global_search import LOCAL, METHODS
from twophase.experiments.global_search_results import census, searches
from twophase.experiments.provenance import command
from twophase.problems.multimodal import PROBLEMS

CASE = ["problem", "parameters", "method", "seed"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--parameters", nargs="+", type=int, default=list(range(1, 11)))
    parser.add_argument("--seeds", type=int, default=5, help="of the searches: 0, 1, ...")
    parser.add_argument("--draws", type=int, default=3, help="seeds of the census")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--evaluations", type=int, default=3000)
    parser.add_argument("--starts", type=int, default=20, help="of each draw in the census")
    parser.add_argument("--out", type=Path, default=Path("reports/reference/global-search"))
    chosen, began = parser.parse_args(arguments), time.perf_counter()
    chosen.out.mkdir(parents=True, exist_ok=True)
    notes = chosen.out / "provenance.json"
    kept = json.loads(notes.read_text()) if notes.exists() else {"commands": []}
    facts = comparison.facts([], "cpu") | {"command": command("global_search", arguments)}
    kept["commands"].append(facts)
    # now, as it may be stopped
    write_json(notes, kept)
    cases = list(product(chosen.problems, chosen.parameters, chosen.methods))
    for problem, size, name in cases:
        for seed in range(chosen.seeds):
            made = _missing(chosen.out / "searches.csv", problem, size, name, seed)
            if made is not None:
                one = searches([problem], [size], [seed], chosen.evaluations, {name: METHODS[name]})
                _append(chosen.out / "searches.csv", made, pd.DataFrame(one))
    for (problem, size, name), seed in product(cases, range(chosen.draws)):
        made = _missing(chosen.out / "ends.csv", problem, size, name, seed)
        if made is not None and name in LOCAL:
            one = census([problem], [size], [seed], chosen.starts, {name: LOCAL[name]})
            _append(chosen.out / "ends.csv", made, pd.concat(one))
    facts["wall_seconds"] = round(time.perf_counter() - began)
    write_json(notes, kept)


def _missing(path: Path, *case: object) -> pd.DataFrame | None:
    """The table so far; None where it has the case."""
    table = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=CASE)
    return None if case in set(table[CASE].itertuples(index=False, name=None)) else table


def _append(path: Path, before: pd.DataFrame, rows: pd.DataFrame) -> None:
    if len(rows):
        rows = rows[[*CASE, *rows.columns.difference(CASE, sort=False)]]
        whole = pd.concat([before, rows]) if len(before) else rows
        write_atomically(path, whole.to_csv(index=False, float_format="%.6g"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
