"""RePaint's schedule of going down and up again, as a list of respaced times."""

from __future__ import annotations

from collections.abc import Sequence

from steerdiff.errors import require

__all__ = ["jump_times"]


def jump_times(
    steps: int,
    jump_length: int,
    jump_n_sample: int,
    *,
    start_resampling: int | None = None,
    n_sample: int = 1,
    nested: Sequence[tuple[int, int]] = (),
) -> list[int]:
    """Times visited, from ``steps - 1`` to -1 (the clean image); neighbours differ by one.

    Args:
        steps: Number of respaced times.
        jump_length: Times climbed in one jump.
        jump_n_sample: Visits of each segment; 1 is no jump.
        start_resampling: No jump reaches above this time; None is no limit.
        n_sample: Visits of each single step.
        nested: Shorter jumps inside the long ones, as (length, count), longer first.

    Raises:
        UserError: A length or count below 1.

    Source: Lugmayr et al. 2022, Algorithm 1; the bookkeeping is that of their published schedule.
    """
    jumps = [(jump_length, jump_n_sample), *nested]
    for name, (length, count) in zip(["jump", *["nested jump"] * len(nested)], jumps, strict=True):
        require(length >= 1, f"{name}_length is {length}; a jump climbs at least 1 level")
        require(count >= 1, f"{name}_n_sample is {count}; it must be at least 1, which adds no jump")
    require(n_sample >= 1, f"n_sample is {n_sample}; it must be at least 1, which visits each step once")
    require(steps >= 1, f"steps is {steps}; it must be at least 1")
    ceiling = steps if start_resampling is None else start_resampling

    def budget(length: int, count: int) -> dict[int, int]:
        return dict.fromkeys(range(0, steps - length, length), count - 1)

    budgets = [budget(length, count) for length, count in jumps]
    times: list[int] = []
    time = steps
    while time >= 1:
        time -= 1
        times.append(time)
        if time < steps - 2 and time <= ceiling:
            times.extend([time + 1, time] * (n_sample - 1))
        # the shortest jump is tried first; one that is made refills those inside it
        for depth in reversed(range(len(jumps))):
            length, _ = jumps[depth]
            if budgets[depth].get(time, 0) > 0 and time <= ceiling - length:
                budgets[depth][time] -= 1
                times.extend(range(time + 1, time + length + 1))
                time += length
                for inner in range(depth + 1, len(jumps)):
                    budgets[inner] = budget(*jumps[inner])
    return [*times, -1]
