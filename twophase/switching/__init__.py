"""When to change the phase: rules that end Adam, the race that measures, and the way back."""

from twophase.switching.course import Action, Course, Move, Told, course
from twophase.switching.fallback import Fallback
from twophase.switching.heuristics import (
    GradientThreshold,
    LossVariance,
    Plateau,
    RelativeImprovement,
)
from twophase.switching.path import PositiveCurvature, ProjectedRate, SignalToNoise
from twophase.switching.peak import PeakTest
from twophase.switching.race import Race, planned
from twophase.switching.rules import (
    Decision,
    FixedEpoch,
    GradientNormPeak,
    NormVersusLoss,
    SmoothedNormPeak,
    SwitchRule,
)
