"""What STM's encoders cost under weight sharing (Oh et al., TPAMI 2020, Section 5.3, Table 7)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from methods.blocks.padding import pad
from methods.stm.network import STAGES, Mask, Sharing, STMSemiSupervised

# Sharing, stages: parameters in millions, GFLOPs at 384×384, as Table 7 has them.
PUBLISHED: dict[tuple[Sharing, int], tuple[float, float]] = {
    ("late", 3): (8.56, 19.67),
    ("late", 2): (8.77, 19.67),
    ("early", 1): (16.90, 17.53),
    ("early", 2): (15.80, 14.66),
    ("early", 3): (10.25, 11.11),
    ("none", 0): (17.09, 19.67),
}
NOTES = """
Table 7: Oh et al., TPAMI 2020. Both encoders up to res4, without the key and value heads; one object, one frame that is
segmented and memorized. GFLOPs are multiply-adds; ours are those of the convolutions alone. Two operations more per
normalised element and one per rectified one make 19.67 of our 19.50.
How the annotation joins the shared features under early sharing is not published: see methods.stm.network.EarlySharing.
"""


def count(size: Sequence[int]) -> None:
    """Print parameters and GFLOPs of the variants of Table 7, at its 384×384 and at `size`, beside its figures."""
    print(
        f"{'sharing':8}{'R2 R3 R4':10}{'M params':>9}{'paper':>7}{'GFLOPs':>10}{'paper':>7}{'{}×{}'.format(*size):>10}"
    )
    for (sharing, stages), (params, gflops) in PUBLISHED.items():
        with torch.device("meta"):
            network = STMSemiSupervised("paper", sharing, stages)
        shared = range(stages) if sharing == "early" else range(3 - stages, 3)
        ticks = "  ".join("x" if n in shared else "-" for n in range(3))
        ours, at_size = (multiply_adds(network, *hw) / 1e9 for hw in ((384, 384), size))
        millions = parameters(network) / 1e6
        print(f"{sharing:8}{ticks:10}{millions:9.2f}{params:7.2f}{ours:10.2f}{gflops:7.2f}{at_size:10.2f}")
    print(NOTES)


def parameters(network: STMSemiSupervised) -> int:
    """Of both encoders, what they share counted once."""
    encoders = torch.nn.ModuleList((network.query_encoder, network.memory_encoder))
    return sum(p.numel() for p in encoders.parameters())


def multiply_adds(network: STMSemiSupervised, height: int, width: int) -> int:
    """Of both encoders on one frame and one object: what both compute alike of the frame, under early sharing, once."""
    rgb = pad(torch.empty(1, 3, height, width, device="meta"))
    planes = pad(torch.empty(1, len(Mask._fields), height, width, device="meta"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.query_encoder(rgb)
        network.memory_encoder(torch.cat((rgb, planes), dim=1))
    counts: dict[str, Any] = counter.get_flop_counts()
    alike = ("conv1", *STAGES[: network.stages]) if network.sharing == "early" else ()
    repeated = sum(sum(counts[f"EarlySharing.{name}"].values()) for name in alike)
    return (counter.get_total_flops() - repeated) // 2  # it counts a multiply-add as two
