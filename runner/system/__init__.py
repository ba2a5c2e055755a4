"""The machine under a run: errors, files, disk space, devices, ranks, signals, the hub."""
