"""Settings: text, JSON and comparison of every kind there is, and texts that mean harm."""

import json
import sys
import warnings
from dataclasses import FrozenInstanceError, fields, is_dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import twophase
from twophase import (
    PAPER,
    SELF_SCALED_BFGS,
    TF32,
    AdamMoments,
    AdamSettings,
    Automatic,
    BFloat16,
    BroydenDirection,
    ConjugateDirection,
    Descent,
    Exact,
    Fallback,
    FixedEpoch,
    FromBatches,
    GoldenSection,
    GradientNormPeak,
    Identity,
    LBFGSDirection,
    LevenbergMarquardt,
    NormVersusLoss,
    ParabolaFirst,
    PeakTest,
    Race,
    SelfScaledBFGSDirection,
    SmoothedNormPeak,
    StrongWolfe,
)
from twophase.automatic import DEFAULT
from twophase.directions import BETA_RULES
from twophase.directions.dense import UPDATES
from twophase.errors import InputError
from twophase.experiments.config import RunConfig
from twophase.experiments.executors import Local, Slurm
from twophase.precision import AsSet, Full
from twophase.problems import gpt, images, networks, physics
from twophase.problems.problem import ImageProblem, PhysicsProblem, TextProblem, ToyProblem
from twophase.settings import Settings, from_dict, from_text
from twophase.switching.heuristics import (
    GradientThreshold,
    LossVariance,
    Plateau,
    RelativeImprovement,
)
from twophase.switching.path import PositiveCurvature, ProjectedRate, SignalToNoise

# ---- values that every kind may hold ------------------------------------------------------------


def above(low, high=None, **options):
    """Floats, and whole numbers where there are any."""
    floats = st.floats(
        low, high, exclude_min=True, allow_nan=False, allow_infinity=False, **options
    )
    first = int(low) + 1
    whole = st.integers(first, 10**6) if high is None else st.nothing()
    return floats | whole


def whole(low):
    return st.integers(low, 2**63 - 1)


def maybe(values):
    return st.none() | values


@st.composite
def wolfe(draw):
    c1 = draw(st.floats(0, 0.5, exclude_min=True, exclude_max=True))
    c2 = draw(st.floats(c1, 1, exclude_min=True, exclude_max=True))
    return StrongWolfe(c1, c2, draw(whole(1)))


