"""What the user types: arguments in, one call down, messages out. torch is imported late."""
