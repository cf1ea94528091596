"""In which precision losses and gradients are computed: full, or less for mini-batches."""

from twophase.precision.deviation import deviation, undrawn
from twophase.precision.full import full_precision
from twophase.precision.mini_batches import TF32, AsSet, BFloat16, Full, Precision, Reduced
