"""What an operator does, one function per act."""
