"""Whether a sequence of gradient norms has risen clearly, peaked, and fallen: a running test."""

import heapq
import math
import sys
from bisect import bisect_right, insort
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from statistics import median

from twophase.errors import check_number
from twophase.settings import Settings

# The median of absolute deviations of a normal distribution, in standard deviations.
NORMAL_MAD = 0.6745
# A median of so many values in a row removes a spike.
SPIKE = 5
# Of ordered entries; a larger one is cut in half.
LARGEST_BLOCK = 1000
# A key, and how many came before it: equal keys are in the order in which they came.
Entry = tuple[float, int]
# Means are over up to a fifth of the values, and at most so many.
PARTS, WIDEST = 5, 32
# Logarithms that differ by less are equal: medians come again, and a unit changes their rounding.
ROUNDING = 1e-12
# The noise of n values counts as 1 + 12 / n times what is found of it.
FEW = 12


@dataclass(frozen=True)
class PeakTest(Settings):
    """When a sequence of gradient norms counts as risen, peaked and fallen.

    The logarithms of the norms are smoothed: medians of five in a row, then means of w of them,
    backwards, with w the largest power of 2 up to a fifth of the sequence, at most 32. With s
    the smoothed logarithms of n norms, p the place of their maximum (counted from 1), and e the
    standard error of a difference of two of them, by the noise that second differences of the
    logarithms show, the test asks for

    - a clear rise before the peak: s_p − min s_i >= ln(rise) + confidence · e over i <= p;
    - a fall: s_n <= s_p + ln(factor) − confidence / 2 · e, at n >= (1 + share) p.

    Everything grows with the time that the peak took, so that neither a dip after the
    initialisation nor the learning rate, which stretches the whole curve, decides. An update takes
    O(log n), and where keys do not come in order O(√n) at worst, of quick moves in memory.

    By default `factor` is the paper's gn_fact; a `rise` of 2 is more than the dips after the
    initialisation, and far less than the tenfold rises of the paper's Figure 5; a `share` of 0.2
    leaves time to see the fall within half again of the peak's epoch; noise exceeds a `confidence`
    of 3 standard errors once in a thousand times, and the half of it, where a rise is proved
    already, once in fifteen.
    """

    factor: float = 0.9
    rise: float = 2.0
    share: float = 0.2
    confidence: float = 3.0

    def __post_init__(self) -> None:
        check_number("factor", self.factor, above=0, maximum=1)
        check_number("rise", self.rise, above=1)
        check_number("share", self.share, minimum=0, maximum=1)
        check_number("confidence", self.confidence, minimum=0)


