"""Many runs: the callback around a sweep, its jobs, and the launchers that start them."""
