"""The recipes, which hold every setting of a training, and what identifies a run.

Add a recipe of your own above RECIPES and to its tuple; every script and table finds it.
"""

import ast
import math
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from cli import Parser, UsageError


def number(default: float, low: float, high: float) -> Any:
    """A numeric setting with its limits."""
    return field(default=default, metadata={"low": low, "high": high})


def string(default: str, pattern: str) -> Any:
    """A text setting with the regular expression that it must match."""
    return field(default=default, metadata={"pattern": pattern})


@dataclass(frozen=True)
class Recipe:
    """Every setting of a training, with its unit; the defaults are the recipe "classic".

    train.py's default is STRONG: derive from it by replace(STRONG, name="mine", epochs=10).
    UsageError for a value of another type or outside its limits.
    """

    name: str = string("classic", r"[\w.+=-]+")
    epochs: int = number(15, 1, 1000)
    batch_size: int = number(128, 2, 9999)  # images
    # Augmentation: drawn for each image, uniformly between -x and +x.
    rotation: float = number(7.0, 0, 180)  # degrees
    translation: float = number(0.0, 0, 28)  # pixels, along x and along y
    scaling: float = number(0.0, 0, 9)  # 0.1: by a factor from 1/1.1 to 1.1, log-uniform
    shear: float = number(0.0, 0, 80)  # degrees
    interpolation: str = string("nearest", "nearest|bilinear|bicubic")
    # SGD or GGT (ggt.py), with Nesterov momentum, and OneCycleLR stepped per batch.
    optimizer: str = string("sgd", "sgd|ggt")
    momentum: float = number(0.9, 1e-9, 1)
    weight_decay: float = number(0.0, 0, 1)  # of weights, not of biases and BatchNorm
    max_lr: float = number(0.3, 1e-9, 1e9)
    pct_start: float = number(0.2, 0.001, 0.999)  # fraction of all batches in which the LR rises
    div_factor: float = number(10.0, 1, 1e9)  # the LR starts at max_lr / div_factor
    final_div_factor: float = number(100.0, 1, 1e9)  # and ends at that / final_div_factor
    # Cross-entropy, for training and for the reported loss.
    label_smoothing: float = number(0.02, 0, 1)
    # Exponential moving average of the weights, updated per batch.
    ema_decay: float = number(0.0, 0, 1)  # 0 for no EMA
    # Training images, without augmentation, from which the evaluated network's BatchNorm statistics
    # are computed after each epoch; 0 keeps the running statistics.
    bn_images: int = number(0, 0, 60_000)

    def __post_init__(self) -> None:
        for part in fields(self):
            value, limits = getattr(self, part.name), part.metadata
            if part.type is str:
                allowed = limits["pattern"]
                fits = isinstance(value, str) and re.fullmatch(allowed, value)
            else:
                low, high = limits["low"], limits["high"]
                allowed = f"{low} to {high}"
                fits = isinstance(value, (int, part.type)) and low <= value <= high
            if not fits:
                must_be = f"{part.type.__name__}, {allowed}"
                raise UsageError(f"recipe: {part.name} is {value!r}; it must be {must_be}")

    def has_ema(self, epoch: int) -> bool:
        """Whether the EMA is updated in `epoch`, from 1: it starts after the warm-up of the LR."""
        return self.ema_decay > 0 and epoch > math.ceil(self.pct_start * self.epochs)

    def changed(self, settings: list[str]) -> "Recipe":
        """This recipe with settings such as "max_lr=0.2", which become part of its name.

        Another batch size changes the EMA's decay too, unless that is set, but not the LR.
        """
        types = {part.name: part.type for part in fields(self)[1:]}
        changes: dict[str, Any] = {}
        for assignment in settings:
            name, _, text = assignment.partition("=")
            if name not in types:
                raise UsageError(f"--set {name}: no such setting; there are {', '.join(types)}")
            try:
                changes[name] = types[name](text)
            except ValueError:
                changes[name] = text  # refused by __post_init__
        batch_size = replace(self, **changes).batch_size
        # Scale the decay with the batch size, so that the EMA averages over as many images.
        scaled = replace(self, ema_decay=self.ema_decay ** (batch_size / self.batch_size))
        # Settings that already have this value do not appear in the name.
        changes = {name: value for name, value in changes.items() if value != getattr(scaled, name)}
        name = "+".join([self.name, *(f"{name}={changes[name]}" for name in sorted(changes))])
        return replace(scaled, name=name, **changes)


