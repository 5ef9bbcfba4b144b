"""One run's folder: its config on disk, its data, its models by stage."""
