"""The gap between training and validation over Q, on digits and MNIST: the reference results.

    python benchmarks/generalisation.py --work FOLDER --out reports/reference/generalisation

MNIST is read from the data folder. What is finished in the folder of the runs is not run again.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from twophase.experiments import comparison, generalisation
from twophase.experiments.branches import Place
from twophase.experiments.files import write_atomically, write_json
from twophase.experiments.provenance import command


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all settings, or those of the named data sets and networks, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, help="folder of the runs; default: OUT/runs")
    parser.add_argument("--data", type=Path, help="data folder")
    parser.add_argument("--dataset", nargs="+", default=list(generalisation.SIZES))
    parser.add_argument("--model", nargs="+")
    parser.add_argument("--passes", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args(arguments)
    place = Place(chosen.work or chosen.out / "runs", chosen.data, "cpu")
    began = time.perf_counter()
    problems = generalisation.problems(chosen.dataset, chosen.model)
    table = generalisation.run(problems, chosen.passes, chosen.seeds, place)
    facts = comparison.facts([], "cpu", seconds=time.perf_counter() - began)
    facts["command"] = command("generalisation", arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    write_atomically(
        chosen.out / "generalisation.csv", table.to_csv(index=False, float_format="%.6g")
    )
    write_json(chosen.out / "provenance.json", facts)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
