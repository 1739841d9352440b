"""A weight as a function of sigma."""

import math
from bisect import bisect_left


def weight_at(sigma: float, knots: list[tuple[float, float]]) -> float:
    """A weight schedule: piecewise linear in log sigma between knots (sigma, weight), constant beyond the first and the
    last.

    knots: in falling order of sigma, sigma > 0. ValueError when there are none, when they do not fall or a sigma is not
    positive.
    """
    if not knots:
        raise ValueError("A weight schedule needs at least one knot (sigma, weight).")
    if any(s <= 0 for s, _ in knots) or any(a[0] <= b[0] for a, b in zip(knots, knots[1:], strict=False)):
        raise ValueError("The sigmas of a weight schedule must be positive and in falling order.")
    rising = knots[::-1]
    if sigma <= rising[0][0]:
        return rising[0][1]
    if sigma >= rising[-1][0]:
        return rising[-1][1]
    upper = bisect_left([s for s, _ in rising], sigma)
    (low, low_weight), (high, high_weight) = rising[upper - 1], rising[upper]
    along = math.log(sigma / low) / math.log(high / low)
    return low_weight + along * (high_weight - low_weight)
