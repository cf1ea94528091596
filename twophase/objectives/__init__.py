"""Losses as functions of one parameter vector: of examples in memory or read, and of closures."""

from twophase.objectives.closure import ClosureObjective
from twophase.objectives.full_batch import FullBatch
from twophase.objectives.streamed import Streamed
