"""The one door from YAML to Python: Hydra composes, dataclasses check, `Experiment` comes out.

The engine's own dataclasses are the schemas, stored as `schema/<group>/<class name>`; a YAML file of the group names
its schema in its defaults list and fills the fields. No list to edit: every subclass is registered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf, open_dict

from pruning import NofM
from results.safe_text import without_secrets
from runner import data
from runner.config.experiment import GROUPS, Experiment, Origin, with_subclasses
from runner.config.recipe import Recipe
from runner.config.record import recorded
from runner.data.task import Dataset
from runner.models import Model
from runner.system.errors import MOVED_KEYS, UserError, moved_key

# Options of the group pattern whose names cannot be file names on Windows; any other by pattern=nm.
N_OF_M = ((1, 4), (2, 4), (3, 4), (2, 8), (4, 8), (1, 2), (1, 8), (2, 16), (4, 16))


def register() -> None:
    """Store every dataclass as a schema. Called once, before Hydra composes."""
    data.import_all()
    store = ConfigStore.instance()
    # Hydra copies its repository with this store in it for each compose, and three times for every group that --help
    # lists, only to change the list of sources. What is loaded from the store is copied by the store itself.
    ConfigStore.__deepcopy__ = _shared  # type: ignore[attr-defined]
    store.store(group="schema", name="experiment", node=Experiment, package="_global_")
    for group, base in GROUPS.items():
        for cls in with_subclasses(base):
            store.store(group=f"schema/{group}", name=cls.__name__, node=cls, package=group)
    for n, m in N_OF_M:
        node = {"defaults": [f"/schema/pattern/{NofM.__name__}", "_self_"], "n": n, "m": m}
        store.store(group="pattern", name=f"{n}:{m}", node=node)
    OmegaConf.register_new_resolver("published_distillation", _published_distillation, replace=True)


def _published_distillation(implied: str, *, _root_: DictConfig) -> str:
    """The `distill` of the recipe's file: the option of the group `distill` in the defaults list of conf/config.yaml.

    A recipe cannot choose it by a defaults list of its own: Hydra allows no `override` in a file that is itself chosen
    by interpolation.

    Args:
        implied: the recipe of this dataset and model, which need not exist.
        _root_: the options of the groups that are chosen already; `recipe` only if it is asked for by name.
    """
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, ConfigLoaderImpl)
    file = f"recipe/{_root_.get('recipe', implied)}"
    recipe = loader.repository.load_config(file) if loader.repository.config_exists(file) else None
    return Recipe.distill if recipe is None else OmegaConf.select(recipe.config, "distill", default=Recipe.distill)


def _shared(store: ConfigStore, memo: dict[int, Any]) -> ConfigStore:
    """The deep copy of a singleton: itself."""
    return store


def compose(overrides: Sequence[str], with_hydra: bool = False) -> DictConfig:
    """Compose the configuration, in a Hydra job or outside of one."""
    import hydra

    if GlobalHydra.instance().is_initialized():
        return hydra.compose("config", list(overrides), return_hydra_config=with_hydra)
    with hydra.initialize_config_module("conf", version_base="1.3"):
        return hydra.compose("config", list(overrides), return_hydra_config=with_hydra)


def compose_experiment(overrides: Sequence[str]) -> tuple[Experiment, Origin]:
    """Compose, check and convert. Raises UserError, PruningError or Hydra's own errors, before anything is loaded."""
    register()
    config = compose(overrides, with_hydra=True)
    choices = chosen_options(config.hydra.runtime.choices)
    with open_dict(config):  # a masked copy would forget that this is an Experiment
        del config["hydra"]
    return load(config, choices, list(overrides))


def chosen_options(choices: Mapping[Any, Any]) -> dict[str, str]:
    """The options of our groups, among all that Hydra calls choices."""
    return {k: str(v) for k, v in choices.items() if k in (*GROUPS, "experiment") and v}


