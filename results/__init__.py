"""What a sparsity pattern costs: reads the runs that `runner` logged to MLflow and prints the table.

Run it with `python -m results`. Of this package `runner` imports `results.columns` alone.
"""
