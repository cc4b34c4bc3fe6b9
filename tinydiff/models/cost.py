"""What a network costs: its parameters, and the multiply-accumulates of one forward pass."""

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def parameters(net: nn.Module) -> int:
    """How many numbers the network's parameters hold, frozen ones too, shared ones once. Buffers are not counted: the
    official count of a DiT is larger by its fixed positions."""
    return sum(p.numel() for p in net.parameters())


def macs(net: nn.Module, *inputs: Tensor, **cond: Tensor) -> int:
    """Multiply-accumulates of net(*inputs, **cond), for the whole batch: 2 flops each. A DiT's "Gflops" are these.

    Counted: matrix products, convolutions, and both products of attention, 2 T^2 d for T tokens that ask T tokens. Not
    counted: norms, activations, softmax, additions, biases, look-ups in a table.

    With a network and inputs on the device "meta" nothing is computed or stored:

        with torch.device("meta"):
            print(macs(dit.DiT_XL_2(), torch.zeros(1, 4, 32, 32), torch.zeros(1)))
    """
    # the fused kernel of attention on a CPU is not counted, the plain products are
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(*inputs, **cond)
    return counter.get_total_flops() // 2
