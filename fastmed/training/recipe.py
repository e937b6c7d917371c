"""Recipe: one pipeline as one value, read from a TOML file and changed by --set."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

from fastmed.errors import UsageError
from fastmed.spec import Spec
from fastmed.spec_toml import FORMAT, spec_from_table, spec_to_table
from fastmed.training.augment import Augmentation
from fastmed.training.batches import Sampling

PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Loss:
    """The loss, by its name in `fastmed.losses`, or "auto": chosen by the share of positives.

    class_weights: "none", "inverse" or "effective" (Cui et al. 2019, with `beta`), by the
        training cases of a classification.
    matcher: which default boxes of a detection answer for which finding: "atss" or "iou"; None
        takes the loss's own.
    options: others of that loss by their names in `fastmed.losses`, such as {"gamma": 2.0}.
    """

    name: str = "ce"
    class_weights: str = "none"
    beta: float = 0.999
    matcher: str | None = None
    options: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        _one_of("loss.class_weights", self.class_weights, ("none", "inverse", "effective"))
        _within("loss.beta", self.beta, 0, 1)
        if self.matcher is not None:
            _one_of("loss.matcher", self.matcher, ("atss", "iou"))
        if not isinstance(self.options, dict | None):
            raise ValueError(f"loss.options {self.options!r}: expected a table")


@dataclass(frozen=True)
class Optimiser:
    """How weights follow gradients.

    name: "adam" or "adamw". schedule: "none", "plateau" (times `factor` after `patience` epochs
        without a better score), "cosine" (to `final_learning_rate` at the last epoch) or "step"
        (times `factor` every `step_epochs` epochs).
    warmup_steps: the learning rate rises linearly over the first steps.
    clip_norm: largest norm of all gradients together; 0 does not clip.
    accumulate: batches whose gradients are averaged for one step.
    """

    name: str = "adam"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    schedule: str = "plateau"
    factor: float = 0.5
    patience: int = 5
    step_epochs: int = 10
    final_learning_rate: float = 0.0
    warmup_steps: int = 0
    clip_norm: float = 1.0
    accumulate: int = 1

    def __post_init__(self) -> None:
        _one_of("optimiser.name", self.name, ("adam", "adamw"))
        _one_of("optimiser.schedule", self.schedule, ("none", "plateau", "cosine", "step"))
        _within("optimiser.learning_rate", self.learning_rate, 0, 10, open_low=True)
        _within("optimiser.weight_decay", self.weight_decay, 0, 10)
        _within("optimiser.factor", self.factor, 0, 1, open_low=True)
        _within("optimiser.final_learning_rate", self.final_learning_rate, 0, self.learning_rate)
        _within("optimiser.clip_norm", self.clip_norm, 0, math.inf)
        _at_least("optimiser.patience", self.patience, 0)
        _at_least("optimiser.step_epochs", self.step_epochs, 1)
        _at_least("optimiser.warmup_steps", self.warmup_steps, 0)
        _at_least("optimiser.accumulate", self.accumulate, 1)


@dataclass(frozen=True)
class Loop:
    """How long and how a run trains.

    batch_size: samples of one step over all devices together.
    precision: "fp32", "bf16" or "fp16" (mixed, with a gradient scaler; CUDA only).
    patience: validations without a better score before the run stops early; 0 never does.
    ema: decay of a moving average of the weights, which is validated and kept in their place;
        0 does without.
    compile: whether torch.compile compiles the network.
    checkpoints: which epochs keep a named bundle: the "best", the "last" or "every" one.
    validate_every: epochs from one validation to the next; the last epoch is always validated.
    shares: of the patients for training, validation and test.
    cache_gb: most gigabytes that decoded scans may take on disk; 0 caches nothing between runs.
    """

    epochs: int = 100
    batch_size: int = 2
    precision: str = "fp32"
    patience: int = 15
    ema: float = 0.0
    compile: bool = False
    checkpoints: str = "best"
    validate_every: int = 1
    seed: int = 0
    shares: tuple[float, float, float] = (0.7, 0.15, 0.15)
    cache_gb: float = 50.0

    def __post_init__(self) -> None:
        _one_of("loop.precision", self.precision, PRECISIONS)
        _one_of("loop.checkpoints", self.checkpoints, ("best", "last", "every"))
        _within("loop.ema", self.ema, 0, 1, open_high=True)
        _within("loop.cache_gb", self.cache_gb, 0, math.inf)
        if len(self.shares) != 3 or not all(type(s) is float and 0 <= s <= 1 for s in self.shares):
            raise ValueError(f"loop.shares {self.shares}: expected three numbers from 0 to 1")
        if abs(sum(self.shares) - 1) > 1e-6 or not self.shares[0]:
            raise ValueError(f"loop.shares {self.shares}: expected a sum of 1, and some to train")
        for name, low in (
            ("epochs", 1), ("batch_size", 1), ("patience", 0), ("validate_every", 1), ("seed", 0),
        ):  # fmt: skip
            _at_least(f"loop.{name}", getattr(self, name), low)


@dataclass(frozen=True, eq=False)
class Recipe:
    """Everything that decides a training run, its data aside.

    values: for each label the values that mean it in the label maps, {"liver": (5,)}; empty takes
        everything above 0 for the only label, or the spec's own values where it has several.
    """

    spec: Spec
    description: str = ""
    values: dict[str, tuple[int, ...]] = field(default_factory=dict)
    loss: Loss = field(default_factory=Loss)
    sampling: Sampling = field(default_factory=Sampling)
    augmentation: Augmentation = field(default_factory=Augmentation)
    optimiser: Optimiser = field(default_factory=Optimiser)
    loop: Loop = field(default_factory=Loop)

    def __post_init__(self) -> None:
        if self.spec.network is None:
            raise ValueError("[network] is missing: a recipe names what it trains")
        known = {label.name for label in self.spec.labels}
        if unknown := self.values.keys() - known:
            raise ValueError(f"[values] {', '.join(sorted(unknown))}: no label of that name")
        if self.spec.task == "detection":
            self._check_detection()

    def _check_detection(self) -> None:
        if self.augmentation.elastic_p:
            raise ValueError(
                f"augmentation.elastic_p {self.augmentation.elastic_p}: a detection's boxes cannot "
                "be bent with the image; set it to 0"
            )
        if self.values:
            raise ValueError("[values]: for label maps; a detection's tables name their labels")


_PARTS = {
    "loss": Loss, "sampling": Sampling, "augmentation": Augmentation, "optimiser": Optimiser,
    "loop": Loop,
}  # fmt: skip


def recipe_names() -> dict[str, str]:
    """The recipes that ship with the package: name and description."""
    found = sorted(_folder().glob("*.toml"))
    return {p.stem: tomllib.loads(p.read_text("utf-8")).get("description", "") for p in found}


def read_recipe(recipe: str | Path, settings: Iterable[str] = ()) -> Recipe:
    """Reads a recipe by its name, or from a TOML file, and applies `settings`.

    settings: "table.entry=value" with a value as TOML writes it, such as
        "loop.epochs=5", "values.liver=[5]" or "sampling.crop=label".

    Raises UsageError that names the recipe, the entry and what was expected.
    """
    path = Path(recipe)
    if path.suffix != ".toml":
        path = _folder() / f"{recipe}.toml"
        if not path.is_file():
            known = ", ".join(recipe_names())
            raise UsageError(f"recipe {recipe}: unknown; known are {known}, or a .toml file")
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"recipe {path}: cannot be read ({error})") from error
    for setting in settings:
        _apply(table, setting)
    try:
        return recipe_from_table(table)
    except ValueError as error:
        raise UsageError(f"recipe {recipe}: {error}") from error


def recipe_from_table(table: Mapping[str, Any]) -> Recipe:
    """Turns parsed TOML into a Recipe; raises ValueError for what is unknown or wrong."""
    table = dict(table)
    description = table.pop("description", "")
    values = {}
    for name, listed in _table(table.pop("values", {}), "values").items():
        if not isinstance(listed, list) or not listed or not all(type(v) is int for v in listed):
            raise ValueError(f"[values] {name}: expected a list of whole numbers, got {listed!r}")
        values[name] = tuple(listed)
    parts = {name: _part(cls, table.pop(name, {}), name) for name, cls in _PARTS.items()}
    spec = spec_from_table({"format": FORMAT, **table})
    return Recipe(spec, description, values, **parts)


def recipe_to_table(recipe: Recipe) -> dict[str, Any]:
    """The table that `recipe_from_table` reads back as an equal recipe."""
    table = {"description": recipe.description, **spec_to_table(recipe.spec)}
    del table["format"]
    table["values"] = {name: list(values) for name, values in recipe.values.items()}
    for name in _PARTS:
        part = getattr(recipe, name)
        entries = {f.name: getattr(part, f.name) for f in fields(part)}
        table[name] = {
            entry: list(value) if isinstance(value, tuple) else value
            for entry, value in entries.items()
            if value is not None
        }
    return table


def _folder() -> Path:
    return Path(str(resources.files("fastmed") / "recipes"))


def _apply(table: dict[str, Any], setting: str) -> None:
    """Sets one entry of a nested table from "a.b=value"."""
    name, equals, text = setting.partition("=")
    keys = [key.strip() for key in name.split(".")]
    if not equals or not all(keys):
        raise UsageError(f"--set {setting}: expected table.entry=value, such as loop.epochs=5")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word, as shells leave it of a quoted one
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise UsageError(f"--set {setting}: {key} is no table of the recipe")
    table[keys[-1]] = value


def _table(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"[{name}]: expected a table")
    return value


def _part(cls: type, table: Any, name: str):
    """Builds one dataclass from its table: entries known, each of its default's kind."""
    defaults = {f.name: f.default for f in fields(cls)}
    arguments = {}
    for entry, value in _table(table, name).items():
        if entry not in defaults:
            known = ", ".join(sorted(defaults))
            raise ValueError(f"[{name}] {entry}: unknown; known are {known}")
        arguments[entry] = _as_kind(value, defaults[entry], f"[{name}] {entry}")
    try:
        return cls(**arguments)
    except TypeError as error:
        raise ValueError(f"[{name}]: {error}") from error


