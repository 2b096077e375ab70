"""Normal: the ridge problem of one linear map, in float64.

X holds the inputs and R what the outputs lack, row by row. The difference D to the weights that stand is the least of
||X D - R||^2 + lambda ||D||^2, lambda being `ridge` times the mean of the diagonal of X^T X. So it is exactly zero
where nothing is lacking. With fewer rows than columns, D = X^T (X X^T + lambda)^-1 R is the same, and smaller.
"""

from __future__ import annotations

import torch


class Normal:
    """Rows are added block by block, [groups, rows, columns], and kept as they are until they outnumber the columns.

    >>> x, w = torch.randn(1, 50, 3, dtype=torch.float64), torch.randn(1, 3, 2, dtype=torch.float64)
    >>> normal = Normal()
    >>> normal.add(x, x @ w)
    >>> d = normal.solve(1e-12)
    >>> torch.allclose(d, w), normal.error(d) < 1e-12
    (True, True)
    """

    def __init__(self) -> None:
        self.rows = self.columns = 0
        self.square = 0.0  # of R
        self._held: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._gram: torch.Tensor | None = None
        self._right = torch.empty(0)

    def size(self, x: torch.Tensor) -> int:
        """How many bytes the square matrix takes once a block is added."""
        side = min(self.rows + x.shape[1], x.shape[2]) if self._gram is None else x.shape[2]
        return int(8 * x.shape[0] * side**2)

    def add(self, x: torch.Tensor, r: torch.Tensor) -> None:
        """Add rows: inputs [groups, rows, columns] and what their outputs lack [groups, rows, outputs]."""
        self.rows, self.columns = self.rows + x.shape[1], x.shape[2]
        self.square += float(r.square().sum())
        self._held.append((x, r))
        if self.rows > self.columns:
            self._fold()

    def _fold(self) -> None:
        for x, r in self._held:
            if self._gram is None:
                self._gram = x.new_zeros(x.shape[0], x.shape[2], x.shape[2])
                self._right = x.new_zeros(x.shape[0], x.shape[2], r.shape[2])
            _add_gram(self._gram, x)
            self._right.baddbmm_(x.transpose(1, 2), r)
        self._held.clear()

    def solve(self, ridge: float) -> torch.Tensor:
        """The difference to the weights, [groups, columns, outputs]; what cannot be solved is not finite."""
        if self._gram is not None:
            gram = self._gram.clone()
            scale = gram.diagonal(dim1=1, dim2=2).mean(1)
            return _solve(gram, ridge * scale, self._right)
        x = torch.cat([x for x, _ in self._held], 1)
        r = torch.cat([r for _, r in self._held], 1)
        scale = x.square().sum((1, 2)) / max(1, self.columns)
        return x.transpose(1, 2) @ _solve(x @ x.transpose(1, 2), ridge * scale, r)

    def error(self, d: torch.Tensor) -> float:
        """||X D - R||^2."""
        if self._gram is None:
            return sum(float((r - x @ d).square().sum()) for x, r in self._held)
        change = (d * (self._gram @ d - 2 * self._right)).sum()
        return max(0.0, self.square + float(change))


BLOCK = 96  # columns; of a product with itself half is enough


def _add_gram(gram: torch.Tensor, x: torch.Tensor) -> None:
    """Add X^T X: block rows from the diagonal on, the rest by symmetry."""
    n, t = x.shape[2], x.transpose(1, 2)
    if n <= 2 * BLOCK:
        gram.baddbmm_(t, x)
        return
    for a in range(0, n, BLOCK):
        b = min(a + BLOCK, n)
        gram[:, a:b, a:].baddbmm_(t[:, a:b], x[:, :, a:])
        gram[:, b:, a:b] = gram[:, a:b, b:].transpose(1, 2)


def _solve(a: torch.Tensor, ridge: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """(A + ridge)^-1 R, group by group; A is positive and is written over. Where that is singular, the least one."""
    a.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
    factor, info = torch.linalg.cholesky_ex(a)
    if not bool(info.any()):
        return torch.cholesky_solve(r, factor)
    if not bool(torch.isfinite(a).all()):
        return torch.full_like(r, float("nan"))
    values, vectors = torch.linalg.eigh(a)
    least = values.amax(1, keepdim=True) * a.shape[1] * torch.finfo(a.dtype).eps
    inverse = torch.where(values > least, 1 / values, 0.0)
    return vectors @ (inverse[:, :, None] * (vectors.transpose(1, 2) @ r))
