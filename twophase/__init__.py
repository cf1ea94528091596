"""Convexity-dependent two-phase training: Adam while the loss is non-convex, then CG.

Source: Hrycej et al., "A Convexity-Dependent Two-Phase Training Algorithm for Deep Neural
Networks", KDIR 2025.
"""

from twophase.adam import AdamSettings
from twophase.cg import CGSettings
from twophase.errors import DataError, InputError, NonFiniteError, TwoPhaseError
from twophase.line_search import GoldenSection
from twophase.losses import mse
from twophase.optimizer import ConjugateGradient
from twophase.switch import Decision, FixedEpoch, GradientNormPeak
from twophase.training import Fit, Record, Trainer, fit

__all__ = [
    "AdamSettings",
    "CGSettings",
    "ConjugateGradient",
    "DataError",
    "Decision",
    "Fit",
    "FixedEpoch",
    "GoldenSection",
    "GradientNormPeak",
    "InputError",
    "NonFiniteError",
    "Record",
    "Trainer",
    "TwoPhaseError",
    "fit",
    "mse",
]