def load(config: DictConfig, choices: dict[str, str], overrides: list[str]) -> tuple[Experiment, Origin]:
    """A composed configuration as objects, with its origin.

    Raises:
        UserError: a key has no value.
        PruningError, UserError: a value is out of range.
    """
    # Hydra refuses unknown keys itself, unless they are appended: +schedule.warmup_steps=5
    if error := moved_key(" ".join(key for key in MOVED_KEYS if OmegaConf.select(config, key) is not None)):
        raise error
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        hint = " (model=hub needs model.path=ID_OR_FOLDER)" if "model.path" in missing else ""
        raise UserError(f"no value for {', '.join(missing)}: set it on the command line or in YAML{hint}")
    experiment = OmegaConf.to_object(config)
    assert isinstance(experiment, Experiment)
    for name, override in experiment.allocation.layers.items():
        if (override.pattern or "").isdigit():
            raise UserError(
                f"allocation.layers.{name}.pattern={override.pattern} is no pattern; YAML reads 2:4 as a number unless "
                "it is quoted"
            )
    if experiment.recipe.name == Recipe().name:
        choices = {**choices, "recipe": experiment.recipe.name}
    return experiment, _origin(experiment, config, choices, overrides)


def _origin(experiment: Experiment, config: DictConfig, choices: dict[str, str], overrides: list[str]) -> Origin:
    # An experiment file may override values as the command line does, so it is no part of the plain configuration;
    # nor is a recipe that belongs to dataset and model anyway.
    implied = f"{choices['dataset']}-{choices['model']}"
    asked = {
        k: v for k, v in choices.items() if k != "experiment" and not (k == "recipe" and v in (implied, Recipe().name))
    }
    composed = compose([f"{group}={option}" for group, option in asked.items()])
    if composed.recipe.distill != config.recipe.distill:
        raise UserError(
            f"recipe.distill={config.recipe.distill} has no effect: distill={choices['distill']} is chosen; set "
            f"distill={config.recipe.distill} instead"
        )
    values = recorded(config)
    plain, actual = _flat(recorded(composed)), _flat(values)
    changed = {key: without_secrets(value) for key, value in actual.items() if value != plain.get(key)}
    labels = {
        "model": _label(choices["model"], ("finetuned", "path"), Model.defining, experiment.model, changed),
        "dataset": _label(choices["dataset"], ("path",), Dataset.defining, experiment.dataset, changed),
        "pattern": str(experiment.pattern) if experiment.prune else "dense",
    }
    yaml = without_secrets(OmegaConf.to_yaml(OmegaConf.create(values)))
    return Origin(labels, choices, changed, [without_secrets(each) for each in overrides], yaml)


def _label(
    choice: str, shown: tuple[str, ...], defining: tuple[str, ...], group: Model | Dataset, changed: dict[str, str]
) -> str:
    """The option's name, only while nothing that defines the group is overridden; else the value."""
    name = "model" if isinstance(group, Model) else "dataset"
    overridden = [key for key in (*shown, *defining) if f"{name}.{key}" in changed]
    if not overridden:
        return choice
    value = str(getattr(group, overridden[0]))
    if overridden[0] not in shown:
        return f"{choice}@{without_secrets(value)}"
    return without_secrets(Path(value).name if Path(value).exists() else value)


def _flat(values: dict[str, Any]) -> dict[str, str]:
    """Dotted keys of recorded values, without those that say where, not what."""
    out: dict[str, str] = {}

    def walk(node: Any, prefix: str) -> None:
        for key, value in node.items():
            if isinstance(value, dict) and all(str(name).isidentifier() for name in value):  # else people's own names
                walk(value, f"{prefix}{key}.")
            else:
                out[f"{prefix}{key}"] = str(value)

    places = ("recipe", "tracking", "output_dir", "cache_dir", "force", "dry_run", "seed")
    walk({key: value for key, value in values.items() if key not in places}, "")
    return out
