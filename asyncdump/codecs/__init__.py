"""What bytes become, and how they are read back."""