PARTS = st.floats(0, 1, exclude_min=True)
AT_LEAST_0 = st.floats(0, allow_nan=False, allow_infinity=False)
golden = st.builds(GoldenSection, st.floats(0, 1, exclude_min=True, exclude_max=True), whole(3))
searches = st.recursive(golden | wolfe(), lambda inner: st.builds(ParabolaFirst, inner))
conjugate = st.builds(
    ConjugateDirection, st.sampled_from(list(BETA_RULES)), maybe(whole(1)), maybe(above(0))
)
lbfgs, ssbfgs = (
    st.builds(rule, maybe(whole(1))) for rule in (LBFGSDirection, SelfScaledBFGSDirection)
)
identity, moments = st.just(Identity()), st.builds(AdamMoments, AT_LEAST_0, whole(1))
dense = st.builds(BroydenDirection, st.sampled_from(list(UPDATES)))
automatic = st.builds(Automatic, identity | moments, AT_LEAST_0)
squares = st.builds(LevenbergMarquardt, above(0), AT_LEAST_0, AT_LEAST_0)
directions = conjugate | lbfgs | ssbfgs | dense
descents = st.builds(Descent, directions, searches, identity | moments, AT_LEAST_0)
betas = st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2)
shares = st.floats(0, 1, exclude_min=True, exclude_max=True)
precisions = {AsSet: st.just(AsSet()), Full: st.just(Full())}
precisions |= {kind: st.builds(kind, shares) for kind in (BFloat16, TF32)}
adams = st.builds(
    *(AdamSettings, above(0, 1e30), maybe(whole(1)), betas, above(0)),
    st.one_of(*precisions.values()),
)
tests = st.builds(PeakTest, PARTS, above(1), st.floats(0, 1), AT_LEAST_0)
races = st.builds(Race, maybe(whole(1)), maybe(whole(1)), shares, above(1))
fallbacks = st.builds(Fallback, whole(1), whole(1), above(1))
image_problems = st.builds(
    ImageProblem,
    st.sampled_from(list(images.DATASETS)),
    st.sampled_from(list(networks.MODELS)),
    maybe(whole(1)),
    maybe(whole(0)),
)
texts = st.builds(
    TextProblem,
    st.just("topics"),
    st.sampled_from(list(gpt.GPT_MODELS)),
    whole(1),
    maybe(whole(1)),
    maybe(whole(0)),
)
equations = st.builds(PhysicsProblem, st.sampled_from(list(physics.PROBLEMS)))
rules = st.builds(GradientNormPeak, PARTS) | st.builds(SmoothedNormPeak, tests) | races
KINDS = {
    GoldenSection: golden,
    StrongWolfe: wolfe(),
    ParabolaFirst: st.builds(ParabolaFirst, searches),
    ConjugateDirection: conjugate,
    LBFGSDirection: lbfgs,
    SelfScaledBFGSDirection: ssbfgs,
    Identity: identity,
    AdamMoments: moments,
    BroydenDirection: dense,
    Descent: descents,
    LevenbergMarquardt: squares,
    Automatic: automatic,
    AdamSettings: adams,
    **precisions,
    Fallback: fallbacks,
    PeakTest: tests,
    Race: races,
    Exact: st.just(Exact()),
    FromBatches: st.just(FromBatches()),
    PositiveCurvature: st.builds(PositiveCurvature, whole(1)),
    ProjectedRate: st.builds(ProjectedRate, above(0), st.floats(0, 1, exclude_max=True)),
    SignalToNoise: st.builds(SignalToNoise, above(1), whole(1)),
    Plateau: st.builds(Plateau, whole(0), st.floats(0, 1, exclude_max=True)),
    LossVariance: st.builds(LossVariance, above(0), whole(2)),
    RelativeImprovement: st.builds(RelativeImprovement, above(0), whole(1)),
    GradientThreshold: st.builds(GradientThreshold, above(0)),
    GradientNormPeak: st.builds(GradientNormPeak, PARTS),
    SmoothedNormPeak: st.builds(SmoothedNormPeak, tests),
    NormVersusLoss: st.builds(NormVersusLoss, tests),
    FixedEpoch: st.builds(FixedEpoch, whole(1)),
    ImageProblem: image_problems,
    PhysicsProblem: equations,
    ToyProblem: st.builds(ToyProblem, st.floats(-5, 5)),
    TextProblem: texts,
    Local: st.builds(Local, maybe(whole(1)), whole(1)),
    Slurm: st.builds(Slurm, st.text(), whole(1), whole(1), whole(1), whole(0), whole(1)),
    RunConfig: st.builds(
        RunConfig,
        problem=image_problems | equations | texts,
        epochs=whole(1),
        adam=adams,
        second=maybe(descents | squares | automatic),
        switch=rules,
        fallback=maybe(fallbacks),
        seed=whole(0),
        dtype=st.sampled_from(["float32", "float64"]),
        freeze=st.booleans(),
    ),
}
# methods to compare with have tests of their own
ELSEWHERE = ("twophase.experiments.competitors",)


def test_no_kind_is_forgotten():
    known = {
        kind
        for kind in Settings.kinds.values()
        if is_dataclass(kind)
        and kind.__module__.startswith("twophase.")
        and kind.__module__ not in ELSEWHERE
    }
    assert known == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30)
@given(data=st.data())
def test_settings_survive_text_and_json(kind, data):
    chosen = data.draw(KINDS[kind])
    assert type(chosen) is kind
    for again in (from_text(repr(chosen)), from_dict(json.loads(json.dumps(chosen.to_dict())))):
        assert type(again) is kind
        assert again == chosen
        assert hash(again) == hash(chosen)
        assert repr(again) == repr(chosen)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30)
