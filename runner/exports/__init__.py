"""Models in the formats of other runtimes: written, loaded again and compared with PyTorch."""
