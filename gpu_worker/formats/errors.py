"""What does a caller catch when a model cannot be loaded?"""


class ModelLoadError(Exception):
    """A model cannot be loaded; the message says what is wrong, with which file, and what to do."""