@given(data=st.data())
def test_settings_are_equal_where_their_fields_are(kind, data):
    one, two = data.draw(KINDS[kind]), data.draw(KINDS[kind])
    names = [field.name for field in fields(kind) if field.init]
    same = all(getattr(one, name) == getattr(two, name) for name in names)
    assert (one == two) == same
    assert one != "text" and one.to_dict() != two.to_dict() or same


def test_defaults_are_equal_to_what_they_stand_for():
    assert StrongWolfe() == StrongWolfe(c2=0.9) == StrongWolfe(1e-4, 0.9, 30) != StrongWolfe(c2=0.1)
    assert GoldenSection() == GoldenSection(rtol=1e-2) != GoldenSection(rtol=1e-8)
    assert ParabolaFirst() == ParabolaFirst(StrongWolfe(c2=0.4)) != ParabolaFirst(StrongWolfe())
    assert ConjugateDirection() == ConjugateDirection("PR+") != ConjugateDirection("PR")
    assert LBFGSDirection() != SelfScaledBFGSDirection()
    assert DEFAULT == Automatic(AdamMoments()) != Automatic(Identity())
    assert SELF_SCALED_BFGS == Descent(SelfScaledBFGSDirection(), StrongWolfe(), AdamMoments())
    assert len({StrongWolfe(), StrongWolfe(c2=0.9), ParabolaFirst(), ParabolaFirst()}) == 2
    text = 'Descent(ConjugateDirection("PR+"), GoldenSection(0.01))'
    assert from_text(text) == PAPER["second"]


def test_settings_do_not_change():
    for frozen in (StrongWolfe(), ConjugateDirection(), DEFAULT, AdamSettings(), PeakTest()):
        with pytest.raises(FrozenInstanceError):
            setattr(frozen, fields(frozen)[0].name, 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("None", None),
        ("21", 21),
        ("GoldenSection", GoldenSection()),
        (" GoldenSection() ", GoldenSection()),
        ("GoldenSection(1e-3)", GoldenSection(1e-3)),
        ("GoldenSection(\n  rtol=1e-3,\n  max_evaluations=7,\n)", GoldenSection(1e-3, 7)),
        ("ParabolaFirst(StrongWolfe(c2=0.2))", ParabolaFirst(StrongWolfe(c2=0.2))),
        ("AdamSettings(betas=(0.5, 0.9))", AdamSettings(betas=(0.5, 0.9))),
        ("AdamSettings(batch_size=None)", AdamSettings(batch_size=None)),
    ],
)
def test_texts_as_one_would_write_them(text, expected):
    assert from_text(text) == expected


def test_what_json_cannot_hold_is_refused():
    def rule(point, last, inverse):
        raise NotImplementedError

    with pytest.raises(InputError, match="^direction: .* is not allowed"):
        Descent(rule, GoldenSection()).to_dict()


def test_what_rules_have_seen_is_no_part_of_them():
    seen = [GradientNormPeak(0.8), SmoothedNormPeak(), NormVersusLoss(), FixedEpoch(9)]
    for rule in seen:
        before = rule.to_dict()
        rule.update(1.0, 5.0)
        assert rule.to_dict() == before
        assert from_text(repr(rule)) == from_dict(before) == rule
        assert not from_dict(before).update(1.0, 4.9).switch, "it has not seen the 5"
    fallback = Fallback()
    fallback.adam(1.0, 1.0, 3)
    assert fallback.to_dict() == Fallback().to_dict() and fallback == Fallback()
    for text in ("GradientNormPeak(peak=5.0)", "Fallback(_spent=9)", "FixedEpoch(2, seen=1)"):
        with pytest.raises(InputError, match="^rule: '(peak|_spent|seen)' is not allowed"):
            from_text(text, "rule")
    with pytest.raises(InputError, match="^settings: 'norms' is not allowed"):
        from_dict({"type": "SmoothedNormPeak", "norms": [1.0]})


# ---- texts that mean harm, or are just wrong ----------------------------------------------------

