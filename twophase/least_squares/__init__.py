"""Losses that are sums of squares: residuals, their derivatives, Levenberg–Marquardt."""

from twophase.least_squares.levenberg_marquardt import LevenbergMarquardt
from twophase.least_squares.linearization import Linearization
from twophase.least_squares.mean_squares import squares_of
from twophase.least_squares.problem import LeastSquares
from twophase.least_squares.taylor import derivatives
from twophase.least_squares.term import NoJacobianError, Term
