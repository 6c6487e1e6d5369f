"""What STM's encoders cost under weight sharing (Oh et al., TPAMI 2020, Section 5.3, Table 7).

Both encoders up to res4 at paper size, whatever size is played, without the key and value heads; one object, one frame
that is segmented and memorized.
"""

from typing import Any

import torch
from omegaconf import DictConfig
from torch.utils.flop_counter import FlopCounterMode

from harness.api import BadInput
from methods.stm.network import STAGES, Mask, STMSemiSupervised

SIDE = 384  # of Table 7's pictures, which are square


def parameters(method: DictConfig) -> float:
    """Millions, what the encoders share counted once.

    method: stm_video, of which `sharing` and `stages` are read. Raises BadInput for another.
    How the annotation joins the shared features under early sharing is not published: see
    `methods.stm.network.EarlySharing`.
    """
    network = build(method)
    encoders = torch.nn.ModuleList((network.query_encoder, network.memory_encoder))
    return sum(p.numel() for p in encoders.parameters()) / 1e6


def multiply_adds(method: DictConfig) -> float:
    """GFLOPs at 384×384, a multiply-add being one: what both encoders compute alike of the frame is counted once.

    Those of the convolutions alone: two operations more per normalised element and one per rectified one make the
    table's 19.67 of our 19.50. method: as in `parameters`.
    """
    network = build(method)
    rgb = torch.empty(1, 3, SIDE, SIDE, device="meta")
    planes = torch.empty(1, len(Mask._fields), SIDE, SIDE, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.query_encoder(rgb)
        network.memory_encoder(torch.cat((rgb, planes), dim=1))
    counts: dict[str, Any] = counter.get_flop_counts()
    alike = ("conv1", *STAGES[: network.stages]) if network.sharing == "early" else ()
    repeated = sum(sum(counts[f"EarlySharing.{name}"].values()) for name in alike)
    return (counter.get_total_flops() - repeated) / 2e9  # it counts a multiply-add as two


def build(method: DictConfig) -> STMSemiSupervised:
    """The network of a choice, without memory for its weights."""
    if "sharing" not in method:
        raise BadInput(f"method={method.name}: its encoders share no weights; counted is stm_video")
    with torch.device("meta"):
        return STMSemiSupervised("paper", method.sharing, method.stages)
