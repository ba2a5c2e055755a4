"""The one door from YAML to Python: Hydra composes, dataclasses check, `Experiment` comes out.

The engine's own dataclasses are the schemas, stored as `schema/<group>/<class name>`; a YAML file of the group names
its schema in its defaults list and fills the fields. No list to edit: every subclass is registered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from results.safe_text import without_secrets
from runner.config import help, plugins, schemas
from runner.config.experiment import GROUPS, PLACES, Experiment, Origin, check_seed
from runner.config.keys import CHOICES, check_keys
from runner.config.labels import labels
from runner.config.recipe import Recipe
from runner.config.record import as_yaml, recorded
from runner.config.refusals import advice, explained
from runner.system.errors import UserError
from runner.system.spelling import no_option

BEST = "best"
"""The recipe of pairs of dataset and model without one of their own."""
NAMED_BY_RECIPE = ("criterion", "schedule", "distill")
"""Groups whose option a recipe names."""
_SCHEMA = "schema/recipe/"
_LONGEST_NAME = 255  # in bytes, on all common file systems
_NAMES = ("model.revision", "model.finetuned_revision", "model.model_type", "dataset.name", "dataset.revision",
          "dataset.train_split")  # fmt: skip
"""Keys besides `PLACES` that choose a checkpoint or data, and may be left out."""


def register() -> None:
    """Store every dataclass as a schema. Called once, before Hydra composes."""
    schemas.fill()
    for name, resolver in zip(schemas.RESOLVERS, (_recipe_says, _help), strict=True):
        OmegaConf.register_new_resolver(name, resolver, replace=True)


def _recipe_says(group: str, implied: str, *, _root_: DictConfig) -> str:
    """The option of a group that the recipe's file names, for the defaults list of conf/config.yaml.

    A recipe cannot choose it by a defaults list of its own: Hydra allows no `override` in a file that is itself chosen
    by interpolation. A recipe's criterion and schedule are made for each other: if one of them is asked for that the
    recipe does not name, the other is the default of `Recipe`.

    Args:
        group: one of `NAMED_BY_RECIPE`.
        implied: the recipe of this dataset and model, which need not exist: then `best` counts.
        _root_: the options of the groups that are chosen already; `recipe`, `criterion` and `schedule` only if they
            were asked for by name.
    """
    repository = _loader().repository  # without the folders of hydra.searchpath: `_check_named_by_recipe`
    asked = _root_.get("recipe", implied)
    named = {group: getattr(Recipe, group) for group in NAMED_BY_RECIPE}
    if repository.config_exists(f"recipe/{asked}"):
        merged = [BEST, asked]  # in the order of conf/config.yaml
    else:
        merged = [BEST] if asked == implied else []
    for recipe in merged:
        file = repository.load_config(f"recipe/{recipe}")
        assert file is not None
        if any(_SCHEMA in repr(entry) for entry in file.defaults_list or []):
            named = {group: getattr(Recipe, group) for group in NAMED_BY_RECIPE}
        named = {group: OmegaConf.select(file.config, group, default=named[group]) for group in NAMED_BY_RECIPE}
    if any(_root_.get(group, named[group]) != named[group] for group in ("criterion", "schedule")):
        named |= {"criterion": Recipe.criterion, "schedule": Recipe.schedule}
    return named[group]


def _help() -> str:
    """The text of --help, for Hydra's template: it reads $ as the beginning of a name."""
    return help.text(_loader().get_group_options).replace("$", "$$")


def compose(overrides: Sequence[str], with_hydra: bool = False) -> DictConfig:
    """Compose the configuration, in a Hydra job or outside of one."""
    import hydra

    with _initialized():
        return hydra.compose("config", list(overrides), return_hydra_config=with_hydra)


@contextmanager
def _initialized() -> Iterator[ConfigLoaderImpl]:
    """Hydra's loader of configurations: that of the job, or one of conf/ alone."""
    import hydra

    if GlobalHydra.instance().is_initialized():
        yield _loader()
    else:
        with hydra.initialize_config_module("conf", version_base="1.3"):
            yield _loader()


def override_parser() -> OverridesParser:
    """The parser of overrides; in a Hydra job it knows the options of the groups, for pattern=glob(*x1)."""
    return OverridesParser.create(_loader() if GlobalHydra.instance().is_initialized() else None)


