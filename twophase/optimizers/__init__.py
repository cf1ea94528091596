"""The method as `torch.optim.Optimizer`s, for a training loop of one's own."""

from twophase.optimizers.second_phase import (
    LBFGS,
    ConjugateGradient,
    SecondPhase,
    SelfScaledBFGS,
    StepResult,
)
from twophase.optimizers.two_phase import TwoPhase
