import inspect

import torch

from secateur.examples import SimpleNet


def test_simplenet_has_the_size_that_its_docstring_names():
    assert sum(p.numel() for p in SimpleNet().parameters()) == 81_194


def test_simplenet_holds_its_literal_size():
    assert "x = x.view(-1, 16 * 6 * 6)" in inspect.getsource(SimpleNet.forward)


def test_simplenet_takes_any_batch():
    net = SimpleNet().eval()
    images = torch.rand(5, 1, 10, 10)
    assert torch.allclose(net(images)[3:4], net(images[3:4]), atol=1e-6)
