"""Figures, a module for each kind of result; each draws on the axes it is given and returns them.

Labels that a function does not set, titles and legends are the caller's.
"""
