"""What is typed, checked before anything is done: each mistake is told in one line, with what was probably meant.

Hydra would tell of most of them, but at length, and of some it tells something else: while it looks for `hydra.mode` it
swallows why a configuration cannot be composed, and then asks for --multirun (hydra-ecosystem/hydra#3440).
"""

import errno
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.api import BadInput

CONF = Path(__file__).parents[2] / "conf"
NEEDED = ("task", "method", "dataset", "protocol", "clock")
WEIGHTS = ("tiny", "official", "random")
FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def one_line() -> Iterator[None]:
    """End with a line and a code other than 0, not with a traceback, for what whoever typed the command can change.

    That is bad input, results= or reports= that cannot be written to, and Ctrl-C, which also tells what is kept. Any
    other exception is a fault of ours or of a guest, and is shown in full.
    """
    began = time.time()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra hands exceptions on instead of printing them
    try:
        yield
        sys.stdout.flush()
    except (BadInput, HydraException) as error:
        sys.exit(" ".join(str(error).split()))
    except BrokenPipeError:  # who reads what is printed has seen enough: `... --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno in FULL:
            sys.exit(f"the disk is full ({error}); make room, and the same command goes on with what is recorded")
        for key in ("results", "reports") if error.filename else ():
            place, failed = folder(key).absolute(), Path(str(error.filename)).absolute()
            if place.is_relative_to(failed) or failed.is_relative_to(place):
                sys.exit(f"{key}={folder(key)}: {failed} cannot be written ({error.strerror}); give another {key}=")
        raise
    except KeyboardInterrupt:
        print(stopped(began), file=sys.stderr)
        sys.exit(128 + 2)


def stopped(began: float) -> str:
    """What to say after Ctrl-C of a command that began then (seconds since the epoch)."""
    runs = folder("results") / "runs"
    kept = sum(path.stat().st_mtime >= began for path in runs.glob("*/*-*.parquet"))
    if not kept:
        return "stopped; the same command starts again, or goes on from what it has written"
    return f"stopped; samples kept in {runs}: {kept}; the same command goes on from there"


def folder(key: str) -> Path:
    """The folder that `results` or `reports` is of this command."""
    said = [each.partition("=")[2] for each in sys.argv if each.startswith(f"{key}=")]
    return Path((said or [key])[-1])


def check(arguments: Sequence[str]) -> None:
    """Raise BadInput for a command that cannot be what is meant, or that cannot be followed here.

    arguments: what follows `run.py`.
    """
    config = configuration(arguments)
    if config is not None:
        check_place(config)


def configuration(arguments: Sequence[str]) -> DictConfig | None:
    """What a command line stands for; None if it asks Hydra for something else than to run, or for help.

    Of sweeps it has the first values; the others are composed, too, where they might not be possible.
    Raises BadInput for what is not there, or not so.
    """
    args, unknown = get_args_parser().parse_known_args(list(arguments))
    if unknown:
        raise BadInput(f"{unknown[0]}: no such option; --help shows what there is")
    if args.config_path or args.config_name or args.experimental_rerun or args.hydra_help or args.shell_completion:
        return None
    places = [f"hydra.searchpath=[file://{os.path.abspath(args.config_dir)}]"] if args.config_dir else []
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = Composer([*places, *args.overrides]).every(args.multirun)
    return None if args.help or args.cfg or args.info else config


def command_of(overrides: Sequence[str]) -> str:
    """The command that has these overrides, as a shell takes it."""
    return shlex.join(["uv", "run", "run.py", *overrides])


def compose(overrides: Sequence[str]) -> DictConfig:
    """What overrides stand for, from within a task: `hydra.compose`, but for a BadInput that says why it cannot be."""
    try:
        return hydra.compose("config", list(overrides))
    except HydraException as error:
        Composer(overrides).compose()
        raise BadInput(" ".join(str(error).split())) from error


