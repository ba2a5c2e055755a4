"""The one door from YAML: the dataclasses of an experiment, how Hydra composes them, and the way back from a record."""