def _loader() -> ConfigLoaderImpl:
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, ConfigLoaderImpl)
    return loader


def compose_experiment(overrides: Sequence[str]) -> tuple[Experiment, Origin]:
    """Compose, check and convert. Raises UserError or PruningError, before anything is loaded."""
    plugins.load_asked(overrides)
    register()
    with explained(overrides):
        config = compose(overrides, with_hydra=True)
    choices = chosen_options(config.hydra.runtime.choices)
    with open_dict(config):  # a masked copy would forget that this is an Experiment
        del config["hydra"]
    return load(config, choices, list(overrides))


def as_typed(hydra_config: Any) -> list[str]:
    """The command line's overrides, in which ${...} is not resolved."""
    return [str(override) for override in OmegaConf.to_container(hydra_config.overrides.task, resolve=False)]  # type: ignore[union-attr]


def chosen_options(choices: Mapping[Any, Any]) -> dict[str, str]:
    """The options of our groups, among all that Hydra calls choices."""
    return {k: str(v) for k, v in choices.items() if k in (*GROUPS, "experiment") and v}


def load(
    config: DictConfig,
    choices: dict[str, str],
    overrides: list[str],
    plain: Callable[[Sequence[str]], DictConfig] = compose,
) -> tuple[Experiment, Origin]:
    """A composed configuration as objects, with its origin; `plain` composes the options of the groups alone.

    Raises:
        UserError: a key does not exist or has no value.
        PruningError, UserError: a value is out of range.
    """
    if OmegaConf.get_type(config) is not Experiment:
        raise UserError("--config-name: this is not the configuration of a run: begin its defaults list with - config")
    with explained(overrides):
        check_keys(config, overrides)
        _check_options(choices, overrides, config.recipe.name)
        _check_texts(config, overrides)
        _check_names(config)
        return _loaded(config, choices, overrides, plain)


def _check_options(choices: Mapping[str, str], overrides: list[str], name: str) -> None:
    """Refuse what Hydra composes without a word: several options of a group, and a recipe that does not exist.

    Args:
        name: of the recipe that was composed.
    """
    for override in OverridesParser.create().parse_overrides(overrides):
        group, value, line = override.key_or_group, override.value(), str(override.input_line)
        if group in CHOICES and (override.is_add() or override.is_force_add()):
            plain = line.lstrip("+")
            raise UserError(f"{line}: the group {group} has an option already; leave the + out: {plain}")
        if group in CHOICES and not override.is_delete() and (isinstance(value, list) or value == ""):
            raise UserError(f"{line}: a run takes one option of a group; -m runs several: {group}=A,B")
        if group.startswith("schema/"):
            raise UserError(f"{line}: a schema is named by the options of a group, in their YAML; choose one of these")
    recipe = choices.get("recipe", BEST)
    if name == BEST and recipe != f"{choices['dataset']}-{choices['model']}" and not _has_recipe(recipe):
        with _initialized() as loader:
            raise UserError(no_option("", "recipe", recipe, loader.get_group_options("recipe")))


def _has_recipe(name: str) -> bool:
    """Whether there is a file of this recipe, but for folders of hydra.searchpath."""
    with _initialized() as loader:
        return loader.repository.config_exists(f"recipe/{name}")


def _check_texts(config: DictConfig, overrides: list[str]) -> None:
    """Refuse a text that Hydra's grammar read as a number and so changed: a folder 1e3 would become 1000.0."""
    for override in OverridesParser.create().parse_overrides(overrides):
        value, (key, _, given) = override.value(), str(override.input_line).partition("=")
        changed = isinstance(value, (int, float)) and not isinstance(value, bool) and str(value) != given
        if changed and (key in PLACES or isinstance(OmegaConf.select(config, override.key_or_group), str)):
            raise UserError(f"{key}={given}: this reads as the number {value}; type {advice(f'{key}={given}')}")


def _check_names(config: DictConfig) -> None:
    """Refuse paths with a name that no file system takes, and empty names, as an unset variable of the shell leaves
    them: some would mean that nothing is given, under the label of another model."""
    for key in (*PLACES, *_NAMES):
        if OmegaConf.select(config, key) == "" and key != "model.path":  # Model refuses that
            raise UserError(f"{key}=: an empty text names nothing; leave the key out, or give it a value")
    for key in (*PLACES, "output_dir", "cache_dir"):
        value = OmegaConf.select(config, key) or ""
        parts = "/".join(map(str, value if isinstance(value, ListConfig) else [value])).split("/")
        size = max(len(part.encode(errors="surrogateescape")) for part in parts)
        if size > _LONGEST_NAME:
            raise UserError(
                f"{key}: a name in this path has {size} bytes, and {_LONGEST_NAME} are the limit; shorten it"
            )


