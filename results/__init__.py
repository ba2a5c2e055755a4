"""The cost of sparsity patterns: reads the runs that `runner` logged to MLflow and prints the table of results.

Run it with `python -m results`. `runner` imports only `results.columns` and `results.pictures`.
"""
