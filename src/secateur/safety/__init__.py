"""How much a network's answers can be changed by small changes of its inputs."""
