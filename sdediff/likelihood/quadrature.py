"""Nodes and weights along the path."""

from __future__ import annotations

import numpy as np


def clenshaw_curtis(n: int) -> tuple[np.ndarray, np.ndarray]:
    """The n + 1 Chebyshev points of [0, 1], rising, and weights exact for polynomials of degree n (n even).

    Every other point is a node of the rule with n/2, which gives an error estimate for nothing.

    References:
        Clenshaw & Curtis (1960), Numer. Math. 2; weights as in Trefethen (2008), SIAM Review 50, program clencurt.m.

    Example:
        >>> nodes, weights = clenshaw_curtis(8)
        >>> round(float(weights @ nodes**7), 12)
        0.125
    """
    if n < 2 or n % 2:
        raise ValueError(f"n={n}: give an even number of at least 2")
    k = np.arange(0, n + 1)
    nodes = 0.5 * (1 - np.cos(np.pi * k / n))
    j = np.arange(1, n // 2 + 1)
    half = np.where(j == n // 2, 1.0, 2.0)
    weights = 1 - (half / (4.0 * j**2 - 1) * np.cos(2 * np.pi * np.outer(k, j) / n)).sum(axis=1)
    weights *= np.where((k == 0) | (k == n), 1.0, 2.0) / n
    return nodes, weights / 2


def spline_weights(nodes: np.ndarray) -> np.ndarray:
    """Weights that integrate the cubic spline through values at any rising (or falling) nodes: order 4."""
    from scipy.interpolate import CubicSpline

    sign = 1.0 if nodes[-1] > nodes[0] else -1.0
    if len(nodes) < 4:  # a spline needs four points: the trapezoidal rule
        weights = np.zeros(len(nodes))
        steps = np.diff(nodes)
        weights[:-1] += steps / 2
        weights[1:] += steps / 2
        return weights
    spline = CubicSpline(sign * nodes, np.eye(len(nodes)))
    return sign * spline.integrate(sign * nodes[0], sign * nodes[-1])
