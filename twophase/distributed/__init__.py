"""One training in several processes: what they add up, agree on, and how they are started."""

from twophase.distributed.processes import (
    ALONE,
    Processes,
    adds_up,
    apart,
    bare,
    check_shared,
    fingerprint,
    processes,
)
