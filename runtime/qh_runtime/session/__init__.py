"""A live conversation: messages in, a synchronous iterator of event dataclasses out."""
