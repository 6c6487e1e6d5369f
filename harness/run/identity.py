"""What a score depends on, told by its meaning: never by a path, by what a class is called, or by what is the default.

Part of a record's key; so what stands here decides which records are found again.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from harness.data.synthetic import made_by
from harness.run.provenance import digest_of_files, weights_of
from harness.run.source import defaults_of, source_digest

SELECTION = ("root", "sequences", "without_scribbles", "archives")  # where a dataset lies and what is played of it
APART = ("weights", "official", "published")  # of a method's options: told by their content, or only told
ROBOT = "harness.rules.robot.correct"
SYNTHETIC = "harness.data.synthetic.load"
MOVED = {  # modules that records of format 0 name
    "harness.datasets.": "harness.data.",
    "harness.protocol.": "harness.rules.protocol.",
}


def entry_of(method: DictConfig, dataset: DictConfig, protocol: DictConfig, clock: DictConfig) -> dict[str, Any]:
    """What all samples of one leaderboard row share, as plain data.

    It is {method, weights, dataset, protocol, clock, source}. Raises BadInput where weights or code cannot be found.
    """
    of_clock = plain_data(clock)
    if "costs" in of_clock:
        of_clock["costs"] = of_clock["costs"].get(method.name)
    return {
        **player_of(method),
        "dataset": meaning(plain_data(dataset), SELECTION),
        "protocol": rules_of(plain_data(protocol)),
        "clock": meaning(of_clock),
    }


def player_of(method: DictConfig) -> dict[str, Any]:
    """What plays: the part of `entry_of` that files may change under a run, {method, weights, source}."""
    return {
        "method": meaning(plain_data(method), APART),
        "weights": weights_of(method),
        "source": source_digest(method._target_),
    }


def rules_of(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """The meaning of a protocol, and of what it asks of its robot."""
    robot = meaning({**(protocol.get("robot") or {}), "_target_": ROBOT})
    return meaning({**protocol, "robot": robot or None})


def meaning(options: Mapping[str, Any], apart: Collection[str] = ()) -> dict[str, Any]:
    """Its name, and the options that differ from the defaults of its `_target_`, files by their content.

    apart: the options that are left out. What `_target_` has no default for counts unless it is null.
    """
    target = str(options.get("_target_", ""))
    defaults = defaults_of(target) if target else {}
    told = {key: by_content(value) for key, value in options.items() if key not in ("_target_", *apart)}
    return {key: value for key, value in told.items() if key == "name" or value != defaults.get(key)}


def by_content(value: Any) -> Any:
    """Plain data with the digest of each file that it names in the place of its path."""
    if isinstance(value, Mapping):
        return {key: by_content(each) for key, each in value.items()}
    if isinstance(value, list):
        return [by_content(each) for each in value]
    if isinstance(value, str) and is_file(value):
        return f"content {digest_of_files([Path(value).expanduser()])}"
    return value


def is_file(value: str) -> bool:
    """Whether there is a file of that name."""
    try:
        return Path(value).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL in it, nobody's home
        return False


def plain_data(config: DictConfig) -> dict[str, Any]:
    """A config as a dictionary."""
    data: Any = OmegaConf.to_container(config, resolve=True)
    return dict(data)


def from_format_0(sample: Mapping[str, Any], entry: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The (sample, entry) of a record of format 0, which had every option, paths and Python names, as they are now."""
    told = {
        **entry,
        **rules_from_format_0(entry),
        "method": meaning(entry["method"], APART),
        "weights": {**entry["weights"], "name": Path(entry["weights"]["name"]).name},
        "clock": meaning(entry["clock"]),
    }
    dataset = entry["dataset"]
    if today(dataset) != SYNTHETIC:
        return dict(sample), told
    split, _, index = sample["sequence"].rpartition("-")
    number, most = int(index), dataset["max_objects"]
    clip = made_by(split, number, dataset["frames"], dataset["size"], 1 + number % most, dataset["seed"], generator=1)
    return {**sample, "made_by": clip}, told


def rules_from_format_0(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The dataset and the protocol of an entry of format 0, as they are told now."""
    dataset, protocol = ({**entry[name], "_target_": today(entry[name])} for name in ("dataset", "protocol"))
    protocol["new_frame_after"] = protocol.pop("keeps_frame_until", None)
    return {"dataset": meaning(dataset, SELECTION), "protocol": rules_of(protocol)}


def today(choice: Mapping[str, Any]) -> str:
    """What a `_target_` of format 0 is called now; empty where there is none."""
    target = str(choice.get("_target_", ""))
    for before, now in MOVED.items():
        if target.startswith(before):
            return now + target.removeprefix(before)
    return target