class Composer:
    """Composes what overrides stand for, and says what is wrong with them.

    overrides: as typed. Raises BadInput for what is no override, and for a choice that there is not.
    """

    def __init__(self, overrides: Sequence[str]) -> None:
        self.loader: ConfigLoader = GlobalHydra.instance().config_loader()
        self.places = [text for text in overrides if text.startswith("hydra.searchpath=")]
        parsed = [self.parse(overrides, i) for i in range(len(overrides))]
        for place in (place for text in self.places for place in folders(text) if not Path(place).is_dir()):
            raise BadInput(f"hydra.searchpath: {place}: no such folder; give one that has method/, dataset/, ... in it")
        self.chosen = [each for each in parsed if self.options(each.key_or_group)]
        self.changed = [each for each in parsed if each not in self.chosen]
        for each in self.chosen:
            self.check_choice(each)

    def every(self, multirun: bool) -> DictConfig:
        """Compose the first job of a sweep, which is returned, and those of other choices whose keys are changed.

        multirun: whether -m was given. Without it only a task that asks for sweeps itself can have one.
        """
        config = self.compose()
        sweeps = config.hydra.mode == RunMode.MULTIRUN
        swept = next((each for each in (*self.chosen, *self.changed) if each.is_sweep_override()), None)
        if swept and not sweeps and not multirun:
            task = config.hydra.runtime.choices.task
            raise BadInput(f"{swept.input_line}: task={task} takes one; add -m to do it for each in turn")
        groups = {each.key_or_group: values(each) for each in self.chosen}
        if sweeps:
            groups = {group: str(names).split(",") for group, names in config.hydra.sweeper.params.items()} | groups
        for group, names in groups.items():
            if len(names) > 1 and any(each.key_or_group.startswith(f"{group}.") for each in self.changed):
                for name in names:
                    self.compose(group, name, names)
        return config

    def compose(self, group: str = "", name: str = "", swept: Sequence[str] = ()) -> DictConfig:
        """Compose it with the first values of sweeps, but for `group`, which is swept over names, as `name`.

        Raises BadInput that says why it cannot be.
        """
        chosen = [first(each) for each in self.chosen if each.key_or_group != group]
        chosen += [f"{group}={name}"] if group else []
        try:
            return self.load([*chosen, *(first(each) for each in self.changed)])
        except (HydraException, OmegaConfBaseException) as error:
            self.explain(chosen, {group: swept})
            raise BadInput(" ".join(str(error.__cause__ or error).split())) from error

    def load(self, overrides: Sequence[str]) -> DictConfig:
        """Compose, and raise what Hydra raises."""
        places = [each for each in self.places if each not in overrides]
        return self.loader.load_configuration(
            "config", [*places, *overrides], RunMode.MULTIRUN, validate_sweep_overrides=False
        )

    def parse(self, overrides: Sequence[str], place: int) -> Override:
        """One of the overrides, or BadInput that says why it is none."""
        text = overrides[place]
        try:
            return OverridesParser.create().parse_override(text)
        except HydraException as error:
            key, equals, value = text.partition("=")
            if not equals:
                before = overrides[place - 1] if place else ""
                raise BadInput(f"{text}: not key=value; {self.meant(text, before)}") from error
            if value.endswith(","):
                more = next(iter(overrides[place + 1 :]), "")
                rest = more if more in self.options(key) else "..."
                raise BadInput(
                    f"{text}: ends with a comma; several have no space between them: {text}{rest}"
                ) from error
            if any(value.count(opened) != value.count(closed) for opened, closed in ("[]", "{}", "()")):
                raise BadInput(f"{text}: a bracket is left open; put quotes around all of it: '{key}=...'") from error
            quoted = shlex.quote(f'{key}="{value}"')
            raise BadInput(f"{text}: not a value as Hydra reads it; if it is a name, quote it: {quoted}") from error

    def meant(self, text: str, before: str) -> str:
        """What somebody may have meant who typed `text`, no key=value, after the override `before`."""
        key = before.partition("=")[0]
        if before and text in self.options(key):
            return f"several have commas and no space between them: {before.rstrip(',')},{text}"
        if text == "help":
            return "did you mean --help?"
        groups = [group for group in self.groups() if text in self.options(group)]
        keys = [f"{group}={text}" for group in groups] or [f"{near}=..." for near in near_to(text, self.groups())]
        return f"did you mean {keys[0]}?" if keys else "as in method=stm; --help shows what there is"

    def check_choice(self, override: Override) -> None:
        """Raise BadInput for a choice that its group does not have."""
        group, text = override.key_or_group, override.input_line
        options = self.options(group)
        if override.is_delete():
            if group in NEEDED:
                raise BadInput(f"{text}: there has to be one; choose one of {', '.join(options)}")
            return
        for value in values(override):
            if not isinstance(value, str):
                names = ",".join(map(str, value)) if isinstance(value, list) else options[0]
                raise BadInput(f"{text}: wanted a name, or several for one after the other, as in {group}={names}")
            if value not in options:
                raise BadInput(f"{group}={value}: no such {group}; {asked(value, options)}{one_of(options)}")

    def explain(self, chosen: Sequence[str], swept: Mapping[str, Sequence[str]]) -> None:
        """Raise BadInput for the first override whose key is not there when `chosen` is chosen.

        swept: of a group that is swept, the names.
        """
        there = self.load([each for each in chosen if each.startswith("task=")])
        for each in self.chosen:
            if not each.is_add() and each.key_or_group not in there.hydra.runtime.choices:
                self.refuse_key(each, there, each.key_or_group)
        config = self.load(chosen)
        for each in self.changed:
            parents, key = walk(config, each.key_or_group)
            if key is not None and not each.is_add() and not each.is_force_add():
                if parents:
                    self.refuse_nested_key(each, config, parents, key, chosen, swept)
                self.refuse_key(each, config, key)

    def refuse_key(self, override: Override, config: DictConfig, key: str) -> None:
        """Raise BadInput for a key, or a group to choose from, that the task does not have."""
        task = config.hydra.runtime.choices.task
        said = f"{override.input_line}: task={task} has no {key}; "
        if near := near_to(key, [*map(str, config), *map(str, config.hydra.runtime.choices)], 0.8):
            raise BadInput(f"{said}did you mean {near[0]}?")
        nested = [f"{each}.{key}" for each in map(str, config) if key in keys_of(config, each)]
        if nested := [each for each in nested if not each.startswith(("hydra.", "task."))]:
            raise BadInput(f"{said}did you mean {' or '.join(nested)}?")
        others = {str(each): self.load([f"task={each}"]) for each in self.options("task")}
        keys = {each: {*map(str, other), *map(str, other.hydra.runtime.choices)} for each, other in others.items()}
        if having := [each for each in others if key in keys[each]]:
            raise BadInput(f"{said}add task={' or '.join(having)}, which has")
        near = near_to(key, sorted({known for each in keys.values() for known in each}))
        of = [f"task={each}" for each in others if near and near[0] in keys[each]]
        raise BadInput(f"{said}{f'did you mean {near[0]}, of {of[0]}?' if near else '--help shows what there is'}")

    def refuse_nested_key(
        self,
        override: Override,
        config: DictConfig,
        parents: Sequence[str],
        key: str,
        chosen: Sequence[str],
        swept: Mapping[str, Sequence[str]],
    ) -> None:
        """Raise BadInput for a key that is not below its `parents`."""
        place, group = ".".join(parents), "/".join(parents)
        name = config.hydra.runtime.choices.get(group)
        said = f"{override.input_line}: {f'{group}={name}' if name else place} has no {key}; "
        keys = keys_of(config, place)
        if near := near_to(key, keys):
            raise BadInput(f"{said}did you mean {place}.{near[0]}?")
        others = {each: keys_of(self.load([*chosen, f"{group}={each}"]), place) for each in self.options(group) if name}
        near = near_to(key, sorted({known for each in others.values() for known in each}))
        having = [each for each in others if near and near[0] in others[each]]
        several = ",".join(each for each in swept.get(group, ()) if each in having)
        if having:
            meant = f"did you mean {place}.{near[0]}? " if near[0] != key else ""
            has = "have" if "," in several else "has"
            raise BadInput(f"{said}{meant}choose {group}={several or ' or '.join(having)}, which {has} it")
        raise BadInput(said + (f"its keys are {', '.join(keys)}" if keys else "it is a value"))

    def options(self, group: str) -> list[str]:
        """What there is to choose in a group, of this tree and on `hydra.searchpath`; nothing if it is none."""
        return self.loader.get_group_options(group, overrides=self.places)

    def groups(self) -> list[str]:
        """The groups there are, the task first and without Hydra's own."""
        return sorted(set(self.loader.list_groups("")) - {"hydra"}, key=lambda group: (group != "task", group))


