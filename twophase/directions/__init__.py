"""Where the second phase goes: descent directions from gradients, a module for each family."""

from twophase.directions.conjugate import BETA_RULES, ConjugateDirection
from twophase.directions.direction import Direction, DirectionRule, State
from twophase.directions.quasi_newton import LBFGSDirection, SelfScaledBFGSDirection
