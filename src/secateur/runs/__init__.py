"""What the commands do, each in a directory that appears at the end."""
