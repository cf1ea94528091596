"""Convexity-dependent two-phase training: Adam, then conjugate gradient."""
