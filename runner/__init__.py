"""The experiment runner: from composed YAML to a verified, scored and logged model. Start reading at `experiment.py`."""
