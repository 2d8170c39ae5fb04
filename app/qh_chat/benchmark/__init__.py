"""What `qh-chat bench` measures: models with random weights, their speed, and how fast they start.

Called by `qh_chat.commands.bench` alone; imports no Textual.
"""
