"""Exact 95 % intervals of a share (Clopper-Pearson), without scipy: bisection on the binomial tail."""

from __future__ import annotations

import math
from collections.abc import Callable


def interval(hits: int, of: int, confidence: float = 0.95) -> tuple[float, float]:
    """(low, high) of the true share behind ``hits`` of ``of``; (0, 1) when nothing was tried."""
    if of == 0:
        return 0.0, 1.0
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else _solve(lambda p: 1 - _at_most(hits - 1, of, p), tail)
    high = 1.0 if hits == of else _solve(lambda p: 1 - _at_most(hits, of, p), 1 - tail)
    return low, high


def _at_most(k: int, n: int, p: float) -> float:
    if p <= 0 or p >= 1:
        return 1.0 if p <= 0 or k >= n else 0.0
    whole, yes, no = math.lgamma(n + 1), math.log(p), math.log1p(-p)
    logs = [whole - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * yes + (n - i) * no for i in range(k + 1)]
    top = max(logs)
    return min(1.0, math.exp(top) * math.fsum(math.exp(one - top) for one in logs))


def _solve(rising: Callable[[float], float], wanted: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < wanted else (low, middle)
    return (low + high) / 2


def told(hits: int, of: int) -> dict[str, object]:
    """A share with its interval, as model.yaml holds it."""
    low, high = interval(hits, of)
    return {"value": round(hits / of, 5) if of else None, "interval_95": [round(low, 5), round(high, 5)], "of": of}