class PeakSeen:
    """The norms that a `PeakTest` has seen, in the order of their keys, and whether it holds."""

    def __init__(self, test: PeakTest):
        self.test = test
        self.width = 1
        self.noise = RunningMedian()
        # keys, each with its place in the lists below, which are as things came
        self.order = Ordered()
        self.logs: list[float] = []
        self.medians: list[float] = []  # with those before it in the order when it came
        self._forget()

    def __len__(self) -> int:
        return len(self.order)

    def rank(self, key: float) -> int:
        """How many keys are at or below this one."""
        return self.order.rank((key, len(self.order)))

    def add(self, key: float, norm: float) -> tuple[bool, str]:
        """Take a norm at the place of its key; whether the test holds, in words."""
        entry = key, len(self.order)
        self.order.insert(entry)
        # a norm of zero is below every other, and its logarithm must be a number
        self.logs.append(math.log(max(norm, sys.float_info.min)))
        near = self._before(entry, SPIKE, self.logs)
        self.medians.append(median(near))
        if len(near) > 2:
            self.noise.add(abs(near[-3] - 2 * near[-2] + near[-1]))
        if self.width < WIDEST and 2 * self.width * PARTS <= len(self):
            self.width *= 2
            self._forget()
            for each in self.order:
                self._take(each)
        else:
            self._take(entry)
        return self._decide()

    def _forget(self) -> None:
        self.top = self.last = (-math.inf, -math.inf)  # value and key
        # each is below all that come before it in the order
        self.low_keys: list[float] = []
        self.low_values: list[float] = []

    def _before(self, entry: Entry, count: int, of: list[float]) -> list[float]:
        """The last `count` values of a list up to an entry of the order."""
        return [of[came] for _, came in self.order.up_to(entry, count)]

    def _take(self, entry: Entry) -> None:
        """Smooth the value of an entry."""
        key, part = entry[0], self._before(entry, self.width, self.medians)
        value = sum(part) / len(part)
        equal = abs(value - self.top[0]) <= ROUNDING
        if key < self.top[1] if equal else value > self.top[0]:
            self.top = value, key
        if key >= self.last[1]:
            self.last = value, key
        i = bisect_right(self.low_keys, key)
        if i == 0 or value < self.low_values[i - 1]:
            end = i
            while end < len(self.low_keys) and self.low_values[end] >= value:
                end += 1
            self.low_keys[i:end], self.low_values[i:end] = [key], [value]

    @property
    def deviation(self) -> float:
        """The standard deviation of the noise of the logarithms, with a margin for few of them."""
        # second differences of the noise have six times its variance; those of the curve are small
        found = self.noise.value / (NORMAL_MAD * math.sqrt(6))
        return found * (1 + FEW / max(1, len(self)))

    def _decide(self) -> tuple[bool, str]:
        test, n = self.test, len(self)
        error = test.confidence * self.deviation * math.sqrt(2) * _deviation(self.width)
        top, place = self.top[0], self.rank(self.top[1])
        rise = top - self.low_values[bisect_right(self.low_keys, self.top[1]) - 1]
        seen = f"smoothed norm {math.exp(self.last[0]):.4g}, peak {math.exp(top):.4g} at {place}"
        level = top + math.log(test.factor) - error / 2
        risen = rise >= math.log(test.rise) + error - ROUNDING
        fallen = self.last[0] <= level + ROUNDING and n >= (1 + test.share) * place
        if not risen:
            ratio = f"{math.exp(rise):.3g} times, {test.rise * math.exp(error):.3g} needed"
            return False, f"no clear rise: {ratio}; {seen}"
        level_seen = f"to {math.exp(level):.4g}; {seen}"
        if not fallen:
            return False, f"waiting after a clear rise for a fall {level_seen}"
        return True, f"a clear rise and a fall {level_seen}"


def _deviation(width: int) -> float:
    """The standard deviation of a mean of running medians of five standard normal values."""
    return 1.12 / math.sqrt(width + 3.4)


class Ordered:
    """Entries in their order, in blocks, so that an insertion moves few others."""

    def __init__(self) -> None:
        self.blocks: list[list[Entry]] = [[]]
        self.size = 0

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Entry]:
        for block in self.blocks:
            yield from block

    def insert(self, entry: Entry) -> None:
        """Put an entry in its place."""
        number = self._block(entry)
        block = self.blocks[number]
        insort(block, entry)
        self.size += 1
        if len(block) > LARGEST_BLOCK:
            half = len(block) // 2
            self.blocks[number : number + 1] = [block[:half], block[half:]]

    def rank(self, entry: Entry) -> int:
        """How many entries are at or before this one, which may be none of them."""
        number = self._block(entry)
        before = sum(map(len, self.blocks[:number]))
        return before + bisect_right(self.blocks[number], entry)

    def up_to(self, entry: Entry, count: int) -> list[Entry]:
        """The last `count` entries at or before this one, in their order."""
        number = self._block(entry)
        end = bisect_right(self.blocks[number], entry)
        found = self.blocks[number][max(0, end - count) : end]
        while len(found) < count and number > 0:
            number -= 1
            found = self.blocks[number][len(found) - count :] + found
        return found

    def _block(self, entry: Entry) -> int:
        """The block that an entry is in, or belongs to."""
        # blocks but the first are never empty
        return bisect_right(self.blocks, entry, lo=1, key=itemgetter(0)) - 1


class RunningMedian:
    """The median of the numbers added so far, as `numpy.median` has it; 0 before the first."""

    def __init__(self) -> None:
        self.low: list[float] = []  # a heap of the negated lower half
        self.high: list[float] = []  # a heap of the rest, which may have one more

    def add(self, number: float) -> None:
        heapq.heappush(self.low, -heapq.heappushpop(self.high, number))
        if len(self.low) > len(self.high):
            heapq.heappush(self.high, -heapq.heappop(self.low))

    @property
    def value(self) -> float:
        if not self.high:
            return 0.0
        even = len(self.low) == len(self.high)
        return (self.high[0] - self.low[0]) / 2 if even else self.high[0]
