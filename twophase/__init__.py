"""Convexity-dependent two-phase training: Adam while the loss is non-convex, then CG.

Source: Hrycej et al., "A Convexity-Dependent Two-Phase Training Algorithm for Deep Neural
Networks", KDIR 2025.
"""

from twophase.adam import AdamSettings
from twophase.cg import CGSettings
from twophase.errors import DataError, InputError, NonFiniteError, TwoPhaseError
from twophase.fallback import Fallback
from twophase.line_search.golden_section import GoldenSection
from twophase.losses import mse
from twophase.optimizer import ConjugateGradient
from twophase.record import Record
from twophase.switch import (
    Decision,
    FixedEpoch,
    GradientNormPeak,
    NormVersusLoss,
    PeakTest,
    SmoothedNormPeak,
)
from twophase.training import Fit, Trainer, fit

__all__ = [
    "AdamSettings",
    "CGSettings",
    "ConjugateGradient",
    "DataError",
    "Decision",
    "Fallback",
    "Fit",
    "FixedEpoch",
    "GoldenSection",
    "GradientNormPeak",
    "InputError",
    "NonFiniteError",
    "NormVersusLoss",
    "PeakTest",
    "Record",
    "SmoothedNormPeak",
    "Trainer",
    "TwoPhaseError",
    "fit",
    "mse",
]
