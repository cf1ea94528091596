"""Time and memory over parameters and examples, their exponents, and what follows on paper."""

import math
from itertools import product

import pandas as pd
import pytest
from matplotlib import pyplot as plt

from twophase.errors import InputError
from twophase.experiments import scale
from twophase.experiments.files import committed_table
from twophase.figures import scale as figures

# parameters and examples of what is measured here
SMALL = 300, 20


@pytest.fixture(scope="module")
def measured():
    return scale.run([300, 900], [20, 60], 1e7)


@pytest.mark.parametrize("wanted", [100, 10_000, 123_456, 10**8])
def test_networks_have_about_as_many_parameters_as_asked_for(wanted):
    width = scale.width_of(wanted)
    made = (scale.INPUTS + 1) * width + (width + 1) * width + width + 1
    assert abs(made - wanted) <= 2 * (2 * width + scale.INPUTS + 3)
    if wanted <= 10_000:
        assert len(scale.problem(wanted, 3).vector.read()) == made


def test_there_is_a_row_for_each_cell_that_may_be_made(measured):
    cells = measured[["parameters", "examples", "kind"]].drop_duplicates()
    assert len(cells) == len(measured) == 4 * len(scale.KINDS)
    assert (measured[measured.kind == scale.ADAM].passes == 3).all()
    # a gradient, and at least three trials of its loss
    assert (measured[measured.kind == "CG (golden section)"].passes >= 6).all()
    assert (measured.peak >= scale.BYTES * measured.parameters).all()
    fewer = scale.run([300], [20], 300 * 20 * 3)
    assert list(fewer.kind) == [kind for kind, price in scale.KINDS.items() if price <= 3]
    with pytest.raises(InputError, match="^kind: 'SGD'"):
        scale.run([300], [20], 1e9, ["SGD"])


def test_exponents_are_those_of_a_power_law():
    cells = product([1e4, 1e5, 1e6], [1e3, 1e4])
    rows = [("a", p, k, 3e-9 * p**0.75 * k**1.25) for p, k in cells]
    rows += [("few", p, 1e3, 1.0) for p in (1e4, 1e5)]
    table = pd.DataFrame(rows, columns=["kind", "parameters", "examples", "seconds"])
    (found,) = scale.exponents(table, least=0).itertuples(index=False)
    assert found[0] == "a" and found[1:4] == pytest.approx((0.75, 1.25, 3e-9))
    assert found.misfit == pytest.approx(1) and found.cells == 6
    assert scale.exponents(table, least=1e9).empty


def test_on_paper_an_epoch_of_adam_exchanges_a_vector_for_each_batch(measured):
    cluster = scale.Cluster(devices=2, operations=1e12, bandwidth=1e9, memory=1e9)
    found = scale.on_paper(measured, 1e6, 10_000, cluster, 1000, SMALL).set_index("kind")
    adam, golden = found.loc[scale.ADAM], found.loc["CG (golden section)"]
    assert adam.computing == pytest.approx(6 * 1e6 * 10_000 / 2e12)
    assert adam.exchange == pytest.approx(10 * 1e6 * 4 / 1e9)
    assert golden.computing == pytest.approx(golden.passes / 3 * adam.computing)
    assert golden.exchange == pytest.approx(1e6 * 8 / 1e9)
    assert adam.over_adam == 1 and adam.fits and golden.fits
    vectors = scale.vectors(measured).set_index("kind").vectors
    assert golden.memory == pytest.approx((1 + vectors["CG (golden section)"]) * 4e6)
    assert not scale.on_paper(measured, 1e9, 10, cluster, large=SMALL).fits.any()


def test_on_paper_each_kind_is_as_in_its_own_large_cells(measured):
    """Also one that was too slow for the largest of all; memory is that of its largest network."""
    slow, large = measured.kind == scale.GAUSS_NEWTON, measured.parameters.max()
    table = measured[~slow | (measured.parameters < large)]
    cluster = scale.Cluster()
    few = 0, table.examples.max()
    found = scale.on_paper(table, 1e9, 1e6, cluster, large=few).set_index("kind")
    assert list(found.index) == list(scale.KINDS)
    held = scale.vectors(table).set_index("kind").vectors
    for kind, row in found.iterrows():
        cells = table[(table.kind == kind) & (table.examples == few[1])].passes
        assert row.passes == cells.median()
        assert (3 * row.fewest, 3 * row.most) == pytest.approx((cells.min(), cells.max()))
        assert row.memory == pytest.approx((1 + held[kind]) * 4e9)
    assert math.isnan(found.balance[scale.ADAM])
    kind = "CG (golden section)"
    equal = scale.on_paper(table, 1e9, found.balance[kind], cluster, large=few)
    equal = equal.set_index("kind").loc[kind]
    assert equal.exchange == pytest.approx(equal.computing)


def test_the_table_on_paper_has_units_and_ranges():
    """Passes of the kept measurements, of at least 50,000 parameters and 1,000 examples."""
    kept = committed_table("reports/reference/scale/scale.csv")
    paper = scale.on_paper(kept, 1e9, 1e9, scale.Cluster())
    shown = scale.to_read(paper).set_index("kind")
    assert list(shown["computing / Adam's"]) == ["1", "4.33 to 5.83", "1", "68.8 to 131"]
    assert list(shown["fits"]) == ["yes", "yes", "yes", "no"]
    adam, golden = shown.loc[scale.ADAM], shown.loc["CG (golden section)"]
    assert (adam["computing, s"], adam["memory, GB"], adam["balance, examples"]) == (
        "469",
        "24",
        "–",
    )
    row = paper[paper.kind == "CG (golden section)"].iloc[0]
    assert golden["computing, s"] == f"{row.computing:,.0f}" and row.computing > 1000
    assert golden["balance, examples"] == "250,000" and 245_000 < row.balance < 255_000
    assert scale.epochs_text(row, 30) == "130 to 175"


def test_the_figure_has_a_mark_for_each_row(measured):
    fig, axes = plt.subplots(1, 2)
    left, right = figures.over_work(axes, measured)
    for ax in (left, right):
        assert sum(len(line.get_xdata()) for line in ax.lines) == len(measured)
        assert ax.get_xlabel() and ax.get_ylabel()
    plt.close(fig)


def test_what_cannot_be_measured_is_one_line(measured):
    for arguments, field in (
        (([-5], [8], 1e9), "parameters"),
        (([100], [0], 1e9), "examples"),
        (([100], [8], math.nan), "most"),
        (([100], [8], 1.0), "most"),
    ):
        with pytest.raises(InputError, match=f"^{field}: "):
            scale.run(*arguments)
    with pytest.raises(InputError, match="^devices: 0"):
        scale.Cluster(devices=0)
    with pytest.raises(InputError, match=r"^table: .* use one with 'Adam \(an epoch\)', too"):
        others = measured[measured.kind != scale.ADAM]
        scale.on_paper(others, 1e9, 1e9, scale.Cluster(), large=SMALL)
