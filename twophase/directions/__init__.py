"""Where the second phase goes: descent directions from gradients, a module for each family."""

from twophase.directions.conjugate import BETA_RULES, ConjugateDirection
from twophase.directions.dense import BroydenDirection
from twophase.directions.direction import Direction, DirectionRule, State
from twophase.directions.limited_memory import LBFGSDirection, SelfScaledBFGSDirection