HARM = "__import__('pathlib').Path({path!r}).touch()"
HARMFUL = [
    HARM,
    "GoldenSection(rtol=" + HARM + ")",
    "GoldenSection(*[" + HARM + "])",
    "GoldenSection(**{{'rtol': " + HARM + "}})",
    "ParabolaFirst(search=GoldenSection(" + HARM + "))",
    "(lambda: " + HARM + ")()",
    "GoldenSection(rtol=(lambda: " + HARM + ")())",
    "[" + HARM + " for _ in (1,)]",
    "GoldenSection(rtol=[" + HARM + " for _ in (1,)][0])",
    "{{" + HARM + ": 1}}",
    "(path := " + HARM + ")",
    "f'{{" + HARM + "}}'",
    "None or " + HARM,
    "[0][" + HARM + "]",
    "1 if " + HARM + " else 2",
    "GoldenSection().__class__.__init__.__globals__",
    "GoldenSection.__subclasses__()",
    "GoldenSection()()",
    "GoldenSection().rtol",
    "Settings.kinds.clear()",
    "open({path!r}, 'w')",
    "exec('open({path!r}, \"w\")')",
    "eval('1')",
    "print('harm')",
    "Line()",
    "Settings()",
    "object()",
    "Path",
    "import os",
    "x = 1",
    "GoldenSection(); " + HARM,
    "GoldenSection()\n" + HARM,
    "await x",
    "yield",
    "GoldenSection(",
    "",
    "   ",
    "# GoldenSection()",
    "\0",
    "\ud800",
    "\ufeffGoldenSection()",
    "1 + 2 * 3",
    "...(1)",
]


@pytest.mark.parametrize("text", HARMFUL)
def test_no_text_runs_code(text, tmp_path, capsys):
    path = tmp_path / "harm"
    kinds = dict(Settings.kinds)
    with pytest.raises(InputError, match="^line_search: "):
        from_text(text.format(path=str(path)) if "{" in text else text, "line_search")
    assert not path.exists()
    assert capsys.readouterr() == ("", "")
    assert Settings.kinds == kinds


