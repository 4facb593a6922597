"""What a run will need, computed before it starts; measured afterwards and written beside it.

And the ledger in which processes of one machine reserve memory. No torch."""
