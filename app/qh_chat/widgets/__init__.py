"""Widgets: values come down as attributes, what happens goes up as messages of `messages.py`."""
