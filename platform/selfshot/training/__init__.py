"""Training tasks and the plain loop; nothing here knows of Ray or DeepSpeed."""
