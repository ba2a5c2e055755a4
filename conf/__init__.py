"""The configuration groups. A package, so that an installed prune-distill finds its YAML from any folder."""
