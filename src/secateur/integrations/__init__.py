"""Callbacks for trainers, one module each, imported only where its trainer is used."""
