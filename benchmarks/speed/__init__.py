r"""How fast mag is, and how much memory it takes."""
