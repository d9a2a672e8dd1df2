"""The command ``dd``: its operands, the command itself, and what it prints.

- `operands`: the operands, parsed and checked
- `command`: the copy, with its input, its output and its signals
- `summary`: the progress line and the closing lines
"""
