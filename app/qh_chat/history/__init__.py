"""Conversations on disk: a SQLite file of trees of messages. Imports no Textual."""
