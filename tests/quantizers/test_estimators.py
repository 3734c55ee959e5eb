"""Gradient estimators: the value is z_q to the bit, the gradient is what the formula says."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vqgan.quantizers.estimators import ESTIMATORS, rotation, straight_through

Draw = Callable[..., Tensor]


def image(*vectors: list[float]) -> Tensor:
    """Vectors as one image: (1, D, 1, n)."""
    return torch.tensor(vectors).T[None, :, None]


def gradient(estimator: Callable[[Tensor, Tensor], Tensor], z: Tensor, z_q: Tensor, upstream: Tensor) -> Tensor:
    z = z.clone().requires_grad_()
    (grad,) = torch.autograd.grad(estimator(z, z_q), z, upstream)
    return grad


@pytest.mark.parametrize("name", ESTIMATORS)
def test_value_is_exact_and_entries_get_no_gradient(draw: Draw, name: str) -> None:
    z, z_q = draw(2, 8, 3, 3).requires_grad_(), (1e3 * draw(2, 8, 3, 3)).requires_grad_()
    out = ESTIMATORS[name](z, z_q)
    assert torch.equal(out, z_q)
    out.sum().backward()
    assert z_q.grad is None and z.grad is not None


def test_straight_through_is_the_identity(draw: Draw) -> None:
    upstream = draw(2, 8, 3, 3)
    assert torch.equal(gradient(straight_through, draw(2, 8, 3, 3), draw(2, 8, 3, 3), upstream), upstream)


def test_rotation_by_hand() -> None:
    """From (1, 0) to (0, 2): a quarter turn and a factor of 2, J = [[0, -2], [2, 0]], so J^T g = (2 g2, -2 g1)."""
    grad = gradient(rotation, image([1.0, 0.0]), image([0.0, 2.0]), image([3.0, 5.0]))
    assert torch.allclose(grad, image([10.0, -6.0]))


def test_rotation_equals_the_matrix(draw: Draw) -> None:
    z, z_q, upstream = draw(1, 6, 2, 2).double(), draw(1, 6, 2, 2).double(), draw(1, 6, 2, 2).double()
    grad = gradient(rotation, z, z_q, upstream)
    for row in range(2):
        for column in range(2):
            a = z[0, :, row, column] / z[0, :, row, column].norm()
            b = z_q[0, :, row, column] / z_q[0, :, row, column].norm()
            r = (a + b) / (a + b).norm()
            scale = z_q[0, :, row, column].norm() / z[0, :, row, column].norm()
            matrix = scale * (torch.eye(6).double() - 2 * torch.outer(r, r) + 2 * torch.outer(b, a))
            assert torch.allclose(matrix @ z[0, :, row, column], z_q[0, :, row, column])
            assert torch.allclose(grad[0, :, row, column], matrix.T @ upstream[0, :, row, column])


def test_rotation_is_the_identity_where_undefined() -> None:
    z = image([1.0, 0.0], [0.0, 0.0], [1.0, 1.0])
    z_q = image([-2.0, 0.0], [1.0, 2.0], [0.0, 0.0])  # opposite, no direction, no length
    upstream = image([3.0, 5.0], [7.0, 1.0], [-1.0, 2.0])
    assert torch.equal(gradient(rotation, z, z_q, upstream), upstream)
