"""Code that the weight formats of one family share; a format file only adds its numbers."""
