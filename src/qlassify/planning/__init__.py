"""What a run will need, computed before it starts; measured afterwards and written beside it. No torch."""
