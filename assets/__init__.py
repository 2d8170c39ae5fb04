"""Files shipped inside the wheel as `qh_chat.assets`: the built-in model. Read as resources."""
