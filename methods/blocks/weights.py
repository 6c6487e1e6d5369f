"""Which weights a network gets, on which device: the same for every method."""

import os
import reprlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from harness.api import BadInput

Network = TypeVar("Network", bound=nn.Module)
StateDict = dict[str, Tensor]


def prepare(
    build: Callable[[], Network], weights: str, official: Callable[[], StateDict], device: str, seed: int
) -> Network:
    """A network ready to be played: built, filled, in evaluation mode, on its device, exact in float32.

    weights: "random" (seeded initialisation), "official" (what `official` returns, in our keys) or a .safetensors
    file of our keys, such as those of methods/weights/. device: "auto", "cpu" or "cuda:N".
    Raises BadInput where one of them cannot be had.
    TF32 and cuDNN's choice of algorithms by timing are switched off, for the process.
    """
    where = find_device(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build()
    if weights == "official":
        fill(network, official(), "the authors' file")
    elif weights != "random":
        state, whose = read_safetensors(Path(weights))
        fill(network, state, f"{weights}{whose}")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    return network.eval().requires_grad_(False).to(where)


def lay_out(network: Network) -> Network:
    """Have a network's weights in main memory as oneDNN wants them, channels last, in place, before it plays.

    Batch norms are not folded into convolutions: it gains a few percent and costs digits, which sessions amplify.
    """
    if not next(network.parameters()).is_cpu:
        return network
    for conv in network.modules():
        if isinstance(conv, nn.Conv2d) and conv.kernel_size == (1, 1):
            conv.dilation = (2, 2)  # means nothing, but leads torch to oneDNN on one thread too, twice as fast there
    return network.to(memory_format=torch.channels_last)


def find_device(device: str) -> torch.device:
    """The device, or BadInput. "auto" is the first GPU, the CPU where there is none."""
    if device == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    known = ["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
    if device not in known:
        raise BadInput(f"device={device}: not here; choose auto or one of {', '.join(known)}")
    return torch.device(device)


def fill(network: nn.Module, state: StateDict, source: str) -> None:
    """Load a state dict that has exactly the network's keys and shapes, all real and finite.

    Raises BadInput naming the first key that differs.
    """
    wanted = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    for key in sorted(wanted.keys() | found.keys()):
        if wanted.get(key) != found.get(key):
            is_, want = found.get(key, "missing"), wanted.get(key, "no such key")
            raise BadInput(f"{source}: {key} is {is_}, wanted {want}; is it of another method or size?")
        if state[key].is_complex() or not state[key].to(torch.float32).isfinite().all():
            raise BadInput(f"{source}: {key} has numbers that are complex, infinite or NaN; get or train it again")
    network.load_state_dict(state)


def read_safetensors(path: Path) -> tuple[StateDict, str]:
    """Our own weights file, and which method and size it says it is of: ", of stm, tiny"; empty if it does not say.

    Raises BadInput where there is none.
    """
    if not path.is_file():
        raise BadInput(f"weights={path}: no such file; give random, official or a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise BadInput(f"weights={path}: not a safetensors file ({first_line(error)}); give another") from error
    check_tensors(state, path)
    return state, f", of {about['method']}, {about['size']}" if {"method", "size"} <= about.keys() else ""


def official_folder() -> Path:
    """Where the authors' files lie: the folder IVOSBENCH_WEIGHTS names, "weights" by default."""
    return Path(os.environ.get("IVOSBENCH_WEIGHTS", "weights"))


def official_file(name: str, published: str) -> Path:
    """The authors' file, in `official_folder`.

    Raises BadInput that says which file is missing and where its authors publish it.
    """
    path = official_folder() / name
    if not path.is_file():
        raise BadInput(f"{path}: missing; get it from {published} and put it into the folder IVOSBENCH_WEIGHTS names")
    return path


def read_official(path: Path) -> StateDict:
    """An authors' flat state dict, its `module.` prefixes taken off. Executes nothing of the file. Or BadInput."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # torch packs nothing: what is packed may unpack to anything
                if any(member.file_size > member.compress_size for member in archive.infolist()):
                    raise BadInput(f"{path}: a compressed zip, which torch does not write; download it again")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except BadInput:
        raise
    except Exception as error:  # the unpickler raises whatever a damaged file leads it to
        raise BadInput(f"{path}: torch cannot read it ({first_line(error)}); download it again") from error
    if not isinstance(state, Mapping):
        raise BadInput(f"{path}: holds a {type(state).__name__}, wanted a flat state dict; is it another file?")
    check_tensors(state, path)
    return {key.removeprefix("module."): value for key, value in state.items()}


def first_line(error: Exception) -> str:
    """The first line of what an error says; its type where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def check_tensors(state: Mapping[Any, Any], path: Path) -> None:
    """BadInput unless `state` is a flat state dict of dense tensors on the CPU, under keys one can print."""
    for key, value in state.items():
        if not isinstance(key, str) or not key.isprintable():
            raise BadInput(f"{path}: key {reprlib.repr(key)}, wanted a name; is it another file?")
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
            raise BadInput(f"{path}: {reprlib.repr(key)} is no dense tensor; is it another file?")
        if value.is_quantized:
            raise BadInput(f"{path}: {reprlib.repr(key)} is quantized; give the weights as they were trained")


def take_constants(theirs: StateDict, constants: Mapping[str, Sequence[float]], path: Path) -> None:
    """Take out of an authors' state dict what is code in ours. BadInput if it is missing or something else."""
    for key, wanted in constants.items():
        value = theirs.pop(key, torch.empty(0))
        if value.numel() != len(wanted) or not torch.equal(value.flatten().float(), torch.tensor(wanted)):
            raise BadInput(f"{path}: key {key} is not {wanted}; is it another network's file?")


def rename(
    theirs: StateDict, sources: Mapping[str, Sequence[str]], shapes: Mapping[str, torch.Size], path: Path
) -> StateDict:
    """An authors' state dict under our keys; BadInput naming the first key that is missing, left over or misshapen.

    sources: our key to the authors' keys whose tensors, joined along axis 1, it holds.
    `num_batches_tracked`, which old files lack and no inference reads, may be missing.
    """
    ours: StateDict = {}
    left = dict(theirs)
    for key, names in sources.items():
        parts, want = [], shapes[key]
        for name in names:
            if name not in left and name.endswith("num_batches_tracked"):
                left[name] = torch.tensor(0)
            if name not in left:
                raise BadInput(f"{path}: key {name} is missing; is it another network's file?")
            part = left.pop(name)
            if (part.shape[:1], part.shape[2:]) != (want[:1], want[2:]):
                raise BadInput(f"{path}: key {name} is {tuple(part.shape)}, which does not fit {key}, {tuple(want)}")
            parts.append(part)
        ours[key] = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        if ours[key].shape != want:
            raise BadInput(f"{path}: key {names[0]} makes {key} {tuple(ours[key].shape)}, wanted {tuple(want)}")
    if left:
        raise BadInput(f"{path}: key {min(left)} is not known; is it another network's file?")
    return ours