def _as_kind(value: Any, default: Any, name: str) -> Any:
    if isinstance(value, list):
        value = tuple(value)
    if type(default) is float and type(value) is int:
        value = float(value)
    if isinstance(default, tuple) and default and isinstance(default[0], float):
        value = tuple(float(v) if type(v) is int else v for v in value) if value else value
    single = isinstance(default, bool | int | float)
    if single and type(value) is not type(default):
        raise ValueError(f"{name}: expected {_KINDS[type(default)]}, got {value!r}")
    if isinstance(default, tuple) and not isinstance(value, tuple):
        raise ValueError(f"{name}: expected a list, got {value!r}")
    return value


_KINDS = {bool: "true or false", int: "a whole number", float: "a number"}


def _one_of(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} {value!r}: expected one of {', '.join(known)}")


def _within(name, value, low, high, *, open_low=False, open_high=False) -> None:
    inside = (low < value if open_low else low <= value) and (
        value < high if open_high else value <= high
    )
    if not inside:
        edges = f"{'above' if open_low else 'from'} {low} {'below' if open_high else 'to'} {high}"
        raise ValueError(f"{name} {value}: expected a number {edges}")


def _at_least(name: str, value: int, low: int) -> None:
    if value < low:
        raise ValueError(f"{name} {value}: expected at least {low}")
