"""What a finished run leaves: its result, its identity, its model card, the analysis of its errors."""
