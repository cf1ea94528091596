"""Convexity-dependent two-phase training: Adam while the loss is non-convex, then full batches.

Source: Hrycej et al., "A Convexity-Dependent Two-Phase Training Algorithm for Deep Neural
Networks", KDIR 2025.
"""

from twophase.adam import AdamSettings
from twophase.automatic import DEFAULT, Automatic
from twophase.directions import (
    BroydenDirection,
    ConjugateDirection,
    LBFGSDirection,
    SelfScaledBFGSDirection,
)
from twophase.errors import DataError, InputError, NonFiniteError, TwoPhaseError
from twophase.least_squares import LeastSquares, LevenbergMarquardt, Term, derivatives
from twophase.line_search import GoldenSection, ParabolaFirst, StrongWolfe
from twophase.losses import mse
from twophase.minimization import Minimum, minimize
from twophase.monitor import Exact, FromBatches
from twophase.optimizers import LBFGS, ConjugateGradient, SecondPhase, SelfScaledBFGS, TwoPhase
from twophase.precision import TF32, BFloat16
from twophase.preconditioner import AdamMoments, Identity
from twophase.record import Record
from twophase.second_phase import SELF_SCALED_BFGS, Descent
from twophase.switching import (
    Decision,
    Fallback,
    FixedEpoch,
    GradientNormPeak,
    NormVersusLoss,
    PeakTest,
    Race,
    SmoothedNormPeak,
)
from twophase.trainer import Trainer
from twophase.training import PAPER, Fit, fit
