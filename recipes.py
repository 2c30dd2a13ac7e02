"""The recipes: every setting of a training. With a network and a seed, one decides a run.

A recipe of your own stands above RECIPES and goes into the tuple there; scripts and tables find it.
"""

import math
import re
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

from attempts import build_network, count_parameters
from script import Parser, UsageError


def setting(default: Any, *limits: Any) -> Any:
    """A field of a recipe: its value in "classic"; the least and the most it can be, or a regex."""
    return field(default=default, metadata={"limits": limits})


@dataclass(frozen=True)
class Recipe:
    """Every setting of a training, with its unit. The defaults are the recipe "classic".

    Raises UsageError for a value of another type or beyond its limits.
    """

    name: str = setting("classic", r"[\w.+=-]+")
    epochs: int = setting(15, 1, 1000)
    batch_size: int = setting(128, 2, 9999)  # images
    # Augmentation: every image has a draw of its own, uniform within these bounds.
    rotation: float = setting(7.0, 0, 180)  # degrees, to both sides
    translation: float = setting(0.0, 0, 28)  # pixels, to both sides, along x and along y
    scaling: float = setting(0.0, 0, 9)  # 0.1: from 1/1.1 to 1.1 times, uniform in the logarithm
    shear: float = setting(0.0, 0, 80)  # degrees, to both sides
    interpolation: str = setting("nearest", "nearest|bilinear|bicubic")
    # SGD with Nesterov momentum; OneCycleLR, stepped after every batch.
    momentum: float = setting(0.9, 1e-9, 1)
    weight_decay: float = setting(0.0, 0, 1)  # of filters and matrices, not of biases and BatchNorm
    max_lr: float = setting(0.3, 1e-9, 1e9)
    pct_start: float = setting(0.2, 0.001, 0.999)  # the part of all batches in which it rises
    div_factor: float = setting(10.0, 1, 1e9)  # the rate starts at max_lr / div_factor
    final_div_factor: float = setting(100.0, 1, 1e9)  # and ends at that / final_div_factor
    # Cross-entropy, for training and for the reported loss.
    label_smoothing: float = setting(0.02, 0, 1)
    # Exponential moving average of the weights and of BatchNorm's statistics, step by step.
    ema_decay: float = setting(0.0, 0, 1)  # 0 for none

    def __post_init__(self) -> None:
        for part in fields(self):
            value, limits = getattr(self, part.name), part.metadata["limits"]
            if part.type is str:
                fits = isinstance(value, str) and re.fullmatch(*limits, value)
            else:
                fits = isinstance(value, (int, part.type)) and limits[0] <= value <= limits[1]
            if not fits:
                must_be = f"{part.type.__name__}, {' to '.join(map(str, limits))}"
                raise UsageError(f"recipe: {part.name} is {value!r}; it must be {must_be}")

    def has_ema(self, epoch: int) -> bool:
        """Whether weights are averaged in `epoch`, from 1: after those in which the rate rises."""
        return self.ema_decay > 0 and epoch > math.ceil(self.pct_start * self.epochs)

    def changed(self, settings: list[str]) -> "Recipe":
        """This recipe with such settings as "max_lr=0.2", which its name then has too."""
        kinds = {part.name: part.type for part in fields(self)[1:]}
        changes: dict[str, Any] = {}
        for name, _, text in (setting.partition("=") for setting in settings):
            if name not in kinds:
                raise UsageError(f"--set {name}: no setting; there are {', '.join(kinds)}")
            try:
                changes[name] = kinds[name](text)
            except ValueError:
                changes[name] = text  # which the recipe refuses
        batch_size = replace(self, **changes).batch_size  # which refuses what is beyond its limits
        # Unless it was set, the average reaches back as many images, whatever the size of a batch.
        start = replace(self, ema_decay=self.ema_decay ** (batch_size / self.batch_size))
        changes = {name: value for name, value in changes.items() if value != getattr(start, name)}
        name = "+".join([self.name, *(f"{name}={changes[name]}" for name in sorted(changes))])
        return replace(start, name=name, **changes)


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
MILD = replace(STRONG, name="mild", weight_decay=0.0, **MILDER)  # for what underfits
FAST = Recipe("fast", epochs=4, interpolation="bilinear", weight_decay=2e-4, **MILDER)
RECIPES = {recipe.name: recipe for recipe in (CLASSIC, STRONG, MILD, FAST)}


@dataclass(frozen=True)
class Experiment:
    """Everything that decides the result of a run, but for hardware and versions."""

    model: str
    recipe: Recipe
    seed: int = 42  # of every random draw
    holdout: int = 0  # so many training images, the last ones, take the place of the test set
    sizes: dict = field(default_factory=dict)  # arguments of the network, if any

    def __post_init__(self) -> None:
        for part in fields(self):
            if not isinstance(getattr(self, part.name), part.type):
                raise TypeError(f"{part.name} of an experiment is no {part.type.__name__}")

    @property
    def network(self) -> str:
        """The name of the network; of one that was given sizes, with its number of parameters."""
        if not self.sizes:
            return self.model
        return f"{self.model}-{count_parameters(build_network(self.model, **self.sizes))}"

    @property
    def name(self) -> str:
        """What the run is called, and its folder."""
        holdout = f"-holdout{self.holdout}" if self.holdout else ""
        return f"{self.network}-{self.recipe.name}-seed{self.seed}{holdout}"


def add_settings(parser: Parser) -> None:
    """The options that choose a recipe and change settings of it."""
    change = partial(parser.add_argument, dest="settings", action="append", default=[])
    recipe = {"choices": [*RECIPES], "default": "strong", "help": "default: %(default)s"}
    parser.add_argument("--recipe", **recipe)
    change("--set", metavar="SETTING=VALUE", help="change a setting of the recipe: max_lr=0.2")
    change("--epochs", type="epochs={}".format, metavar="N", help="--set epochs=N")
    change("--batch-size", type="batch_size={}".format, metavar="N", help="--set batch_size=N")