def _loaded(
    config: DictConfig, choices: dict[str, str], overrides: list[str], plain: Callable[[Sequence[str]], DictConfig]
) -> tuple[Experiment, Origin]:
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        hint = " (model=hub needs model.path=ID_OR_FOLDER)" if "model.path" in missing else ""
        raise UserError(f"no value for {', '.join(missing)}: set it on the command line or in YAML{hint}")
    check_seed(config.seed)  # before the criterion that takes it refuses it under another name
    experiment = OmegaConf.to_object(config)
    assert isinstance(experiment, Experiment)
    plugins.check(experiment, plugins.load_asked(overrides))
    for name, override in experiment.allocation.layers.items():
        if (override.pattern or "").isdigit():
            raise UserError(
                f"allocation.layers.{name}.pattern={override.pattern} is no pattern; YAML reads 2:4 as a number unless "
                "it is quoted"
            )
    searchpath = [override for override in overrides if override.lstrip("+").startswith("hydra.searchpath=")]
    composed = plain([*searchpath, *asked_groups(choices)])
    if experiment.recipe.name == BEST and not _has_recipe(choices.get("recipe", "")):
        choices = {**choices, "recipe": BEST}
    _check_named_by_recipe(config, choices, overrides, composed)
    return experiment, _origin(experiment, config, choices, overrides, composed)


def asked_groups(choices: Mapping[str, str]) -> list[str]:
    """The overrides that choose these options, for the plain configuration. An experiment file may override values as
    the command line does, so it is no part of that; nor is a recipe that belongs to dataset and model anyway."""
    implied = f"{choices['dataset']}-{choices['model']}"
    groups = {k: v for k, v in choices.items() if k != "experiment" and not (k == "recipe" and v == implied)}
    return [f"{group}={option}" for group, option in groups.items()]


def _check_named_by_recipe(
    config: DictConfig, choices: Mapping[str, str], overrides: list[str], composed: DictConfig
) -> None:
    """Refuse options of groups that are named where nothing reads them: on the command line, as Hydra chooses options
    before it reads values, and in recipes of hydra.searchpath."""
    asked = {override.partition("=")[0] for override in overrides}
    unread = "~recipe" in asked or ("experiment" not in choices and not _has_recipe(choices["recipe"]))
    for group in NAMED_BY_RECIPE:
        said, chosen = config.recipe[group], choices[group]
        if composed.recipe[group] != said or (unread and chosen != said and group not in asked):
            raise UserError(
                f"recipe.{group}={said} has no effect: {group}={chosen} is chosen; set {group}={said} instead"
            )


def _origin(
    experiment: Experiment, config: DictConfig, choices: dict[str, str], overrides: list[str], composed: DictConfig
) -> Origin:
    values = recorded(config)
    default = OmegaConf.merge(composed, {"seed": config.seed})  # which other keys may follow
    assert isinstance(default, DictConfig)
    plain, actual = _flat(recorded(default)), _flat(values)
    changed = {key: without_secrets(value) for key, value in actual.items() if value != plain.get(key)}
    yaml = without_secrets(as_yaml(values))
    named = labels(experiment, choices, changed, overrides)
    return Origin(named, choices, changed, [without_secrets(each) for each in overrides], yaml)


def _flat(values: dict[str, Any]) -> dict[str, str]:
    """Dotted keys of recorded values, without those that say where, not what."""
    out: dict[str, str] = {}

    def walk(node: Any, prefix: str) -> None:
        for key, value in node.items():
            if isinstance(value, dict) and all(str(name).isidentifier() for name in value):  # else people's own names
                walk(value, f"{prefix}{key}.")
            else:
                out[f"{prefix}{key}"] = str(value)

    places = ("recipe", "tracking", "output_dir", "cache_dir", "force", "dry_run", "seed", plugins.KEY)
    walk({key: value for key, value in values.items() if key not in places}, "")
    return out
