"""The recipes: every setting of a training. A model, a recipe and a seed decide a run.

Add a recipe of your own above RECIPES and to its tuple; every script and table finds it.
"""

import ast
import math
import re
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

from cli import Parser, UsageError


def setting(default: Any, *limits: Any) -> Any:
    """A field of a recipe, with its smallest and largest value, or a regular expression."""
    return field(default=default, metadata={"limits": limits})


@dataclass(frozen=True)
class Recipe:
    """Every setting of a training, with its unit; the defaults are the recipe "classic".

    UsageError for a value of another type or outside its limits.
    """

    name: str = setting("classic", r"[\w.+=-]+")
    epochs: int = setting(15, 1, 1000)
    batch_size: int = setting(128, 2, 9999)  # images
    # Augmentation: drawn for each image, uniformly between -x and +x.
    rotation: float = setting(7.0, 0, 180)  # degrees
    translation: float = setting(0.0, 0, 28)  # pixels, along x and along y
    scaling: float = setting(0.0, 0, 9)  # 0.1: by a factor from 1/1.1 to 1.1, log-uniform
    shear: float = setting(0.0, 0, 80)  # degrees
    interpolation: str = setting("nearest", "nearest|bilinear|bicubic")
    # SGD with Nesterov momentum, and OneCycleLR stepped per batch.
    momentum: float = setting(0.9, 1e-9, 1)
    weight_decay: float = setting(0.0, 0, 1)  # of weights, not of biases and BatchNorm
    max_lr: float = setting(0.3, 1e-9, 1e9)
    pct_start: float = setting(0.2, 0.001, 0.999)  # fraction of all batches in which the LR rises
    div_factor: float = setting(10.0, 1, 1e9)  # the LR starts at max_lr / div_factor
    final_div_factor: float = setting(100.0, 1, 1e9)  # and ends at that / final_div_factor
    # Cross-entropy, for training and for the reported loss.
    label_smoothing: float = setting(0.02, 0, 1)
    # Exponential moving average of the weights, updated per batch.
    ema_decay: float = setting(0.0, 0, 1)  # 0 for no EMA

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
        """Whether the EMA is updated in `epoch`, from 1: in those after the LR's rise."""
        return self.ema_decay > 0 and epoch > math.ceil(self.pct_start * self.epochs)

    def changed(self, settings: list[str]) -> "Recipe":
        """This recipe with settings such as "max_lr=0.2", which become part of its name."""
        types = {part.name: part.type for part in fields(self)[1:]}
        changes: dict[str, Any] = {}
        for name, _, text in (setting.partition("=") for setting in settings):
            if name not in types:
                raise UsageError(f"--set {name}: no such setting; there are {', '.join(types)}")
            try:
                changes[name] = types[name](text)
            except ValueError:
                changes[name] = text  # refused by __post_init__
        batch_size = replace(self, **changes).batch_size
        # Unless it is set, the EMA spans as many images as before, whatever the batch size.
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
MILD = replace(STRONG, name="mild", weight_decay=0.0, **MILDER)  # for networks that underfit
FAST = Recipe("fast", epochs=4, interpolation="bilinear", weight_decay=2e-4, **MILDER)
RECIPES = {recipe.name: recipe for recipe in (CLASSIC, STRONG, MILD, FAST)}


@dataclass(frozen=True)
class Experiment:
    """Everything that decides the result of a run, except hardware and versions."""

    model: str
    recipe: Recipe
    seed: int = 42
    holdout: int = 0  # the last so many training images are the validation split, if not 0
    sizes: dict[str, Any] = field(default_factory=dict)  # arguments of the network

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Experiment":
        """The experiment in a run's config.json; UsageError where a value is missing or wrong."""
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
            reason = "is damaged, or of another version; start a new run"
            raise UsageError(f"config.json {reason}") from None

    @property
    def network(self) -> str:
        """The model's name, with its arguments if it was given any: "model6-width34"."""
        words = (f"{k}{v}".translate(dict.fromkeys(b"()[] ")) for k, v in self.sizes.items())
        return "-".join([self.model, *words])

    @property
    def name(self) -> str:
        """The name of the run, and of its folder."""
        holdout = f"-holdout{self.holdout}" if self.holdout else ""
        return f"{self.network}-{self.recipe.name}-seed{self.seed}{holdout}"


def sizes_of(settings: list[str]) -> dict[str, Any]:
    """Arguments of a network from "width=34" or "stem=4,6"; UsageError if it is no literal."""
    try:
        return {k: ast.literal_eval(v) for k, _, v in (text.partition("=") for text in settings)}
    except (ValueError, SyntaxError):
        raise UsageError(f"--size {' '.join(settings)}: write it as --size width=34") from None


def add_settings(parser: Parser) -> None:
    """Adds the options that choose a recipe and change settings of it, and a network's sizes."""
    change = partial(parser.add_argument, dest="settings", action="append", default=[])
    parser.add_argument("--recipe", choices=[*RECIPES], help="default: strong")
    change("--set", metavar="SETTING=VALUE", help="change a setting of the recipe: max_lr=0.2")
    change("--epochs", type="epochs={}".format, metavar="N", help="--set epochs=N")
    change("--batch-size", type="batch_size={}".format, metavar="N", help="--set batch_size=N")
    size = "an argument of the network, if it has any: width=34"
    parser.add_argument(
        "--size", dest="sizes", action="append", default=[], metavar="NAME=VALUE", help=size
    )
