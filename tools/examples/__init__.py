"""The example workflows as programs: `plan.py` says what an example is, the modules of the families make theirs,
`layout.py` and `links.py` place nodes and links, `cards.py` draws the cards. `python dev.py example` writes them.
"""
