"""Fine-tuning methods on plain modules: attached to a backbone, detached, saved, loaded and merged.

A method knows linear layers and nothing of architectures, data or optimisers; ``models`` knows nothing of methods.
They meet at ``nn.Module``.
"""
