"""The launchers of conf/hydra/launcher, by the names that these files give them."""

from hydra.core.plugins import Plugins

from runner.sweeps.local import Joblib
from runner.sweeps.ray_cluster import Ray
from runner.sweeps.slurm import SubmititLocal, SubmititSlurm

# Hydra refuses a launcher whose _target_ does not begin with hydra_plugins (Plugins._instantiate), and a package there
# would be imported at every start. So the classes are registered under a name that no module has.
NAMESPACE = "hydra_plugins.prune_distill"


def register() -> None:
    """Make the launchers known to Hydra."""
    for launcher in (Joblib, SubmititLocal, SubmititSlurm, Ray):
        Plugins.instance().class_name_to_class[f"{NAMESPACE}.{launcher.__name__}"] = launcher
