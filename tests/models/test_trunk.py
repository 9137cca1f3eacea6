"""The policy's attention for GPUs computes the same as its attention for CPUs; both run on a CPU here."""

import torch
from torch.testing import assert_close

from tap_ray.models.trunk import explicit_attention, fused_attention

MASK_NS = torch.tensor(
    [
        [False, False, False, False],
        [True, False, True, False],
        [True, True, True, True],  # the history at the first control step
    ]
)


def test_both_attentions_give_the_same_outputs_and_gradients_even_where_all_is_padding():
    torch.manual_seed(0)
    inputs_3NKSd, pull_NKSd = torch.randn(3, 3, 2, 4, 8, requires_grad=True), torch.randn(3, 2, 4, 8)
    outputs, gradients = [], []
    for attend in (explicit_attention, fused_attention):
        outputs.append(attend(*inputs_3NKSd, MASK_NS))
        gradients += torch.autograd.grad((outputs[-1] * pull_NKSd).sum(), inputs_3NKSd)
    assert outputs[0].isfinite().all()
    assert gradients[0].isfinite().all()
    assert_close(*outputs)
    assert_close(*gradients)

    value_KSd = inputs_3NKSd[2, 2]
    assert_close(outputs[1][2], value_KSd.mean(1, keepdim=True).expand(-1, 4, -1))
    assert gradients[1][:2, 2].count_nonzero() == 0  # the mean depends on no query and no key
