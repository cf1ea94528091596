"""Figures of physics-informed networks: a line for each method, its lowest error so far."""

import pandas as pd
from matplotlib import pyplot as plt

from twophase.figures import physics


def test_a_line_for_each_method_over_passes_and_seconds():
    methods = list(physics.STYLES)
    rows = [(name, 3 * n, n / 9, 1 / (n % 4 + 1)) for name in methods for n in range(1, 7)]
    curves = pd.DataFrame(rows, columns=["method", "passes", "seconds", "error"])
    fig, axes = plt.subplots(1, 2)
    physics.error_curves(axes, curves)
    for ax, cost in zip(axes, ("passes", "seconds"), strict=True):
        lines = {line.get_label(): line for line in ax.get_lines()}
        assert list(lines) == methods
        of = curves[curves.method == methods[2]]
        x, y = lines[methods[2]].get_data()
        assert list(x) == list(of[cost]) and list(y) == list(of.error.cummin())
        assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    looks = {(str(look["linestyle"]), look.get("linewidth")) for look in physics.STYLES.values()}
    assert len(looks) == len(methods)
    plt.close(fig)
