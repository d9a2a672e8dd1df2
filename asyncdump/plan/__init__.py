"""What will be done, as frozen values, and the checks before it."""
