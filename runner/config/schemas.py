"""Hydra's store: the dataclasses as schemas, patterns of any size, and how to leave the store as it was."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from omegaconf import OmegaConf

from pruning import Block, NofM
from runner import data
from runner.config import plugins
from runner.config.experiment import GROUPS, Experiment, with_subclasses
from runner.system.spelling import N_OF_M

RESOLVERS = ("recipe_says", "help")
"""Names of what conf/config.yaml computes with."""
_SIZE = re.compile(r"pattern/(?!0x|\d+x0)(0|[1-9]\d{0,8})([x:])(0|[1-9]\d{0,8})\.yaml")


def fill() -> None:
    """Store every dataclass as a schema."""
    data.import_all()
    store = ConfigStore.instance()
    # Hydra copies its repository with this store in it for each compose, and three times for every group that --help
    # lists, only to change the list of sources. What is loaded from the store is copied by the store itself.
    ConfigStore.__deepcopy__ = _shared  # type: ignore[attr-defined]
    store.store(group="schema", name="experiment", node=Experiment, package="_global_")
    store.repo.pop("pattern", None)  # sizes that were asked for before
    for group, base in GROUPS.items():
        for cls in with_subclasses(base):
            store.store(group=f"schema/{group}", name=cls.__name__, node=cls, package=group)
        for name, cls in plugins.options(group):
            _store_option(group, name, cls, {})
    for n, m in N_OF_M:
        _store_pattern(n, ":", m)
    store.get_type = _type  # type: ignore[method-assign]


def _type(path: str) -> ObjectType:
    """What Hydra's store has at a path. Hydra asks it after all folders of YAML, so NxM and N:M without a file of their
    own are stored when they are first asked for."""
    store, size = ConfigStore.instance(), _SIZE.fullmatch(path)
    if size is not None:
        _store_pattern(int(size[1]), size[2], int(size[3]))
    return ConfigStore.get_type(store, path)


def _store_pattern(first: int, sign: str, second: int) -> None:
    """Store the option NxM as conf/pattern/4x1.yaml defines 4x1, or N:M."""
    values: dict[str, Any] = {"n": first, "m": second}
    if sign == "x":
        values = {"rows": first, "cols": second, "target_sparsity": "${recipe.block_sparsity}"}
    _store_option("pattern", f"{first}{sign}{second}", Block if sign == "x" else NofM, values)


def _store_option(group: str, name: str, schema: type, values: dict[str, Any]) -> None:
    node = {"defaults": [f"/schema/{group}/{schema.__name__}", "_self_"], **values}
    ConfigStore.instance().store(group=group, name=name, node=node)


def _shared(store: ConfigStore, memo: dict[int, Any]) -> ConfigStore:
    """The deep copy of a singleton: itself."""
    return store


@contextmanager
def isolated() -> Iterator[None]:
    """Compose in here as a process of its own would, and leave Hydra as it was: also within an application of Hydra."""
    from hydra.core.plugins import Plugins
    from hydra.version import VersionBase

    Plugins.instance()  # Hydra's own plugins store their options when they are first looked for
    store, state, version = ConfigStore.instance(), GlobalHydra.instance(), VersionBase.instance()
    before = store.repo, state.hydra, version.getbase()
    store.repo, state.hydra = _copied(store.repo), None
    ours = [(ConfigStore, "__deepcopy__"), (store, "get_type")]
    patched = [(owner, name, vars(owner).get(name)) for owner, name in ours]
    resolvers = [name for name in RESOLVERS if not OmegaConf.has_resolver(name)]
    try:
        yield
    finally:
        store.repo, state.hydra, version.version_base = before
        GlobalHydra.set_instance(state)  # Hydra has put a copy in its place
        for owner, name, value in patched:
            if value is not None:
                setattr(owner, name, value)
            elif name in vars(owner):
                delattr(owner, name)
        for name in resolvers:
            OmegaConf.clear_resolver(name)


def _copied(repo: dict[str, Any]) -> dict[str, Any]:
    """The store's groups, with the same options in them: these are never changed, only replaced."""
    return {name: _copied(node) if isinstance(node, dict) else node for name, node in repo.items()}
