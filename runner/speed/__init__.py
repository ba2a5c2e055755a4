"""Speed on a CPU: runtimes that run a saved model, and how long each takes."""
