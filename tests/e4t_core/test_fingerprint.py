import torch

from e4t_core.fingerprint import fingerprint


def test_every_part_of_a_tensor_counts() -> None:
    base = torch.arange(6.0).reshape(2, 3)
    variants = [
        fingerprint({"a": base}),
        fingerprint({"b": base}),
        fingerprint({"a": base.T}),
        fingerprint({"a": base.T.contiguous().reshape(2, 3)}),
        fingerprint({"a": base.half()}),
        fingerprint({"a": base.bfloat16()}),
        fingerprint({"a": base + 1e-6}),
        fingerprint({"a": base}, "text"),
        fingerprint({"a": base}, "te", "xt"),
    ]
    assert len(set(variants)) == len(variants)


def test_order_and_memory_layout_do_not_count() -> None:
    one, other = torch.ones(3, 2), torch.arange(6.0).reshape(2, 3).T
    assert fingerprint({"a": one, "b": other}) == fingerprint({"b": other.contiguous(), "a": one})


def test_a_single_number_and_an_empty_tensor_can_be_hashed() -> None:
    assert fingerprint({"a": torch.tensor(1.0)}) != fingerprint({"a": torch.empty(0)})
