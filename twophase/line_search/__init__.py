"""How far to go along a direction: line searches, a module for each family."""

from twophase.line_search.golden_section import GoldenSection
from twophase.line_search.line import Line, LineSearch, SearchResult, SearchStatus
from twophase.line_search.wolfe import ParabolaFirst, StrongWolfe
