"""The page about a run that a person looks at: one file of HTML, from plain values.

A training is followed by ``history``, ``collect`` makes plain ``content`` of it, and ``render`` HTML of that.
"""
