"""What `qh-chat bench` measures: limits of this machine, and how near to them models come.

Called by `qh_chat.commands.bench` alone; imports no Textual.
"""
