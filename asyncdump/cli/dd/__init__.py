"""`asyncdump dd`: its operands, what it says, and the command itself."""
