"""Time and memory of an epoch of Adam and of second phases over parameters and examples.

OMP_NUM_THREADS=1 python benchmarks/scale.py   # half an hour or more; 10 GB of memory

See `twophase.experiments.scale` and notebook 20.
"""

import argparse
from pathlib import Path

from twophase.experiments import scale
from twophase.experiments.files import write_atomically, write_json
from twophase.experiments.provenance import load, of_script

OUT = Path(__file__).resolve().parent.parent / "reports" / "reference" / "scale"
PARAMETERS = [10**4, 10**5, 10**6, 10**7, 10**8]
EXAMPLES = [10**2, 10**3, 10**4, 10**5, 10**6]
# In gradients times parameters times examples: ten seconds or so.
MOST = 5e10


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=int, nargs="+", default=PARAMETERS)
    parser.add_argument("--examples", type=int, nargs="+", default=EXAMPLES)
    parser.add_argument("--most", type=float, default=MOST, help="see twophase.experiments.scale")
    parser.add_argument("--kinds", nargs="+", default=list(scale.KINDS))
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    facts = of_script("scale", arguments) | {"load": load()}
    table = scale.run(options.parameters, options.examples, options.most, options.kinds)
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out / "scale.csv", table.to_csv(index=False, float_format="%.5g"))
    write_json(options.out / "provenance.json", facts)
    print(scale.exponents(table).to_string(index=False, float_format="{:.3g}".format))


if __name__ == "__main__":
    main()
