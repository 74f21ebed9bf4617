import torch

from kshot.bench.limit import MatrixProduct, count_operations


def test_operations_of_a_product_and_its_gradient():
    a = torch.ones(3, 5, requires_grad=True)
    b = torch.ones(5, 7, requires_grad=True)
    assert count_operations(lambda: a @ b) == 2 * 3 * 5 * 7
    # The gradient of each factor is one more product of the same size.
    assert count_operations(lambda: (a @ b).sum().backward()) == 3 * 2 * 3 * 5 * 7


def test_second_derivatives_are_counted():
    w = torch.ones(4, 4, requires_grad=True)
    x = torch.ones(2, 4)

    def twice():
        (g,) = torch.autograd.grad((x @ w).pow(3).sum(), w, create_graph=True)
        torch.autograd.grad(g.sum(), w)

    once = count_operations(lambda: torch.autograd.grad((x @ w).pow(3).sum(), w))
    assert count_operations(twice) > once


def test_a_product_counts_its_operations():
    product = MatrixProduct(size=64, repeats=3)
    assert count_operations(product) == product.operations == 3 * 2 * 64**3