def folders(searchpath: str) -> list[str]:
    """The folders that an override of `hydra.searchpath` names."""
    places = OverridesParser.create().parse_override(searchpath).value()
    named = [str(place) for place in places] if isinstance(places, list) else [str(places)]
    return [place.removeprefix("file://") for place in named if place.startswith("file://")]


def values(override: Override) -> list[Any]:
    """What an override gives: one value, or those it sweeps over."""
    if override.is_sweep_override():
        if not override.is_discrete_sweep():
            raise BadInput(
                f"{override.input_line}: only lists and ranges can be swept, as in key=1,2 or key=range(1,3)"
            )
        return list(override.sweep_string_iterator())
    return [override.value()]


def first(override: Override) -> str:
    """An override as it is of the first job of a sweep."""
    if not override.is_sweep_override():
        return str(override.input_line)
    return "=".join((override.get_key_element(), str(values(override)[0])))


def walk(config: DictConfig, key: str) -> tuple[list[str], str | None]:
    """How far a dotted key leads into a config: the parts that are there, and the first that is not, or None."""
    parts = key.split(".")
    for i, part in enumerate(parts):
        if part not in keys_of(config, ".".join(parts[:i])):
            return parts[:i], part
    return parts, None


def keys_of(config: DictConfig, place: str) -> list[str]:
    """The keys below a place of a config; none if it holds a value."""
    node = OmegaConf.select(config, place) if place else config
    return [str(each) for each in node] if OmegaConf.is_dict(node) else []


