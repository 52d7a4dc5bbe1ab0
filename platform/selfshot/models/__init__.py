"""What owns weights."""
