"""A sum of squares at a point, as if its residuals were linear."""

from typing import NamedTuple

import torch
from torch import Tensor


class Linearization(NamedTuple):
    """Residuals ρ [R] at x [P] and their Jacobian J [R, P]; the loss is ‖ρ‖².

    `gradient` is the loss's, 2 J'ρ [P], and `squared` J'J [P, P], or None where there are fewer
    residuals than parameters or it takes too long. J is None where it is too large to be kept;
    beside `squared` it has only the rows that this process makes, which `own` [R] tells.
    """

    x: Tensor
    residuals: Tensor
    gradient: Tensor
    jacobian: Tensor | None
    squared: Tensor | None = None
    own: Tensor | None = None

    @property
    def finite(self) -> bool:
        """Whether all of it is finite."""
        parts = self.residuals, self.gradient, self.jacobian, self.squared
        return all(bool(part.isfinite().all()) for part in parts if part is not None)

    @property
    def value(self) -> float:
        """The loss."""
        return torch.dot(self.residuals, self.residuals).item()
