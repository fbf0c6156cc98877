"""What an adapter holds that somebody should know before using it."""