CLASSIC = Recipe()
STRONG = Recipe(
    "strong",
    batch_size=32,
    rotation=10.0,
    translation=2.0,
    scaling=0.1,
    shear=5.0,
    interpolation="bilinear",
    weight_decay=2e-4,
    max_lr=0.1,
    ema_decay=0.9995,  # over some 2,000 batches: about one epoch
)
MILDER: dict[str, Any] = {"rotation": 5.0, "translation": 0.5, "scaling": 0.05, "shear": 2.0}
TINY = replace(  # for networks of a few hundred parameters, which underfit
    STRONG,
    name="tiny",
    batch_size=128,
    weight_decay=0.0,
    optimizer="ggt",
    max_lr=0.02,
    ema_decay=0.998,
    bn_images=10_000,
    **MILDER,
)
FAST = Recipe("fast", epochs=4, interpolation="bilinear", weight_decay=2e-4, **MILDER)
RECIPES = {recipe.name: recipe for recipe in (CLASSIC, STRONG, TINY, FAST)}


@dataclass(frozen=True)
class Experiment:
    """What identifies a run. Its result depends also on dataset, hardware and versions."""

    model: str
    recipe: Recipe
    seed: int = 42
    holdout: int = 0  # size of the validation split, the last training images
    sizes: dict[str, Any] = field(default_factory=dict)  # arguments of the network

    @classmethod
    def from_config(cls, config: dict[str, Any], folder: Path) -> "Experiment":
        """The experiment in config.json of a run folder; UsageError where a value is wrong."""
        try:
            values = {part.name: config[part.name] for part in fields(cls)}
            experiment = cls(**values | {"recipe": Recipe(**config["recipe"])})
            types = {"model": str, "seed": int, "holdout": int, "sizes": dict}
            if not all(isinstance(values[name], types[name]) for name in types):
                raise TypeError
            if not (0 <= experiment.seed < 2**32 and experiment.holdout >= 0):
                raise ValueError
            return experiment
        except (KeyError, TypeError, ValueError, UsageError):
            reason = "config.json is damaged, or of another version; start a new run"
            raise UsageError(f"{folder}: {reason}") from None

    @property
    def network(self) -> str:
        """The model's name, with its arguments if it was given any: "model6-width34"."""
        words = (re.sub(r"[()\[\] ]", "", f"{name}{size}") for name, size in self.sizes.items())
        return "-".join([self.model, *words])

    @property
    def name(self) -> str:
        """The name of the run, and of its folder."""
        holdout = f"-holdout{self.holdout}" if self.holdout else ""
        return f"{self.network}-{self.recipe.name}-seed{self.seed}{holdout}"


def sizes_of(settings: list[str]) -> dict[str, Any]:
    """Arguments of a network from "width=34" or "stem=4,6"; UsageError if it is none."""
    sizes = {}
    try:
        for assignment in settings:
            name, _, value = assignment.partition("=")
            sizes[name] = ast.literal_eval(value)
        return sizes
    except (ValueError, SyntaxError):
        raise UsageError(f"--size {' '.join(settings)}: write it as --size width=34") from None


def add_settings(parser: Parser) -> None:
    """Adds the options that choose a recipe and change settings of it, and a network's sizes."""
    add, settings = parser.add_argument, {"dest": "settings", "action": "append", "default": []}
    add("--recipe", choices=[*RECIPES], help="default: strong")
    change = "change a setting of the recipe: max_lr=0.2"
    add("--set", metavar="SETTING=VALUE", help=change, **settings)
    # "--epochs 10" is stored as the setting "epochs=10".
    add("--epochs", type="epochs={}".format, metavar="N", help="--set epochs=N", **settings)
    batch_size = {"type": "batch_size={}".format, "help": "--set batch_size=N"}
    add("--batch-size", metavar="N", **batch_size, **settings)
    size = "an argument of the network, if it has any: width=34"
    parser.add_argument(
        "--size", dest="sizes", action="append", default=[], metavar="NAME=VALUE", help=size
    )
