import weakref

import pytest
import torch
from torch import Tensor

from e4t_core.separate_backward import separate_backward


def graph(separate: bool) -> tuple[Tensor, Tensor, Tensor]:
    """A weight that is used twice, before and inside the part; its loss, and the two weights."""
    generator = torch.Generator().manual_seed(0)
    weight, inner = (torch.randn(4, 4, generator=generator).requires_grad_() for _ in range(2))
    given = torch.tanh(torch.randn(3, 4, generator=generator) @ weight)

    def part(rows: Tensor) -> Tensor:
        return torch.sin(rows @ weight @ inner).square().sum(dim=1)

    made = separate_backward(part, given) if separate else part(given)
    return made.mean() + 0.1 * given.square().sum(), weight, inner


def test_value_and_gradients_are_those_of_one_graph() -> None:
    found = []
    for separate in (False, True):
        loss, *weights = graph(separate)
        loss.backward()
        found.append([loss.detach(), *(weight.grad for weight in weights)])
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(*found, strict=True))


def test_the_part_s_gradient_is_there_before_that_of_the_rest() -> None:
    loss, weight, _ = graph(separate=True)
    seen: list[Tensor] = []
    weight.register_post_accumulate_grad_hook(lambda leaf: seen.append(leaf.grad.clone()))
    loss.backward()
    assert len(seen) == 2 and not torch.equal(*seen) and torch.equal(seen[1], weight.grad)


def test_nothing_of_it_is_kept_afterwards() -> None:
    loss, weight, _ = graph(separate=True)
    loss.backward()
    known = weakref.ref(weight)
    del loss, weight
    assert known() is None


def test_a_second_backward_pass_is_refused() -> None:
    loss, *_ = graph(separate=True)
    loss.backward(retain_graph=True)
    with pytest.raises((AttributeError, RuntimeError)):
        loss.backward()