DEEP = {
    "brackets": "[" * 10**5,
    "parentheses": "(" * 10**5 + "1" + ")" * 10**5,
    "calls in calls": "ParabolaFirst(" * 10**4 + ")" * 10**4,
    "calls of calls": "GoldenSection" + "()" * 10**5,
    "signs": "-" * 10**5 + "1",
    "sums": "1+" * 10**5 + "1",
    "sums of a field": "GoldenSection(rtol=" + "1+" * 10**5 + "1)",
    "signs of a field": "GoldenSection(rtol=" + "-" * 10**5 + "1)",
    "attributes": "GoldenSection" + ".rtol" * 10**5,
    "items": "GoldenSection" + "[0]" * 10**5,
    "choices": "1 if 1 else " * 10**5 + "1",
    "functions": "lambda: " * 10**5 + "1",
    "negations": "not " * 10**5 + "1",
    "digits": "9" * 10**5,
}


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP)
def test_no_depth_is_too_deep(text):
    limit = sys.getrecursionlimit()
    with pytest.raises(InputError) as error:
        from_text(text, "line_search")
    assert error.value.field == "line_search"
    assert sys.getrecursionlimit() == limit


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("part", "GoldenSection(tolerance=0.1)"),
        ("part", "GoldenSection(0.1, 9, 9)"),
        ("part", "GoldenSection(0.1, rtol=0.1)"),
        ("part", "FixedEpoch"),
        ("part", "FixedEpoch()"),
        ("part", "Descent(ConjugateDirection())"),
        ("part", "Golden()"),
        ("rtol", "GoldenSection('1e-3')"),
        ("rtol", "GoldenSection(True)"),
        ("rtol", "GoldenSection(None)"),
        ("rtol", "GoldenSection(1e-3 + 2j)"),
        ("rtol", "GoldenSection(1e999)"),
        ("rtol", "GoldenSection(StrongWolfe())"),
        ("max_evaluations", "GoldenSection(max_evaluations=5.0)"),
        ("max_evaluations", f"GoldenSection(max_evaluations={2**63})"),
        ("c2", "StrongWolfe(c1=0.1, c2=0.05)"),
        ("search", "ParabolaFirst(3)"),
        ("search", "ParabolaFirst(None)"),
        ("search", "ParabolaFirst(GradientNormPeak())"),
        ("search", "ParabolaFirst(search=ConjugateDirection('FR'))"),
        ("beta", "ConjugateDirection('pr')"),
        ("beta", "ConjugateDirection(['PR'])"),
        ("beta", "ConjugateDirection({'PR'})"),
        ("restart_every", "ConjugateDirection(restart_every=0)"),
        ("history_size", "LBFGSDirection(-1)"),
        ("direction", "Descent('cg', GoldenSection())"),
        ("direction", "Descent(GoldenSection(), GoldenSection())"),
        ("line_search", "Descent(ConjugateDirection(), 'golden')"),
        ("line_search", "Descent(ConjugateDirection(), ConjugateDirection())"),
        ("preconditioner", "Descent(ConjugateDirection(), GoldenSection(), 'adam')"),
        ("tolerance_grad", "Descent(ConjugateDirection(), GoldenSection(), tolerance_grad=-1)"),
        ("betas", "AdamSettings(betas=0.9)"),
        ("betas", "AdamSettings(betas=(0.9, 'x'))"),
        ("factor", "GradientNormPeak('0.9')"),
        ("test", "SmoothedNormPeak(3)"),
        ("test", "NormVersusLoss(GoldenSection())"),
        ("swap_epoch", "FixedEpoch(0.5)"),
        ("growth", "Fallback(growth=1)"),
        ("dataset", "ImageProblem('nowhere')"),
        ("equation", "PhysicsProblem('heat')"),
    ],
)
def test_wrong_texts_name_the_field(field, text):
    with pytest.raises(InputError) as error:
        from_text(text, "part")
    assert error.value.field == field
    assert str(error.value).startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("field", "content"),
    [
        ("part", {}),
        ("part", {"rtol": 0.1}),
        ("part", {"type": None}),
        ("part", {"type": ["GoldenSection"]}),
        ("part", {"type": "Settings"}),
        ("part", {"type": "Competitor"}),
        ("part", {"type": "Stateful"}),
        ("part", {"type": "__import__"}),
        ("part", {"type": "FixedEpoch"}),
        ("part", {"type": "GoldenSection", "tolerance": 1e-3}),
        ("part", [{"type": "Golden"}]),
        ("rtol", {"type": "GoldenSection", "rtol": {"type": "StrongWolfe"}}),
        ("rtol", {"type": "GoldenSection", "rtol": [0.1]}),
        ("rtol", {"type": "GoldenSection", "rtol": {}}),
        ("c1", {"type": "ParabolaFirst", "search": {"type": "StrongWolfe", "c1": "x"}}),
    ],
)
def test_wrong_json_names_the_field(field, content):
    with pytest.raises(InputError) as error:
        from_dict(content, "part")
    assert error.value.field == field


def test_json_too_deep_is_refused():
    content = 1.0
    for _ in range(10**4):
        content = {"type": "ParabolaFirst", "search": content}
    with pytest.raises(InputError, match="^(part|search): "):
        from_dict(content, "part")


@given(text=st.text(max_size=40) | st.text("GoldenSection()=,.[]{}'\"0123e-+*:\n ", max_size=40))
def test_any_other_text_is_a_value_or_an_input_error(text):
    try:
        from_text(text)
    except InputError as error:
        assert error.field in {"settings", *(f.name for f in fields(GoldenSection))}


def test_what_python_warns_of_in_a_text_is_an_input_error_alone():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(InputError, match="^settings: '1if x' "):
            from_text("1if x")
    assert not caught


def test_classes_of_users_are_known_by_their_names():
    class Mine(GoldenSection):
        pass

    try:
        mine = Mine(rtol=0.1)
        assert type(from_dict(mine.to_dict())) is Mine
        assert mine != GoldenSection(rtol=0.1)
        assert type(from_text("Mine(0.1)")) is Mine
    finally:
        del Settings.kinds["Mine"]
    assert isinstance(twophase.GoldenSection, type)
