"""Bugs to plant, one line each, as a tired person types them; a block's are in its case file."""
