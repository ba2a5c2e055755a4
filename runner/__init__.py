"""The experiment runner: from composed YAML to a verified, scored and logged model. Begin with `experiment.py`."""
