"""Learning-rate schedules: the factor on the learning rate at each step."""

import math

CONSTANT, COSINE, LINEAR = "constant", "cosine", "linear"
SCHEDULES = (CONSTANT, COSINE, LINEAR)


def rate_factor(schedule: str, step: int, total: int, warm_up: int = 0) -> float:
    """Factor (0-1] at step number `step`, counted from 0, of `total`.

    The first `warm_up` steps rise in a line: 1/n, 2/n, ... After them: constant 1; cosine (1 + cos(pi t)) / 2
    (Loshchilov & Hutter 2017, without restarts); linear 1 - t, where t goes from 0 to 1 over the rest of the steps.
    """
    if step < warm_up:
        return (step + 1) / warm_up
    if schedule == CONSTANT or step >= total:
        return 1.0 if schedule == CONSTANT else 0.0
    t = (step - warm_up) / (total - warm_up)
    return (1 + math.cos(math.pi * t)) / 2 if schedule == COSINE else 1 - t