def near_to(word: str, known: Sequence[str], cutoff: float = 0.6) -> list[str]:
    """The known words that may have been meant, the nearest first."""
    return get_close_matches(word, known, cutoff=cutoff)


def asked(word: str, known: Sequence[str]) -> str:
    """The question whether the nearest known word was meant, if there is one."""
    return f"did you mean {near[0]}? " if (near := near_to(word, known)) else ""


def one_of(known: Sequence[str]) -> str:
    """What there is to choose from."""
    return f"choose one of {', '.join(known)}"


def check_place(config: DictConfig) -> None:
    """Raise BadInput for what a command needs and this machine does not have."""
    choices = config.hydra.runtime.choices
    if str(config.hydra.launcher.get("_target_")).endswith(".SlurmLauncher") and not shutil.which("sbatch"):
        here = "start it where SLURM is, or choose hydra/launcher=processes or submitit, which play on this machine"
        raise BadInput(f"hydra/launcher={choices['hydra/launcher']}: no sbatch here; {here}")
    weights = str(config.weights)
    of_rows = choices.task == "table" and (OmegaConf.is_dict(config.weights) or Path(weights).is_dir())
    if weights not in WEIGHTS and not Path(weights).is_file() and not of_rows:
        known = f"{one_of(WEIGHTS)}, or a .safetensors file"
        raise BadInput(f"weights={weights}: no such file; {asked(weights, WEIGHTS)}{known}")
    for key in ("results", "reports"):
        reads = choices.task == "report" and key == "results"
        if (config.hydra.mode == RunMode.MULTIRUN or key in config.task) and not reads:
            check_writable(key, Path(config[key]))


def check_writable(key: str, wanted: Path) -> None:
    """Raise BadInput if a folder can neither be written to nor made."""
    place = next(path for path in (wanted.absolute(), *wanted.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        why = "may not be written to" if place.is_dir() else "is a file"
        raise BadInput(f"{key}={wanted}: {place} {why}; give a folder of yours, as in {key}=/tmp/{key}")
