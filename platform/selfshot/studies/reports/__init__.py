"""The reports of an experiment and of a study."""
