"""Full precision where losses are compared that hardly differ, whatever torch is set to."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, NamedTuple

import torch

_C: Any = torch._C
# What has a precision of its own since torch 2.9, each after what it falls back on. torch.backends
# does not reach all of them: its mkldnn.fp32_precision reads one and sets another.
SETTINGS = [
    *(("generic", "all"), ("cuda", "all"), ("mkldnn", "all")),
    *(("cuda", "matmul"), ("cuda", "conv"), ("cuda", "rnn")),
    *(("mkldnn", "matmul"), ("mkldnn", "conv"), ("mkldnn", "rnn")),
]
if not hasattr(_C, "_set_fp32_precision_setter"):
    SETTINGS = []
DEVICES = ("cpu", "cuda")
# float64's smallest number above 0
_SUBNORMAL = math.ulp(0.0)


class _Before(NamedTuple):
    """What torch was set to: by its newer functions, other than "none", and by its older ones."""

    own: dict[tuple[str, str], str]
    products: str
    cudnn: bool


# What each one that lasts is to set again at its end. torch's settings are those of the process,
# and of threads that overlap the first to begin may be the first to end.
_LASTING: dict[object, _Before] = {}
_LOCK = Lock()


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute float32 as float32: no TF32 or bfloat16 inside of operations, and no autocast.

    It is a context, or a decorator `@full_precision()`, for matrix products, convolutions and
    recurrent layers on CPU and CUDA. Line searches compare losses that differ by less than TF32 (10
    bits of mantissa) or bfloat16 (7) resolve. Afterwards all is as it was, by whichever of torch's
    functions, also after an exception. It may be nested and takes about 10 microseconds. Other
    threads compute in full precision meanwhile, too, but keep their autocast.

    Subnormal numbers (float32: below 1.2e-38) count as 0 inside on CPUs, in this thread: gradients
    at a loss of 1e-30 took 15 times as long with them.

    Autocast that is opened inside counts, and so does what the environment orders
    (NVIDIA_TF32_OVERRIDE, ONEDNN_DEFAULT_FPMATH_MODE).
    """
    key = object()
    with _LOCK:
        _LASTING[key] = _make_full()
    casting = [device for device in DEVICES if torch.is_autocast_enabled(device)]
    for device in casting:
        torch.set_autocast_enabled(device, False)
    flushed = _SUBNORMAL + _SUBNORMAL == 0  # torch does not tell
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)
        for device in casting:
            torch.set_autocast_enabled(device, True)
        with _LOCK:
            later = list(_LASTING)[list(_LASTING).index(key) + 1 :]
            before = _LASTING.pop(key)
            if later:
                _LASTING[later[0]] = before
            else:
                _restore(before)


def _make_full() -> _Before:
    """Set all to full precision; returns what it was before."""
    own = {}
    for setting in SETTINGS:
        precision = _C._get_fp32_precision_getter(*setting)
        if precision != "none":
            own[setting] = precision
            # what falls back on it shows its own then
            _C._set_fp32_precision_setter(*setting, "none")
    # torch refuses to say what its older functions have set where the newer settings disagree:
    # "none" agrees with any precision of products, and two layers alike with one of both
    products = torch.get_float32_matmul_precision()
    tf32 = own.get(("cuda", "rnn")) == "tf32"
    for layer in ("conv", "rnn") if tf32 else ():
        _C._set_fp32_precision_setter("cuda", layer, "tf32")
    try:
        cudnn = _C._get_cudnn_allow_tf32()
    except RuntimeError:
        cudnn = not tf32
    allow_tf32(False)
    return _Before(own, products, cudnn)


def _restore(before: _Before) -> None:
    # the older functions change newer settings, too
    torch.set_float32_matmul_precision(before.products)
    _C._set_cudnn_allow_tf32(before.cudnn)
    for setting in SETTINGS:
        _C._set_fp32_precision_setter(*setting, before.own.get(setting, "none"))


def allow_tf32(allow: bool) -> None:
    """Whether products and convolutions may be in TF32, by torch's older functions."""
    torch.set_float32_matmul_precision("high" if allow else "highest")
    _C._set_cudnn_allow_tf32(allow)
